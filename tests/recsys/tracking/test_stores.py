"""The MLflow store that a command uses, and its message if the run is no longer there."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from experiments.runs import RUNS
from features.errors import InputError
from recsys.runs.run_directory import RunDirectory
from recsys.sweep.sweep import Sweep
from recsys.sweep.worker import train_trial
from recsys.tracking.compare_runs import tracked_runs
from recsys.tracking.store import connect, page_of, place_of, shown_uri
from recsys.tracking.tracker import Tracker

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The default store of a new working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def logged(run: Path, store: str, tmp_path: Path) -> Path:
    """A finished run that is in that store."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    tracker = Tracker.start(experiment="films", name="films", tags={"stage": "train"}, key="films")
    tracker.finish()
    directory = RunDirectory(copy)
    directory.update_run_info(tracker.run_info())
    assert directory.run_info()["mlflow_tracking_uri"] == store
    return copy


def unfinished(run: Path) -> Path:
    """The same run as one that was cut off."""
    (run / "metrics.json").unlink()
    return run


def one_line(result: Any) -> str:
    """The message of a command that was refused."""
    assert result.code == 2, result
    assert result.err.count("\n") == 1, result.err
    assert result.err.startswith("muxrec: ")
    return result.err


def test_a_command_whose_run_is_in_another_store_stops_and_names_both(
    logged, dataset, store, tmp_path, monkeypatch, muxrec
):
    other = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    promotion = ("promote", logged)
    assert f"in {other}; found no such store; unset" in one_line(muxrec(*promotion))
    assert not (tmp_path / "other.db").exists()
    connect(other)
    training = ("train", "--config", logged / "experiment.yaml", "--data", dataset, "--out", logged)
    for command in (promotion, training, ()):
        if not command:  # as before, and then of a run that was cut off
            unfinished(logged)
            command = training
        said = one_line(muxrec(*command))
        assert f"in {other}; found no such run; unset MLFLOW_TRACKING_URI to use {store}, where it was logged" in said
    assert not MlflowClient(store).search_registered_models()
    assert not MlflowClient(other).search_registered_models()


def test_the_environments_store_wins_where_the_run_is_there(logged, store, tmp_path, monkeypatch, muxrec):
    moved = tmp_path / "moved.db"
    shutil.move(tmp_path / "mlflow.db", moved)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved}")
    result = muxrec("promote", logged, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["store"] == f"sqlite:///{moved}"
    (model,) = MlflowClient(f"sqlite:///{moved}").search_registered_models()
    assert {alias: str(number) for alias, number in model.aliases.items()} == {"champion": "1"}
    assert "muxrec promote" in model.description
    assert str(logged) in MlflowClient(f"sqlite:///{moved}").get_model_version(model.name, "1").description
    assert not (tmp_path / "mlflow.db").exists()


def delete_run(client: MlflowClient, run_info: dict[str, Any]) -> None:
    client.delete_run(run_info["mlflow_run_id"])


def delete_experiment(client: MlflowClient, run_info: dict[str, Any]) -> None:
    client.delete_experiment(run_info["mlflow_experiment_id"])


def delete_for_good(client: MlflowClient, run_info: dict[str, Any]) -> None:
    client.delete_run(run_info["mlflow_run_id"])
    client._tracking_client.store._hard_delete_run(run_info["mlflow_run_id"])  # what `mlflow gc` does


@pytest.mark.parametrize(
    ("delete", "said"),
    [
        (delete_run, "found it deleted; bring it back (mlflow runs restore --run-id "),
        (delete_experiment, "found it deleted with its experiment 'films'; bring it back (mlflow experiments restore"),
        (delete_for_good, "found no such run; set MLFLOW_TRACKING_URI to the store that holds it"),
    ],
)
def test_a_run_that_was_deleted_is_one_line(delete: Callable[..., None], said, logged, dataset, store, muxrec):
    """Never exit code 1, with which `promote` says that the gate refused."""
    delete(MlflowClient(store), RunDirectory(logged).run_info())
    assert said in one_line(muxrec("promote", logged))
    parity = muxrec("parity", logged, logged / "bundle", "--input", logged / "bundle" / "golden.parquet", "--json")
    assert parity.code == 0  # its answer needs no store
    train = ("train", "--config", logged / "experiment.yaml", "--data", dataset, "--out", logged)
    assert said in one_line(muxrec(*train))  # finished as it is: what it would print is not there
    unfinished(logged)
    assert said in one_line(muxrec(*train))


def test_a_run_can_be_logged_anew(logged, dataset, store, muxrec):
    """The remedy that the message names, with the epochs of before."""
    directory = RunDirectory(unfinished(logged))
    before = directory.run_info()["mlflow_run_id"]
    directory.update_run_info({"mlflow_run_id": None})
    result = muxrec("train", "--config", logged / "experiment.yaml", "--data", dataset, "--out", logged, "--json")
    assert result.code == 0, result.err
    assert {key: json.loads(result.out)[key] for key in ("store", "mlflow")} == place_of(directory.run_info())
    made = directory.run_info()["mlflow_run_id"]
    assert made != before
    history = MlflowClient(store).get_metric_history(made, "train/loss")
    assert [point.step for point in history] == [record["global_step"] for record in directory.history()]


def test_a_sweep_whose_run_was_deleted_is_one_line(dataset, store, tmp_path, monkeypatch, muxrec):
    monkeypatch.setattr(Sweep, "_train", lambda *arguments: None)
    monkeypatch.setattr("recsys.sweep.sweep.write_sweep_report", lambda folder, *rest: folder.mkdir(exist_ok=True))
    command = ("sweep", "mlp", "--data", dataset, "--out", tmp_path / "sweep", "--json")
    result = muxrec(*command)
    assert result.code == 1, result.err  # no trial, none of them the best
    run_info = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert {key: json.loads(result.out)[key] for key in ("store", "mlflow")} == place_of(run_info)
    assert run_info["mlflow_tracking_uri"] == store
    MlflowClient(store).delete_run(run_info["mlflow_run_id"])
    assert "found it deleted" in one_line(muxrec(*command))


def test_a_trial_goes_where_its_sweep_is(store, monkeypatch):
    """Also where the sweep goes on from another folder; its own default store needs no word."""
    uris: list[str | None] = []
    monkeypatch.setattr(
        "recsys.runs.train.train_run", lambda *a, **k: uris.append(os.environ.get("MLFLOW_TRACKING_URI"))
    )
    experiment = RUNS["mlp"]().model_dump(mode="json")
    request = {"experiment": experiment, "data": "data", "out": "out", "track": True, "tags": {}}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    for wanted in (None, store, "sqlite:////elsewhere/mlflow.db"):
        assert train_trial({**request, "store": wanted}, None)["end"] == "complete"  # type: ignore[arg-type]
    assert uris == ["", "", "sqlite:////elsewhere/mlflow.db"]


def test_compare_says_that_an_experiment_was_deleted(logged, store, muxrec):
    MlflowClient(store).delete_experiment(RunDirectory(logged).run_info()["mlflow_experiment_id"])
    assert "expected the MLflow experiment 'films'; found it deleted; bring it back" in one_line(
        muxrec("compare", "films")
    )
    with pytest.raises(InputError, match=r"expected the MLflow experiment 'films'; found it deleted"):
        Tracker.start(experiment="films", name="a", tags={}, key="b")


def test_the_number_of_an_experiment_counts_and_that_of_a_run_is_refused(logged, store, monkeypatch, muxrec):
    run_info = RunDirectory(logged).run_info()
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", run_info["mlflow_experiment_id"])
    tracker = Tracker.start(experiment="other", name="a", tags={}, key="a")
    assert tracker.experiment_id == run_info["mlflow_experiment_id"]
    assert tracked_runs()[0] == "films"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    assert "expected one experiment; found 'films' and 'other'" in one_line(muxrec("compare"))
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    for number in ("99", "films"):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", number)
        with pytest.raises(InputError, match=rf"expected an experiment of sqlite:.*; found '{number}'"):
            Tracker.start(experiment="other", name="a", tags={}, key="b")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")

    monkeypatch.setenv("MLFLOW_RUN_ID", "0123")
    assert "found MLFLOW_RUN_ID=0123; unset MLFLOW_RUN_ID" in one_line(muxrec("promote", logged))
    with pytest.raises(InputError, match="its own MLflow run; found MLFLOW_RUN_ID=0123"):
        Tracker.start(experiment="other", name="a", tags={}, key="b")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_info["mlflow_run_id"])
    assert Tracker.of(RunDirectory(logged).record).run_id == run_info["mlflow_run_id"]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:///broken.db", "file is not a database"),
        ("nothing://me:secret@host", "unsupported URI"),
        ("postgresql+nothing://me:secret@host/a", "cannot open the MLflow store postgresql+nothing://***@host/a"),
    ],
)
def test_a_store_that_cannot_be_opened_is_one_line(uri, said, logged, tmp_path, monkeypatch, muxrec):
    (tmp_path / "broken.db").write_text("no database" * 500)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for command in (("promote", logged), ("compare",)):
        line = one_line(muxrec(*command))
        assert said in line
        assert "secret" not in line


def test_a_store_that_fails_while_it_is_used_is_one_line(store):
    tracker = Tracker.start(experiment="films", name="a", tags={}, key="a")
    tracker.client.delete_run(tracker.run_id)  # in the UI, while the run is trained
    for use in (lambda: tracker.log_metrics({"a": 1.0}), lambda: tracker.set_tags({"a": "b"}), tracker.finish):
        with pytest.raises(InputError, match=r"cannot log to the MLflow run .* Current state is deleted"):
            use()


def test_the_environment_stays_what_the_user_said(store):
    """MLflow writes the store there, where it would count as the user's word."""
    connect(store)
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_place_of_a_run_shows_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:p@ss@host:8443/ml")
    run_info = {"mlflow_run_id": "a", "mlflow_tracking_uri": None, "mlflow_experiment_id": "7"}
    page = "https://host:8443/ml/#/experiments/7/runs?workflowType=machine_learning"
    assert place_of(run_info) == {"store": "https://***@host:8443/ml", "mlflow": page}
    assert place_of({**run_info, "mlflow_experiment_id": None}) == {}
    assert page_of("7", "sqlite:///a.db").startswith("http://127.0.0.1:5000/#/experiments/7/runs?")
    assert "secret" not in shown_uri("mssql://host/db?odbc_connect=PWD%3Dsecret")


def test_nothing_is_registered_for_an_alias_that_mlflow_refuses(logged, store, muxrec):
    for alias in ("cham pion", "latest", "V1", ""):
        assert "--to: expected a name that an alias may have" in one_line(muxrec("promote", logged, "--to", alias))
    assert not MlflowClient(store).search_registered_models()


def test_comparing_makes_no_store(tmp_path, monkeypatch, muxrec):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    assert f"expected an MLflow store; found none at sqlite:///{tmp_path}/none.db" in one_line(muxrec("compare"))
    assert list(tmp_path.iterdir()) == []
