"""A tracked run in a separate SQLite store: cut off, resumed, finished; and the model that MLflow loads from it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from data.synthetic import planted_frame
from features.dataset.info import read_dataset
from features.errors import InputError
from features.registry import FeatureRegistry
from recsys.config import Experiment, flatten
from recsys.runs.train import train_run
from recsys.tracking import tracker
from recsys.tracking.compare_runs import tracked_runs
from recsys.tracking.scoring_run import log_run
from recsys.tracking.tracker import Tracker, git_commit
from recsys.trainer import Trainer
from serving.scorer import Scorer
from tests.planted import write_dataset

REGISTRY = FeatureRegistry.of(
    features={
        "f00": "categorical",
        "x00": {"type": "numeric", "transform": "standardize"},
        "l00": {"type": "categorical_list", "separator": "|"},
        "words": {"type": "categorical_list", "pooling": "sum"},
    }
)
EXPERIMENT = Experiment.model_validate(
    {
        "name": "tiny",
        "seed": 7,
        "model": {"name": "mlp", "hidden": [8, 4], "dropout": 0.1},
        "embedding": {"num_rows": 64, "width": 4, "probes": 1},
        "trainer": {"epochs": 3, "batch_size": 64, "checkpoint_steps": 4},
    }
)


class Tracked(NamedTuple):
    """A finished run in its store, and what was seen on the way."""

    client: MlflowClient
    run: Run
    directory: Path
    data: Path
    status_of_failure: str
    metrics: dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that is both the working directory and the place of the store."""
    directory = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{directory / 'store.db'}")
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        yield directory


@pytest.fixture(autouse=True)
def _own_store(store: Path) -> None:
    """This module's store, instead of the one of all other tests."""


@pytest.fixture(scope="module")
def tracked(store: Path) -> Tracked:
    """A run that fails in its second epoch, and is then taken up again."""
    rows = planted_frame(600, num_features=2, num_distinct=9, num_lists=1, num_numeric=1)
    rows = rows.with_columns(words=pl.col("l00").str.split("|"))
    splits = {"train": rows[:400], "valid": rows[400:500], "test": rows[500:]}
    data = write_dataset(store, REGISTRY, splits)
    client = MlflowClient(f"sqlite:///{store / 'store.db'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", failing_after(10, Trainer.step))
        with pytest.raises(MemoryError):
            train_run(EXPERIMENT, data, store / "run")
    (failed,) = runs_of(client)
    metrics = train_run(EXPERIMENT, data, store / "run")
    (run,) = runs_of(client)
    assert run.info.run_id == failed.info.run_id
    return Tracked(client, run, store / "run", data, failed.info.status, metrics)


def failing_after(num_steps: int, step: Any) -> Any:
    calls: list[int] = []

    def fails(trainer: Trainer, batch: Any) -> Any:
        calls.append(1)
        if len(calls) > num_steps:
            raise MemoryError
        return step(trainer, batch)

    return fails


def runs_of(client: MlflowClient) -> list[Run]:
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


@pytest.mark.slow
def test_one_run_however_often_it_is_taken_up(tracked: Tracked):
    assert tracked.status_of_failure == "FAILED"
    assert tracked.run.info.status == "FINISHED"
    assert tracked.run.info.run_name == "tiny"
    run_info = json.loads((tracked.directory / "run.json").read_text())
    assert run_info["mlflow_run_id"] == tracked.run.info.run_id
    # A finished run is returned as it is, and nothing is logged again.
    points = tracked.client.get_metric_history(tracked.run.info.run_id, "test/auc")
    assert train_run(EXPERIMENT, tracked.data, tracked.directory) == tracked.metrics
    assert tracked.client.get_metric_history(tracked.run.info.run_id, "test/auc") == points


@pytest.mark.slow
def test_settings_are_flat(tracked: Tracked):
    params = tracked.run.data.params
    assert params["name"] == "tiny"
    assert params["seed"] == "7"
    assert params["model.name"] == "mlp"
    assert params["model.hidden"] == "8,4"
    assert params["model.batch_norm"] == "True"  # a default, resolved
    assert params["embedding.num_rows"] == "64"
    assert params["embedding.optimizer"] == "adam"
    assert params["trainer.checkpoint_steps"] == "4"
    assert set(params) == set(flatten(EXPERIMENT.model_dump(mode="json")))


@pytest.mark.slow
def test_tags_name_the_data(tracked: Tracked):
    info, registry = read_dataset(tracked.data)
    tags = tracked.run.data.tags
    assert tags["dataset.name"] == info.name
    assert tags["dataset.digest"] == info.digest
    assert tags["registry.fingerprint"] == registry.fingerprint()
    assert tags["stage"] == "train"
    assert tags["seed"] == "7"
    assert tags["mlflow.source.name"] == "muxrec train"
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.note.content"] == f"tiny on {info.name}, in {tracked.directory}"


@pytest.mark.slow
def test_each_split_is_an_input_with_a_digest_of_its_own(tracked: Tracked):
    info, _ = read_dataset(tracked.data)
    inputs = {entry.tags[0].value: entry.dataset for entry in tracked.run.inputs.dataset_inputs}
    assert inputs.keys() == {"train", "valid", "test"}
    assert {split: dataset.digest for split, dataset in inputs.items()} == {s: info.digest_of(s) for s in inputs}
    assert json.loads(inputs["train"].profile)["num_rows"] == 400
    assert json.loads(inputs["train"].source)["uri"] == (tracked.data / "train").as_uri()


@pytest.mark.slow
def test_metrics_have_prefixes_and_steps(tracked: Tracked):
    names = tracked.run.data.metrics
    assert {name.split("/")[0] for name in names} == {"train", "val", "test", "perf", "system"}
    assert {"train/loss", "train/learning_rate", "val/auc", "val/logloss", "test/auc", "perf/samples_per_s"} <= set(
        names
    )
    assert names["test/auc"] == pytest.approx(tracked.metrics["test"]["auc"])
    assert names["val/auc"] == pytest.approx(tracked.metrics["valid"]["auc"])
    # One point an epoch, also for the epoch that was cut off and taken up.
    losses = tracked.client.get_metric_history(tracked.run.info.run_id, "train/loss")
    history = [json.loads(line) for line in (tracked.directory / "log.jsonl").read_text().splitlines()]
    assert [(point.step, point.value) for point in losses] == [
        (record["global_step"], record["train_loss"]) for record in history
    ]
    assert [point.step for point in losses] == [7, 14, 21]
    # What the whole run came to has no step (0), but where there is a curve, which it ends.
    for name in ("test/auc", "perf/bundle_bytes", "perf/tracking_seconds"):
        assert {point.step for point in tracked.client.get_metric_history(tracked.run.info.run_id, name)} == {0}, name
    steps = [point.step for point in tracked.client.get_metric_history(tracked.run.info.run_id, "val/auc")]
    assert sorted(set(steps)) == [7, 14, 21]


@pytest.mark.slow
def test_artifacts_are_no_pickles(tracked: Tracked, store: Path):
    artifacts = [path.relative_to(store) for path in (store / "mlruns").rglob("*") if path.is_file()]
    names = {path.name for path in artifacts}
    assert {"curves.png", "roc.png", "reliability.png", "row_usage.png", "collisions.csv", "collisions.json"} <= names
    assert {"experiment.yaml", "registry.json", "manifest.json", "table.safetensors", "dense.onnx", "MLmodel"} <= names
    assert not {path.suffix for path in artifacts} & {".pkl", ".pickle", ".pt", ".pth", ".joblib"}
    assert not any((store / path).read_bytes().startswith(b"\x80") for path in artifacts)  # how every pickle begins
    assert [path.name for path in store.glob("*.db")] == ["store.db"]


LOAD = """
import sys
import mlflow, pandas as pd, polars as pl
model = mlflow.pyfunc.load_model(sys.argv[1])
raw = pl.read_parquet(sys.argv[2]).to_pandas()
model.predict(raw).to_parquet(sys.argv[3])
import features, serving
print(features.__file__, serving.__file__, "torch" in sys.modules)
print(model.metadata.signature.outputs.input_names())
"""


@pytest.mark.slow
def test_mlflow_loads_the_model_and_scores_alike(tracked: Tracked, store: Path):
    """In another process, with the code that was logged with the model and without torch."""
    (logged,) = tracked.client.search_logged_models([tracked.run.info.experiment_id])
    assert logged.source_run_id == tracked.run.info.run_id
    raw = pl.read_parquet(store / "test.parquet").drop("label", "true_probability")
    raw.write_parquet(store / "raw.parquet")
    command = [
        sys.executable,
        "-I",
        "-c",
        LOAD,
        logged.model_uri,
        str(store / "raw.parquet"),
        str(store / "scores.parquet"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=store)
    assert done.returncode == 0, done.stderr
    files, columns = done.stdout.splitlines()
    assert "mlruns" in files.split()[0]
    assert "mlruns" in files.split()[1]
    assert files.split()[2] == "False"
    assert columns == "['probability']"
    scores = pl.read_parquet(store / "scores.parquet")["probability"].to_numpy()
    assert np.abs(scores - Scorer(tracked.directory / "bundle").score(raw)).max() <= 1e-6


@pytest.mark.slow
def test_metrics_that_are_not_finite_are_left_out(store: Path):
    tracker = Tracker.start(experiment="other", name="other", tags={}, key="other")
    tracker.log_metrics({"a": 1.0, "b": float("nan"), "c": float("inf")}, step=3)
    tracker.finish("KILLED")
    run = tracker.client.get_run(tracker.run_id)
    assert run.data.metrics == {"a": 1.0}
    assert run.info.status == "KILLED"
    assert tracker.seconds > 0


@pytest.mark.slow
def test_the_environment_names_the_experiment(store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the environment")
    tracker = Tracker.start(experiment="of the caller", name="a", tags={"b": "c"}, key="a")
    run = tracker.client.get_run(tracker.run_id)
    assert tracker.client.get_experiment(run.info.experiment_id).name == "of the environment"
    assert run.data.tags["b"] == "c"
    tracker.finish()


@pytest.mark.slow
def test_a_run_that_is_gone_is_one_clear_line(store: Path):
    (store / "gone.json").write_text('{"mlflow_run_id": "0123", "mlflow_tracking_uri": null}')
    with pytest.raises(InputError, match=r"expected the MLflow run 0123 in sqlite:.*; found no such run; set MLFLOW"):
        Tracker.of(store / "gone.json")


def test_without_a_setting_the_store_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracker.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_long_and_listed_settings_become_text():
    assert tracker._text([1, "a"]) == "1,a"
    assert tracker._text(None) == "None"
    assert len(tracker._text("x" * 9999)) == tracker.MAX_PARAM_LENGTH
    assert flatten({"a": {}, "b": {"c": {"d": None}}}) == {"b.c.d": None}


def test_commit_of_a_checkout(tmp_path: Path):
    assert git_commit(tmp_path) is None
    commands = ["init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m first"]
    for command in commands:
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True)
    commit = git_commit(tmp_path)
    assert commit is not None
    assert len(commit) == 40


def test_a_store_that_does_not_answer_is_one_line_without_its_address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"cannot list experiments.*MLFLOW_TRACKING_URI") as raised:
        tracked_runs()
    assert "secret" not in str(raised.value)


def test_a_scoring_run_that_cannot_be_logged_to_its_end_has_failed(tmp_path):
    report = {"path": str(tmp_path), "model_id": "m", "rows_in": 3}  # without a manifest
    with pytest.raises(FileNotFoundError):
        log_run({"report": report, "params": {"workers": 1}})
    _, _, (run,) = tracked_runs("scoring")
    assert (run.status, run.params, run.metrics) == ("FAILED", {"workers": "1"}, {"score/rows_in": 3.0})
