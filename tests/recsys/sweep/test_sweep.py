"""Sweeps: what a space may hold, which trials there are, how they end, and that nothing is lost where one is killed.

Most tests have trials "trained" in no time by a made-up process; the slow ones run real commands.
"""

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from mlflow.tracking import MlflowClient

from experiments.__main__ import load_runs
from experiments.runs import RUNS, SPACES
from features.errors import InputError
from features.line_worker import WorkerError
from recsys.config import Experiment, read_experiment
from recsys.sweep import sweep
from recsys.sweep.report import TrialResult, best_of, importances, in_order
from recsys.sweep.search_space import Choice, Float, Int, SearchSpace, check_space, default_space, read_space
from recsys.sweep.sweep import WARMUP_EPOCHS, run_sweep

ROOT = Path(__file__).parents[3]
EXPERIMENT = Experiment.model_validate(
    {"name": "small", "model": {"name": "mlp", "hidden": [8]}, "trainer": {"epochs": 4}, "embedding": {"l2": 0.02}}
)
SPACE: SearchSpace = {
    "embedding.l2": Float(low=1e-3, high=0.1, log=True),
    "embedding.probes": Int(low=1, high=8),
    "model.hidden": Choice(values=([8], [4, 4])),
}
Score = Callable[[int, dict[str, Any], int], float]


class MadeUp:
    """Replaces the training process: a score by trial, settings and epoch instead of a training."""

    score: Score
    dies_in: list[int] = []  # noqa: RUF012  numbers of the trials in which the process dies, once for each entry
    interrupted_in: list[int] = []  # noqa: RUF012
    fails_in: list[int] = []  # noqa: RUF012
    requests: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, log: Path, num_threads: int, lock: int) -> None:
        self.log = log

    def ask(self, request: dict[str, Any], should_prune: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        type(self).requests.append(request)
        number = int(request["tags"]["sweep.trial"])
        scores = []
        for epoch in range(1, request["experiment"]["trainer"]["epochs"] + 1):
            scores.append(type(self).score(number, request["experiment"], epoch))
            prune = should_prune({"epoch": epoch, "valid_auc": scores[-1]})
            json.dumps(prune)  # as the real one is told
            if epoch == 3:
                self._meet_fate(number)
            if prune:
                return {"end": "pruned"}
        if number in self.fails_in:
            return {"end": "failed", "error": "loss and gradients must stay finite"}
        auc = max(scores)
        return {"end": "complete", "metrics": {"valid": {"auc": auc, "logloss": 1 - auc}, "test": {"auc": auc}}}

    def _meet_fate(self, number: int) -> None:
        if number in self.dies_in:
            self.dies_in.remove(number)
            raise WorkerError(-9)
        if number in self.interrupted_in:
            self.interrupted_in.remove(number)
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Nothing to end."""

    def close(self) -> None:
        """It never began."""


def smooth(number: int, experiment: dict[str, Any], epoch: int) -> float:
    """A score that follows from the settings alone: small decay and many probes are good."""
    embedding = experiment["embedding"]
    return 0.7 - embedding["l2"] + 0.01 * embedding["probes"] + 0.001 * epoch


@pytest.fixture
def made_up(monkeypatch) -> type[MadeUp]:
    """Trials by made-up processes from here on."""

    class Fresh(MadeUp):
        score = staticmethod(smooth)
        dies_in, interrupted_in, fails_in, requests = [], [], [], []

    monkeypatch.setattr(sweep, "start_worker", Fresh)
    return Fresh


def swept(data: Path, out: Path, trials: int, *, space: SearchSpace = SPACE, **options: Any) -> list[TrialResult]:
    return run_sweep(EXPERIMENT, space, data, out, trials=trials, track=False, **options)


# The space


@pytest.mark.parametrize("name", RUNS)
def test_every_run_has_a_space_that_it_can_be_varied_over(name):
    named = load_runs()
    check_space(named.space(name), named.experiment(name))


def test_spaces_belong_to_runs():
    assert set(SPACES) <= set(RUNS)


def test_a_space_in_yaml_is_the_one_in_python(tmp_path):
    document = {key: values.model_dump(mode="json") for key, values in SPACE.items()}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(document))
    assert read_space(tmp_path / "space.yaml") == {
        **SPACE,
        "model.hidden": Choice(values=([8], [4, 4])),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "expected YAML"),
        ("a: 3", r"a; found .*; write `key: \{type"),
        ("a: {type: float, low: 1}", "a; found Field required"),
        ("a: {type: float, low: 2, high: 1}", "a; found Value error, expected low < high"),
        ("a: {type: int, low: 0, high: 4, log: true}", "low above 0 with log"),
        ("a: {type: choice, values: []}", "at least 1 item"),
        ("a: {type: int, low: 0, high: 4, step: 2}", "Extra inputs"),
    ],
)
def test_a_space_that_cannot_be_read_is_one_line(tmp_path, text, message):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_space(tmp_path / "space.yaml")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "needs a setting to vary"),
        ({"embedding.l3": Float(low=0, high=1)}, "did you mean 'embedding.l2'"),
        ({"seed": Int(low=1, high=3)}, "cannot vary seed"),
        ({"trainer.learning_rate": Float(low=0, high=1)}, "trainer.learning_rate"),
        ({"model.hidden": Choice(values=([8], ["wide"]))}, "hidden"),
    ],
)
def test_a_space_that_the_run_does_not_have_is_refused_before_anything_is_written(dataset, tmp_path, space, message):
    with pytest.raises(InputError, match=message):
        swept(dataset, tmp_path / "sweep", 3, space=space)
    assert list(tmp_path.iterdir()) == []


# Which trials there are


def test_the_first_trial_is_the_named_run(dataset, tmp_path, made_up):
    first = swept(dataset, tmp_path / "sweep", 2)[0]
    assert first.settings == {"embedding.l2": 0.02, "embedding.probes": 4, "model.hidden": [8]}
    ours = {**EXPERIMENT.model_dump(mode="json"), "name": "small trial 0"}
    assert made_up.requests[0]["experiment"] == ours


def test_a_run_outside_its_space_is_no_trial(dataset, tmp_path, made_up):
    space = {**SPACE, "embedding.l2": Float(low=0.05, high=0.1)}
    assert all(one.settings["embedding.l2"] >= 0.05 for one in swept(dataset, tmp_path / "sweep", 3, space=space))


def test_what_is_shown_is_what_was_trained(dataset, tmp_path, made_up):
    results = swept(dataset, tmp_path / "sweep", 6)
    for result, request in zip(results, made_up.requests, strict=True):
        embedding, model = request["experiment"]["embedding"], request["experiment"]["model"]
        trained = {"embedding.l2": embedding["l2"], "embedding.probes": embedding["probes"]}
        assert result.settings == {**trained, "model.hidden": model["hidden"]}
    with (tmp_path / "sweep" / "report" / "trials.csv").open(newline="") as file:
        lines = {int(line["trial"]): line for line in csv.DictReader(file)}
    assert float(lines[3]["embedding.l2"]) == results[3].settings["embedding.l2"]
    best = best_of(results, EXPERIMENT)
    assert best is not None
    written = read_experiment(tmp_path / "sweep" / "report" / "best.yaml")
    assert written.embedding.l2 == best.settings["embedding.l2"]
    assert written.name == f"{EXPERIMENT.name} trial {best.number}"  # so that other seeds of it are known by it
    assert best.score == max(one.score or 0 for one in results)


def test_the_search_finds_what_is_good(dataset, tmp_path, made_up):
    """Forty trials of TPE beat forty draws by lot: here nearly always the best corner of the space."""
    best = best_of(swept(dataset, tmp_path / "sweep", 40), EXPERIMENT)
    assert best is not None
    assert best.settings["embedding.probes"] == 8
    assert best.settings["embedding.l2"] < 0.005


@pytest.mark.parametrize("workers", [1, 3])
def test_more_trials_continue_the_same_sweep(dataset, tmp_path, made_up, workers):
    first = swept(dataset, tmp_path / "sweep", 3, workers=workers)
    assert [one.number for one in first] == [0, 1, 2]
    assert swept(dataset, tmp_path / "sweep", 3, workers=workers) == first
    more = swept(dataset, tmp_path / "sweep", 7, workers=workers)
    assert [one.number for one in more] == list(range(7))
    assert more[:3] == first
    assert sorted(int(request["tags"]["sweep.trial"]) for request in made_up.requests) == list(range(7))


def test_an_interrupted_sweep_has_the_trials_of_a_whole_one(dataset, tmp_path, made_up):
    whole = swept(dataset, tmp_path / "whole", 9)
    made_up.interrupted_in += [0, 4, 5, 8]
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            swept(dataset, tmp_path / "cut", 9)
        study = optuna.load_study(study_name="sweep", storage=sweep._storage(tmp_path / "cut"))
        assert study.trials[-1].state == optuna.trial.TrialState.RUNNING
    cut = swept(dataset, tmp_path / "cut", 9)
    assert [one._replace(run=Path()) for one in cut] == [one._replace(run=Path()) for one in whole]


# How trials end


def test_a_trial_below_the_median_ends_early(dataset, tmp_path, made_up):
    levels = [0.5, 0.6, 0.7, 0.8, 0.9, 0.69, 0.71]
    made_up.score = staticmethod(lambda number, experiment, epoch: levels[number])
    results = swept(dataset, tmp_path / "sweep", 7)
    assert [one.state for one in results] == [*["complete"] * 5, "pruned", "complete"]
    assert statistics.median(levels[:5]) == 0.7
    assert [one.epochs for one in results] == [4, 4, 4, 4, 4, WARMUP_EPOCHS, 4]
    assert results[5].score == 0.69
    best = best_of(results, EXPERIMENT)
    assert best is not None
    assert best.number == 4
    assert [one.number for one in in_order(results, EXPERIMENT)] == [4, 3, 6, 2, 1, 0, 5]


def test_a_process_that_dies_is_given_a_second_chance_and_no_third(dataset, tmp_path, made_up):
    made_up.dies_in += [1, 2, 2]
    results = swept(dataset, tmp_path / "sweep", 4)
    assert [one.state for one in results] == ["complete", "complete", "failed", "complete"]
    assert results[2].error is not None
    assert "signal 9" in results[2].error
    tried = [int(request["tags"]["sweep.trial"]) for request in made_up.requests]
    assert tried == [0, 1, 1, 2, 2, 3]


def test_failed_trials_stay_visible_and_are_not_the_best(dataset, tmp_path, made_up):
    made_up.fails_in += [0, 1]
    results = swept(dataset, tmp_path / "sweep", 3)
    assert [one.state for one in results] == ["failed", "failed", "complete"]
    assert results[0].error == "loss and gradients must stay finite"
    best = best_of(results, EXPERIMENT)
    assert best is not None
    assert best.number == 2
    assert "must stay finite" in (tmp_path / "sweep" / "report" / "trials.csv").read_text()


def test_less_is_better_where_the_run_says_so(tmp_path):
    experiment = EXPERIMENT.model_copy(update={"trainer": EXPERIMENT.trainer.model_copy(update={"monitor": "logloss"})})
    results = [
        TrialResult(number, "complete", score, 1, {}, tmp_path, {}, None)
        for number, score in enumerate([0.4, 0.3, 0.5])
    ]
    assert [one.number for one in in_order(results, experiment)] == [1, 0, 2]


def test_importance_says_which_setting_mattered(dataset, tmp_path, made_up):
    made_up.score = staticmethod(lambda number, experiment, epoch: 0.5 + 0.05 * experiment["embedding"]["probes"])
    swept(dataset, tmp_path / "sweep", 25)
    shares = importances(optuna.load_study(study_name="sweep", storage=sweep._storage(tmp_path / "sweep")))
    assert next(iter(shares)) == "embedding.probes"
    assert sum(shares.values()) == pytest.approx(1.0)
    assert (tmp_path / "sweep" / "report" / "importance.png").stat().st_size > 5000


def test_a_directory_of_another_sweep_is_refused(dataset, tmp_path, made_up):
    swept(dataset, tmp_path / "sweep", 1)
    with pytest.raises(InputError, match="holds another sweep; found space"):
        swept(dataset, tmp_path / "sweep", 1, space=default_space(EXPERIMENT))
    with pytest.raises(InputError, match=r"found seed: \d+, not 5"):
        swept(dataset, tmp_path / "sweep", 1, seed=5)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="expected an empty or new directory"):
        swept(dataset, tmp_path / "other", 1)


def test_two_sweeps_do_not_share_a_directory(dataset, tmp_path, made_up, monkeypatch):
    monkeypatch.setattr(sweep, "LOCK_TIMEOUT_SECONDS", 0.0)
    swept(dataset, tmp_path / "sweep", 1)
    with (
        sweep.locked_directory(tmp_path / "sweep"),
        pytest.raises(InputError, match="expected no other process at work; found one"),
    ):
        swept(dataset, tmp_path / "sweep", 2)


def test_workers_that_end_while_they_are_stopped_are_no_mistake():
    """Their threads take them out of the set that is gone through."""
    ends = object.__new__(sweep.Sweep)
    ends._mutex, ends._is_stopping = threading.RLock(), False
    stopped: list[int] = []

    class Ending(MadeUp):
        def __init__(self) -> None: ...

        def stop(self) -> None:
            stopped.append(1)
            ends._running.discard(self)  # pyright: ignore[reportArgumentType]

    ends._running = {Ending(), Ending(), Ending()}  # pyright: ignore[reportAttributeAccessIssue]
    ends._work = lambda *_: None
    ends._train(1, None, lambda *_, **__: None)
    assert len(stopped) == 3


# Real commands

SMALL = ("trainer.epochs=3", "trainer.batch_size=512", "embedding.num_rows=500", "model.hidden=[8]")


def command(data: Path, out: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "experiments", "sweep", "mlp", *SMALL]
    return [*words, "--data", str(data), "--out", str(out), "--trials", "2", "--json", *more]


def environment(store: Path) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"sqlite:///{store / 'store.db'}"}
    return {**os.environ, **own}


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_where_it_was(dataset, tmp_path):
    """SIGKILL while its second trial trains: the training process ends too, and the next call trains to the end.

    The trials, their figures and MLflow's runs are then those of an uninterrupted sweep; no run is left over.
    """
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment(tmp_path), "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command(dataset, tmp_path / "killed"), stdout=subprocess.DEVNULL, **options)
    second = tmp_path / "killed" / "trials" / "0001" / "checkpoint" / "state.safetensors"
    while process.poll() is None and not second.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command(dataset, tmp_path / "killed"), stdout=subprocess.PIPE, **options, check=True)
    untracked = command(dataset, tmp_path / "whole", "--no-track")
    subprocess.run(untracked, stdout=subprocess.DEVNULL, **options, check=True)
    tables = [(tmp_path / name / "report" / "trials.csv").read_text() for name in ("killed", "whole")]
    assert tables[0] == tables[1]
    assert len(json.loads(done.stdout)["trials"]) == 2

    client = MlflowClient(f"sqlite:///{tmp_path / 'store.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name != "Default"]
    runs = list(client.search_runs([experiment.experiment_id]))
    (parent,) = [run for run in runs if run.data.tags["stage"] == "sweep"]
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert sorted(run.data.tags["sweep.trial"] for run in children) == ["0", "1"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.metrics["sweep/complete"] == 2
    best = max(children, key=lambda run: run.data.metrics["val/auc"])
    assert parent.data.metrics["best/val_auc"] == best.data.metrics["val/auc"]
    assert parent.data.tags["best.trial"] == best.data.tags["sweep.trial"]
    assert parent.data.tags["best.embedding.l2"] == best.data.params["embedding.l2"]
    assert {"report/trials.csv", "report/best.yaml", "report/progress.png"} <= {
        file.path for file in client.list_artifacts(parent.info.run_id, "report")
    }
