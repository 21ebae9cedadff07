"""A small planted problem, and the `muxrec` command called in this process."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from data.synthetic import planted_frame
from experiments.__main__ import main
from experiments.studies.table_kinds import StudyData, read_data

REGISTRY = """\
label: label
group: f02
features:
  f00: categorical
  f01: categorical
  f02: {type: categorical, probes: 1}
  f03: categorical
  x00: {type: numeric, transform: standardize}
  l00: {type: categorical_list, separator: '|', pooling: sum}
"""


@dataclass
class Result:
    """The result of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def muxrec(monkeypatch, capsys):
    """Call `muxrec` with arguments; exit code, standard output, standard error."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["muxrec", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A directory with `registry.yaml` and raw `train.parquet`, `valid.parquet`, `test.parquet`."""
    directory = tmp_path_factory.mktemp("project")
    (directory / "registry.yaml").write_text(REGISTRY)
    rows = planted_frame(4000, seed=3, num_features=4, num_distinct=50, num_numeric=1, num_lists=1)
    for name, start, stop in (("train", 0, 3000), ("valid", 3000, 3500), ("test", 3500, 4000)):
        rows.slice(start, stop - start).write_parquet(directory / f"{name}.parquet")
    return directory


@pytest.fixture(autouse=True)
def _own_store(tmp_path_factory, monkeypatch):
    """Keep the MLflow store and the cache of the user who runs the tests out of them."""
    monkeypatch.setenv("MUXREC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    store = tmp_path_factory.getbasetemp() / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dataset(project, muxrec) -> Path:
    """The project's dataset directory, prepared once."""
    out = project / "dataset"
    if not (out / "dataset.json").exists():
        files = [part for name in ("train", "valid", "test") for part in (f"--{name}", project / f"{name}.parquet")]
        result = muxrec("prepare", "--registry", project / "registry.yaml", *files, "--out", out, "--json")
        assert result.code == 0, result.err
    return out


@pytest.fixture
def frappe(dataset, tmp_path) -> Path:
    """The planted dataset under a name that the studies know."""
    return _called(dataset, "frappe", tmp_path)


@pytest.fixture
def movielens(dataset, tmp_path) -> Path:
    """The planted dataset under another name that the studies know."""
    return _called(dataset, "movielens-1m", tmp_path)


def _called(dataset: Path, name: str, folder: Path) -> Path:
    shutil.copytree(dataset, folder / name)
    info = json.loads((dataset / "dataset.json").read_text())
    (folder / name / "dataset.json").write_text(json.dumps({**info, "name": name}))
    return folder / name


@pytest.fixture
def study_data(dataset) -> StudyData:
    """The planted dataset as the studies read it."""
    return read_data(dataset)


@pytest.fixture
def run(project, dataset, muxrec) -> Path:
    """A finished run of two epochs without tracking, trained once."""
    out = project / "run"
    if not (out / "metrics.json").exists():
        result = muxrec("train", "final_mlp", "--data", dataset, "--out", out, "--no-track", "--json", *SMALL)
        assert result.code == 0, result.err
    return out


SMALL = (
    "trainer.epochs=2",
    "trainer.batch_size=512",
    "embedding.num_rows=500",
    "model.mlp1_hidden=[20]",
    "model.mlp2_hidden=[10]",
    "model.fs1_context=[f02, x00]",
)


def read_scores(directory: Path) -> pl.DataFrame:
    """All scored parts."""
    return pl.read_parquet(sorted(directory.glob("part-*.parquet")))
