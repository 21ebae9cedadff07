"""Runs with target statistics through the commands: trained, resumed, evaluated, exported, compared, pruned, scored."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.errors import InputError
from recsys.config import default_run, with_overrides
from recsys.runs.parity import parity_of
from recsys.runs.prune import prune_run
from recsys.runs.train import train_run
from serving.bundle import Bundle
from tests.conftest import SMALL, read_scores
from tests.recsys.conftest import cut_off

NAME = "target_statistics.safetensors"
SETTINGS = {
    "final_mlp": (*SMALL, "target_statistics=true"),
    "logistic_regression": ("trainer.epochs=2", "trainer.batch_size=512", "target_statistics=true"),
}


@pytest.fixture
def trained(project, dataset, muxrec, request) -> Path:
    """A finished run of the model that the test is for, trained once."""
    model = getattr(request, "param", "final_mlp")
    out = project / f"statistics_{model}"
    if not (out / "metrics.json").exists():
        arguments = ("--data", dataset, "--out", out, "--no-track", "--json", *SETTINGS[model])
        result = muxrec("train", model, *arguments)
        assert result.code == 0, result.err
    return out


@pytest.fixture
def awkward(project, tmp_path) -> Path:
    """Raw rows with values that train did not show, missing ones, and empty lists."""
    number = pl.int_range(pl.len())
    rows = pl.read_parquet(project / "test.parquet").with_columns(
        f00=pl.when(number % 3 == 0).then(None).when(number % 3 == 1).then(pl.lit("never seen")).otherwise("f00"),
        l00=pl.when(number % 4 == 0).then(pl.lit("")).when(number % 4 == 1).then(None).otherwise("l00"),
    )
    rows.write_parquet(tmp_path / "awkward.parquet")
    return tmp_path / "awkward.parquet"


@pytest.mark.parametrize("trained", SETTINGS, indirect=True)
def test_trainer_and_scorer_agree(trained, awkward, muxrec, tmp_path):
    bundle, scores = tmp_path / "bundle", tmp_path / "scores"
    assert muxrec("export", trained, "--out", bundle, "--json").code == 0
    assert muxrec("verify", bundle, "--json").code == 0
    result = muxrec("parity", trained, bundle, "--input", awkward, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["max_abs_diff"] < 1e-6
    assert muxrec("score", bundle, "--input", awkward, "--out", scores, "--json").code == 0
    assert len(read_scores(scores)) == 500
    assert Bundle.open(bundle).model_id == Bundle.open(trained / "bundle").model_id
    assert (bundle / NAME).read_bytes() == (trained / NAME).read_bytes()


def test_an_export_needs_no_dataset(trained, muxrec, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "dataset": str(tmp_path / "gone")}))
    assert muxrec("export", run, "--out", tmp_path / "bundle", "--table-dtype", "int8", "--json").code == 0
    assert parity_of(run, tmp_path / "bundle", [], quantized=True)["ok"]


def test_evaluate_gives_the_metrics_of_training(trained, muxrec):
    found = json.loads(muxrec("evaluate", trained, "--split", "test", "--json").out)
    expected = json.loads((trained / "metrics.json").read_text())["test"]
    assert {name: found[name] for name in expected} == expected


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(trained, dataset, muxrec, tmp_path, monkeypatch):
    out = tmp_path / "run"
    command: tuple[Any, ...] = ("train", "final_mlp", "--data", dataset, "--out", out, "--no-track", "--json")
    command = (*command, *SETTINGS["final_mlp"], "trainer.checkpoint_steps=2")
    cut_off(monkeypatch, muxrec, command)
    assert not (out / "metrics.json").exists()
    assert muxrec(*command).code == 0
    best = "checkpoint/best.safetensors"
    assert (out / best).read_bytes() == (trained / best).read_bytes()
    assert Bundle.open(out / "bundle").model_id == Bundle.open(trained / "bundle").model_id


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("importance", ["embedding.l2=0.01"]),
        ("optembed", ["compression.settings.search.generations=2", "compression.settings.tuning_steps=2"]),
    ],
)
def test_a_pruned_run_keeps_them(method, overrides, trained, awkward, tmp_path):
    """Trained under a mask, with the search that trains the finished run a little."""
    settings: dict[str, Any] = {"method": method, "target_bytes": 1500, "overrides": overrides}
    prune_run(trained, tmp_path / "run", track=False, **settings)
    assert (tmp_path / "run" / NAME).read_bytes() == (trained / NAME).read_bytes()
    assert parity_of(tmp_path / "run", tmp_path / "run" / "bundle", [str(awkward)])["ok"]


@pytest.fixture
def without(project, dataset) -> Path:
    """A run of final_mlp with the target statistics switched off that it has on data of this size, trained once."""
    out, small = project / "without_statistics", with_overrides(default_run("final_mlp"), SMALL)
    train_run(small, dataset, out, track=False, report=False)
    return out


def test_weights_trained_without_them_cannot_take_them_up(without, tmp_path):
    settings: dict[str, Any] = {"method": "quantized", "overrides": ["target_statistics=true"]}
    with pytest.raises(InputError, match=r"starts from the run's weights here; found .*target_statistics"):
        prune_run(without, tmp_path / "run", track=False, **settings)


def test_a_damaged_file_is_one_line(trained, muxrec, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    path = run / NAME
    path.write_bytes(path.read_bytes()[:-8])
    for fragment in ("cut off", "readable file"):
        result = muxrec("evaluate", run)
        assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
        assert all(part in result.err for part in (NAME, fragment, "restore the file, or train again"))
        path.unlink(missing_ok=True)


def test_runs_without_them_are_written_as_before(without):
    assert "target_statistics" not in (without / "experiment.yaml").read_text()
    assert not (without / NAME).exists()
    assert not (without / "bundle" / NAME).exists()
