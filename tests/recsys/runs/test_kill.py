"""A run that is killed (SIGKILL) anywhere and started again by the same command ends bit for bit as if it never was.

    KILLS=20 pytest tests/recsys/runs/test_kill.py

kills real commands that many times at random moments; three times is the default. The aimed kills, one a place where
bytes are moved, are always the same.
"""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mlflow.tracking import MlflowClient
from torch import uint8

from features.files import sha256_of
from recsys.checkpoint import load_state
from serving.bundle.manifest import read_manifest
from tests.planted import planted_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("KILLS", "3"))
KILLED, DONE = -9, 0
TIMINGS = ("seconds", "eval_seconds")
SETTINGS = {
    "embedding.num_rows": 20_000,
    "embedding.width": 4,
    "embedding.probes": 2,
    "model.hidden": [8, 4],
    "model.dropout": 0.2,
    "trainer.epochs": 10,
    "trainer.patience": 10,
    "trainer.batch_size": 64,
    "trainer.checkpoint_steps": 3,
}

# A process that imports everything once and forks itself for each command: imports take longer than all the rest. In
# the child one function is replaced. On the n-th call whose arguments hold a text it kills the process, before or after
# its work, or with half of the file on the disk that it was to write.
SERVER = """
import itertools, json, os, pkgutil, signal, sys, traceback
import experiments.__main__, experiments.runs, recsys.runs.train

def arm(target, moment, text, number):
    owner_name, _, name = target.rpartition(".")
    owner = pkgutil.resolve_name(owner_name)
    original, calls = getattr(owner, name), itertools.count(1)

    def armed(*args, **kwargs):
        dies = text in f"{args} {kwargs}" and next(calls) == number
        if dies and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if dies and moment == "halfway":
            os.truncate(args[1], os.stat(args[1]).st_size // 2)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, armed)

for line in sys.stdin:
    arguments, environment, log, place = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ |= environment
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        signal.alarm(300)
        if place:
            arm(*place)
        sys.argv = ["muxrec", *arguments]
        code = 1
        try:
            experiments.__main__.main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        os._exit(code)  # threads of the libraries did not come along, and an orderly end would wait for them
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Place(NamedTuple):
    """A place where a process is killed."""

    target: str
    moment: str = "after"
    text: str = ""
    number: int = 1


# In the order of a run's life; a process goes on where the one before it was killed.
PLACES = [
    Place("pathlib.Path.rename", "before", "killed"),  # the run directory is whole, and not in its place
    Place("alembic.runtime.migration.HeadMaintainer.update_to_step", number=10),  # MLflow's store is half made
    Place("mlflow.tracking.MlflowClient.create_run"),  # before run.json has its id
    Place("recsys.checkpoint.save_file", "halfway", ".state.", 2),
    Place("pathlib.Path.replace", "before", "state.safetensors", 2),
    Place("pathlib.Path.replace", "after", "best.safetensors"),  # the best weights are ahead of the state
    Place("recsys.tracking.tracker.Tracker.log_epoch", "before"),  # the state is ahead of log.jsonl
    Place("recsys.tracking.tracker.Tracker.log_epoch", "after"),  # and MLflow, too
    Place("recsys.trainer.Trainer.step", number=5),
    Place("recsys.checkpoint.save_file", "halfway", ".best."),
    Place("pathlib.Path.rename", "before", "bundle"),
    Place("mlflow.tracking.MlflowClient.log_outputs"),  # the model is in MLflow, its files are not
    Place("pathlib.Path.replace", "after", "metrics.json"),  # nothing is left to do
]
SOME_PLACES = [
    Place("recsys.trainer.Trainer.step", number=5),
    Place("recsys.checkpoint.save_file", "halfway", ".state.", 2),
    Place("pathlib.Path.replace", "after", "best.safetensors"),
]


class Bench(NamedTuple):
    """A folder with a dataset and MLflow's store, where runs are trained."""

    folder: Path
    data: Path

    @property
    def store(self) -> str:
        """Address of the store."""
        return f"sqlite:///{self.folder / 'store.db'}"

    def command(self, name: str, *more: str) -> list[str]:
        """Arguments of `muxrec` that train a run in a directory of that name; `more` comes last."""
        settings = [f"{key}={value}" for key, value in SETTINGS.items()]
        return ["train", "mlp", "--data", str(self.data), "--out", str(self.folder / name), *settings, *more]

    def environment(self, name: str) -> dict[str, str]:
        """Each run has an MLflow experiment to itself, so that its runs can be counted; and no store is copied."""
        cache = str(self.folder / "cache")
        return {"MLFLOW_TRACKING_URI": self.store, "MLFLOW_EXPERIMENT_NAME": name, "MUXREC_CACHE": cache}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    return Bench(folder, planted_dataset(folder, 1000, num_features=3, num_distinct=20, num_numeric=1, num_lists=1))


@pytest.fixture(scope="module")
def attempt(bench: Bench) -> Iterator[Callable[..., int]]:
    """Train a run in a process that is killed at a place, or nowhere; its exit code."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=bench.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        stdin, stdout = server.stdin, server.stdout

        def call(name: str, place: Place | None = None, *more: str) -> int:
            log = str(bench.folder / f"{name}.log")
            request = (bench.command(name, *more), bench.environment(name), log, place)
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            return int(stdout.readline())

        yield call
        stdin.close()


def outcome(directory: Path) -> dict[str, Any]:
    """Everything that a run leaves behind, as text, numbers and checksums, without its timings."""
    found: dict[str, Any] = {}
    for name in ("state", "best"):
        tensors, numbers = load_state(directory / "checkpoint" / f"{name}.safetensors")
        found[name] = {key: value for key, value in numbers.items() if key not in TIMINGS}
        for key, tensor in tensors.items():
            content = tensor.flatten().view(uint8).numpy().tobytes()
            found[f"{name}.{key}"] = (tensor.dtype, tensor.shape, hashlib.sha256(content).hexdigest())
    metrics = json.loads((directory / "metrics.json").read_text())
    manifest = read_manifest(directory / "bundle")
    return found | {
        "log": (directory / "log.jsonl").read_text(),
        "metrics": {split: metrics[split] for split in ("valid", "test")},
        "model_id": manifest.model_id,
        "bundle": manifest.files,
        # The model card tells timings; that it is there, `files` says.
        "report": {path.name: sha256_of(path) for path in (directory / "report").iterdir() if path.suffix != ".md"},
        "trained_rows": sha256_of(directory / "checkpoint" / "trained_rows.npy"),
        "files": sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*")),
    }


def tracked(bench: Bench, name: str) -> dict[str, Any]:
    """The records of a run in MLflow: it must be one run, finished, with one model and no point twice."""
    client = MlflowClient(bench.store)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.inputs is not None
    (model,) = client.search_logged_models([experiment.experiment_id])
    assert (run.info.status, str(model.status)) == ("FINISHED", "READY")
    assert run.info.run_id == json.loads((bench.folder / name / "run.json").read_text())["mlflow_run_id"]
    histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    points = {
        key: [(point.step, point.value) for point in history]
        for key, history in histories.items()
        if not key.startswith(("perf/", "system/"))
    }
    assert all(len(set(history)) == len(history) for history in points.values())
    log = [json.loads(line) for line in (bench.folder / name / "log.jsonl").read_text().splitlines()]
    assert points["train/loss"] == [(record["global_step"], record["train_loss"]) for record in log]
    return {
        "points": points,
        # Resources that a killed process used but had not reported are not measured again.
        "metrics": {key for key in run.data.metrics if not key.startswith("system/")},
        "params": run.data.params,
        "inputs": sorted((one.dataset.digest, one.tags[0].value) for one in run.inputs.dataset_inputs),
        "artifacts": sorted(file.path for file in client.list_artifacts(run.info.run_id)),
        "model files": sorted(file.path for file in client.list_logged_model_artifacts(model.model_id)),
    }


def assert_same(bench: Bench, name: str, other: str) -> None:
    """Assert that two runs, and what MLflow holds of them, are the same."""
    assert outcome(bench.folder / name) == outcome(bench.folder / other)
    assert tracked(bench, name) == tracked(bench, other)


def real_command(bench: Bench, name: str, delay: float | None = None, *, is_aimed: bool = False) -> int:
    """Exit code of `muxrec train` in a separate process.

    It is killed after `delay` seconds, or when it begins to write its next checkpoint then.
    """
    command = [sys.executable, "-m", "experiments", *bench.command(name)]
    environment = {**os.environ, **bench.environment(name), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    checkpoints = bench.folder / name / "checkpoint"
    with (bench.folder / f"{name}.log").open("a") as log:
        process = subprocess.Popen(command, cwd=bench.folder, env=environment, stdout=log, stderr=log)
    if delay is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        while is_aimed and process.poll() is None and not any(checkpoints.glob(".*")):
            pass
        process.kill()
    return process.wait()


@pytest.fixture(scope="module")
def duration(bench: Bench) -> float:
    """Seconds that the run "whole" took, without interruptions."""
    began = time.perf_counter()
    assert real_command(bench, "whole") == DONE
    return time.perf_counter() - began


def test_killed_at_every_place(bench: Bench, attempt: Callable[..., int], request: pytest.FixtureRequest):
    for place in PLACES:
        assert attempt("killed", place) == KILLED, place
    assert attempt("killed") == DONE
    request.getfixturevalue("duration")  # asked for only now, so that the store was made by a process that was killed
    assert_same(bench, "killed", "whole")


def test_killed_with_the_fused_optimizer(bench: Bench, attempt: Callable[..., int]):
    settings = ("embedding.optimizer=rowwise_adagrad", "trainer.epochs=3", "--no-track")
    for place in SOME_PLACES:
        assert attempt("killed-fused", place, *settings) == KILLED, place
    assert attempt("killed-fused", None, *settings) == DONE
    assert attempt("whole-fused", None, *settings) == DONE
    assert outcome(bench.folder / "killed-fused") == outcome(bench.folder / "whole-fused")


def test_killed_at_random(bench: Bench, duration: float):
    """Real commands; a run takes kills until one comes too late for it, or there are no more.

    The machine may have been busy when `duration` was taken: a run that was never killed says how long one takes now.
    """
    dice = random.Random(KILLS)
    kills = number = 0
    while kills < KILLS:
        number += 1
        name, code, kills_before, began = f"killed-{number}", KILLED, kills, time.perf_counter()
        while code == KILLED:
            delay = dice.uniform(0.3, 1.0) * duration if kills < KILLS else None
            code = real_command(bench, name, delay, is_aimed=dice.random() < 0.5)
            kills += code == KILLED
        if kills == kills_before:
            duration = min(duration, time.perf_counter() - began)
        assert code == DONE
        assert_same(bench, name, "whole")
