"""Tracker: one MLflow run, with batched requests, resumable.

mlflow takes a second to import, so it is imported inside functions: an untracked run does not pay for it.
"""

import getpass
import json
import math
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.dataset.info import DatasetInfo
from features.errors import InputError
from recsys.config import flatten
from recsys.tracking.store import (
    CHECK_STORE,
    connect,
    experiment_of_environment,
    is_there,
    page_of,
    refuse_other_run,
    shown_uri,
    store_errors,
    tracking_uri,
    unless_absent,
)

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric
    from mlflow.tracking import MlflowClient

MAX_PARAM_LENGTH = 500
MAX_METRICS = 1000
"""Per request; MLflow's limit."""
KEY_TAG = "muxrec.run"
FLUSH_SECONDS = 10.0
"""Shorter epochs are logged together, as a request waits for the store's disk."""


class Tracker:
    """One MLflow run. Metrics are named `train/ val/ test/ perf/ parity/`; nested params are joined by dots.

    `start` makes a run, `of` finds the one that a directory names, `resume` continues it and `ending` ends it. They and
    the methods that log raise `InputError` when the store cannot be used.
    """

    def __init__(self, client: "MlflowClient", uri: str, run_id: str, experiment_id: str) -> None:
        self.client = client
        self.uri = uri
        """Address of the store; it may hold a password, so show it by `shown_uri`."""
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.seconds = 0.0
        """Spent on tracking so far."""
        self._points: set[tuple[str, int, float]] = set()
        """Metric, step and value of the points that the run holds or that wait to be sent."""
        self._waiting: list[Metric] = []
        self._flushed = time.perf_counter()

    @staticmethod
    def start(*, experiment: str, name: str, tags: Mapping[str, str], key: str) -> "Tracker":
        """A new run, or the one with this `key` that a killed process made but did not record.

        `MLFLOW_EXPERIMENT_NAME` and `MLFLOW_EXPERIMENT_ID` override `experiment`; `MLFLOW_RUN_ID` is refused.
        """
        began = time.perf_counter()
        refuse_other_run("muxrec makes its own MLflow run")
        uri = tracking_uri()
        remedy = "check MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, or pass --no-track"
        client = connect(uri, remedy)
        with store_errors(f"cannot start an MLflow run in {shown_uri(uri)}", remedy):
            known = experiment_of_environment(client, experiment)
            name_of_it = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
            experiment_id = known.experiment_id if known else client.create_experiment(name_of_it)
            made = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
            # MLflow's columns "Source" and "Created by".
            source = {"mlflow.source.name": f"muxrec {tags.get('stage', '')}".strip(), "mlflow.source.type": "LOCAL"}
            with suppress(OSError, KeyError):  # a container's user may have no name
                source["mlflow.user"] = getpass.getuser()
            tags = {**source, **tags, KEY_TAG: key}
            run = made[0] if made else client.create_run(experiment_id, run_name=name, tags=tags)
        tracker = Tracker(client, uri, run.info.run_id, experiment_id)
        tracker.seconds = time.perf_counter() - began
        return tracker

    @staticmethod
    def of(record: Path) -> "Tracker | None":
        """The MLflow run that a run.json or sweep.json names; None for an untracked one.

        The store is the environment's, else the recorded one. Raises `InputError`, naming both stores, where the run is
        missing, and where it or its experiment was deleted.
        """
        document: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        run_id, recorded = document.get("mlflow_run_id"), document.get("mlflow_tracking_uri")
        if run_id is None:
            return None
        refuse_other_run(f"{record} names its own MLflow run", run_id)
        uri = tracking_uri(recorded)
        expected = f"expected the MLflow run {run_id} in {shown_uri(uri)}"
        anew = f"set mlflow_run_id in {record} to null to log it again (a finished run by `muxrec promote`)"
        if recorded and recorded != uri:
            remedy = f"unset MLFLOW_TRACKING_URI to use {shown_uri(recorded)}, where it was logged, or {anew}"
        else:
            remedy = f"set MLFLOW_TRACKING_URI to the store that holds it, or {anew}"
        if not is_there(uri):
            raise InputError(expected, found="no such store", remedy=remedy)
        client = connect(uri)
        with store_errors(f"cannot ask {shown_uri(uri)} for the MLflow run {run_id}"):
            run = unless_absent(lambda: client.get_run(run_id))
            if run is None:
                raise InputError(expected, found="no such run", remedy=remedy)
            if run.info.lifecycle_stage == "deleted":  # in MLflow's UI, say, alone or with its experiment
                experiment, expected = client.get_experiment(run.info.experiment_id), f"{expected}; found it deleted"
                restore = f"mlflow runs restore --run-id {run_id}"
                if experiment.lifecycle_stage == "deleted":
                    restore = f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
                    expected += f" with its experiment {experiment.name!r}"
                raise InputError(expected, remedy=f"bring it back ({restore}), or {anew}")
        return Tracker(client, uri, run_id, run.info.experiment_id)

    @property
    def page(self) -> str:
        """Address of the experiment in MLflow's UI."""
        return page_of(self.experiment_id, self.uri)

    def run_info(self) -> dict[str, Any]:
        """The entries of run.json or sweep.json that `of` and `place_of` read."""
        # An address from the environment is not written to a file, as it may hold a password.
        uri = None if os.environ.get("MLFLOW_TRACKING_URI") else self.uri
        return {"mlflow_run_id": self.run_id, "mlflow_tracking_uri": uri, "mlflow_experiment_id": self.experiment_id}

    def resume(self) -> "Tracker":
        """Set the run to RUNNING again; points that it already holds are not logged again."""
        with self.timed():
            self.client.update_run(self.run_id, status="RUNNING")
            names = self.client.get_run(self.run_id).data.metrics
            histories = [self.client.get_metric_history(self.run_id, name) for name in names]
        self._points = {(point.key, point.step, point.value) for points in histories for point in points}
        return self

    def log_settings(self, params: Mapping[str, Any], info: DatasetInfo | None, directory: Path) -> None:
        """Log params (keys of nested mappings are joined by dots), and each split of `info` as a dataset input."""
        from mlflow.entities import Param

        with self.timed():
            texts = {
                key: ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
                for key, value in flatten(params).items()
            }
            self.client.log_batch(self.run_id, params=[Param(key, t[:MAX_PARAM_LENGTH]) for key, t in texts.items()])
            if info is not None:
                self.client.log_inputs(self.run_id, [_dataset_input(info, split, directory) for split in info.splits])

    def log_epoch(self, record: Mapping[str, Any]) -> None:
        """Log one epoch of the trainer's history at its global step; short epochs share a request.

        Waiting points are lost if the process is killed, so a resumed run logs its history from the disk again.
        """
        names = {"train_loss": "train/loss", "learning_rate": "train/learning_rate", "epoch": "train/epoch"}
        # Validation AUC first: MLflow's page that compares runs shows metrics in the order of logging.
        values = {f"val/{key.removeprefix('valid_')}": v for key, v in record.items() if key.startswith("valid_")}
        values |= {names[key]: record[key] for key in names}
        values |= {key: value for key, value in record.items() if key.startswith("system/")}
        with self.timed():
            self._add(values, step=int(record["global_step"]))
            if time.perf_counter() - self._flushed > FLUSH_SECONDS:
                self._flush()

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at one step, together with waiting points; values that are not finite are left out.

        Points that the run holds are left out too: a process may be killed after logging an epoch, before recording it.
        """
        with self.timed():
            self._add(values, step)
            self._flush()

    def log_final(self, values: Mapping[str, float]) -> None:
        """Log figures of the whole run at step 0, or at the last step of a metric that has a curve.

        MLflow shows the point of the highest step as the run's figure.
        """
        ends: dict[str, int] = {}
        for key, step, _ in self._points:
            ends[key] = max(step, ends.get(key, 0))
        with self.timed():
            for step in {ends.get(key, 0) for key in values}:
                self._add({key: value for key, value in values.items() if ends.get(key, 0) == step}, step)
            self._flush()

    def _add(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [(key, step, float(value)) for key, value in values.items() if math.isfinite(value)]
        points = [point for point in points if point not in self._points]
        self._waiting += [Metric(key, value, now, step) for key, step, value in points]
        self._points.update(points)

    def _flush(self) -> None:
        waiting, self._waiting, self._flushed = self._waiting, [], time.perf_counter()
        for start in range(0, len(waiting), MAX_METRICS):
            self.client.log_batch(self.run_id, metrics=waiting[start : start + MAX_METRICS])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, in one request."""
        from mlflow.entities import RunTag

        with self.timed():
            self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_file(self, path: Path) -> None:
        """Log a file or a directory as an artifact of this name."""
        with self.timed():
            self.client.log_artifact(self.run_id, str(path))

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the block's time to `seconds`; turn an error of the store into an `InputError`."""
        began = time.perf_counter()
        remedy = f"{CHECK_STORE}; then give the same command again, or pass --no-track"
        with store_errors(f"cannot log to the MLflow run {self.run_id} in {shown_uri(self.uri)}", remedy):
            yield
        self.seconds += time.perf_counter() - began

    def finish(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        with self.timed():
            self._flush()
            self.client.set_terminated(self.run_id, status)

    @contextmanager
    def ending(self, *stops: type[BaseException]) -> Iterator[None]:
        """End the run with the block: FINISHED; KILLED after an interrupt or one of `stops`; FAILED after others."""
        try:
            yield
        except BaseException as error:
            with suppress(InputError):  # the store itself may have failed
                self.finish("KILLED" if isinstance(error, (KeyboardInterrupt, *stops)) else "FAILED")
            raise
        self.finish()


def git_commit(directory: Path) -> str | None:
    """Commit that is checked out; None outside a checkout."""
    command = ["git", "-C", str(directory), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _dataset_input(info: DatasetInfo, split: str, directory: Path) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    rows = info.splits[split].rows
    dataset = Dataset(
        name=info.name,
        digest=info.digest_of(split),
        source_type="local",
        source=f'{{"uri": "{(directory / split).absolute().as_uri()}"}}',
        profile=f'{{"num_rows": {rows}, "label_rate": {info.splits[split].label_rate:.6f}}}',
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", split)])
