"""`python -m experiments.run` is `muxrec train`, and docs/experiments.md does what it says."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from experiments import run as run_module
from experiments.config import Experiment, variant
from experiments.run_directory import RunDirectory
from experiments.runs import RUNS, named_run
from experiments.search_space import check_space, read_space
from features.files import sha256_of
from tests.experiments.test_compare import Page

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
SMALL = ("trainer.epochs=1", "trainer.batch_size=512", "embedding.num_rows=200", "model.hidden=[4]")


def blocks(language: str) -> list[str]:
    """Code of a language on the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def called(monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], *runs) -> int:
    """Exit code of the command of `experiments.run`."""
    monkeypatch.setattr(sys, "argv", ["run", *map(str, arguments)])
    for one in runs:
        monkeypatch.setitem(RUNS, one.__name__, one)  # so that it is gone afterwards
    try:
        run_module.run(*runs)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def test_the_module_is_the_verb(dataset, muxrec, monkeypatch, tmp_path, capsys):
    options = ("mlp", *SMALL, "--data", dataset, "--no-track", "--json")
    assert called(monkeypatch, (*options, "--out", tmp_path / "a")) == 0
    assert muxrec("train", *options, "--out", tmp_path / "b").code == 0
    weights = [sha256_of(tmp_path / name / "checkpoint" / "best.safetensors") for name in "ab"]
    assert weights[0] == weights[1]
    assert called(monkeypatch, ("nothing", "--data", dataset, "--out", tmp_path / "c")) == 2
    assert capsys.readouterr().err.startswith("run: unknown run; found 'nothing'; use one of")


def test_a_script_brings_names_of_its_own(dataset, monkeypatch, tmp_path):
    def tiny() -> Experiment:
        """Four units."""
        return variant(named_run("mlp"), "tiny", model={"hidden": [4]}, trainer={"epochs": 1, "batch_size": 512})

    assert called(monkeypatch, ("tiny", "--data", dataset, "--out", tmp_path / "r", "--no-track", "--json"), tiny) == 0
    assert RunDirectory(tmp_path / "r").experiment() == tiny()


def test_the_first_script_of_the_page_is_ten_lines():
    lines = [line for line in blocks("python")[0].splitlines() if line]
    assert len(lines) <= 10


def test_both_spaces_of_the_page_are_the_same_and_fit_a_run(tmp_path):
    declared: dict = {}
    exec(blocks("python")[1], declared)
    (tmp_path / "space.yaml").write_text(blocks("yaml")[0])
    read = read_space(tmp_path / "space.yaml")
    assert {key: str(values) for key, values in read.items()} == {
        key: str(values) for key, values in declared["SPACES"]["narrow"].items()
    }
    check_space(read, named_run("mlp"))


def test_the_page_names_the_metrics_that_a_run_has(run):
    prefixes = set(re.findall(r"^\| `(\w+)/`", PAGE, flags=re.MULTILINE)) | {"test"}
    assert prefixes == {"train", "val", "test", "perf", "system", "parity"}
    files = set(re.findall(r"`(\w+\.(?:png|md|csv))`", PAGE)) - {"importance.csv"}
    report = {path.name for path in RunDirectory(run).report.iterdir()}
    others = {"kept.png", "trials.csv"}  # of a pruned run, and of a sweep
    assert files - others <= report
    assert {name for name in report if name.endswith(".png")} <= files


@pytest.mark.slow
def test_the_page_runs_as_it_stands(dataset, muxrec, monkeypatch, tmp_path):
    """In this process, where everything is imported already; only the sweep has one of its own."""
    (tmp_path / "narrow.py").write_text(blocks("python")[0])
    (tmp_path / "dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setitem(RUNS, "narrow", RUNS["mlp"])  # so that what the script adds is gone afterwards
    for line in "".join(blocks("bash")).splitlines():
        program, *words = shlex.split(line)
        if program == "muxrec":
            result = muxrec(*words)
            assert result.code == 0, f"{line}\n{result.err}"
        else:
            assert program == "python"
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit, match=r"^0$"):
                runpy.run_path(words[0], run_name="__main__")
    rows = Page((tmp_path / "comparison.html").read_text()).rows[1:]
    assert [row for row in rows if row[1].startswith("narrow") and "1 2" in map(str.strip, row)], rows
    assert (tmp_path / "sweeps" / "mlp" / "report" / "best.yaml").is_file()
