"""MLflow: one run a training run, batched, resumable. Only this file, `tracking_store` and `model_registry` import it.

To import mlflow takes a second, so that stands inside what needs it: who does not track does not pay.
"""

import getpass
import math
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from features.dataset.info import DatasetInfo
from features.errors import InputError
from recsys.config import flatten
from recsys.tracking.store import (
    CHECK_STORE,
    connect,
    experiment_of_environment,
    is_there,
    page_of,
    refuse_deleted_experiment,
    refuse_other_run,
    run_of,
    shown_uri,
    store_errors,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric, Run
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

MAX_PARAM_LENGTH = 500
MAX_METRICS = 1000
"""Of one request, as MLflow's limits are."""
KEY_TAG = "muxrec.run"
FLUSH_SECONDS = 10.0
"""Epochs that end faster than this are logged together: a request waits for the store's disk."""


class Tracker:
    """One MLflow run. Metrics are named `train/ val/ test/ perf/ parity/`; params are flattened with dots.

    `start` makes a run, `of` finds the one that a directory names, and `resume` takes that up where it was cut off.
    They and all that log raise `InputError` when the store cannot be used: a run that nobody can find is not worth
    training.
    """

    def __init__(self, client: "MlflowClient", uri: str, run_id: str, experiment_id: str) -> None:
        self.client = client
        self.uri = uri
        """Of the store; not to be shown as it is (`shown_uri`)."""
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.seconds = 0.0
        """What tracking has cost so far."""
        self._points: set[tuple[str, int, float]] = set()
        """Metric, step and value of what the run is known to hold, or is about to."""
        self._waiting: list[Metric] = []
        self._flushed = time.perf_counter()

    @staticmethod
    def start(*, experiment: str, name: str, tags: Mapping[str, str], key: str) -> "Tracker":
        """A new run, or the one of this `key` that a killed process made and could not write down any more.

        `MLFLOW_EXPERIMENT_NAME` and `MLFLOW_EXPERIMENT_ID` win over `experiment`; `MLFLOW_RUN_ID` is refused.
        """
        began = time.perf_counter()
        refuse_other_run("muxrec makes an MLflow run of its own")
        uri = tracking_uri()
        remedy = "check MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, or pass --no-track"
        client = connect(uri, remedy)
        with store_errors(f"cannot start an MLflow run in {shown_uri(uri)}", remedy):
            known = experiment_of_environment(client, experiment)
            name_of_it = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
            experiment_id = known.experiment_id if known else client.create_experiment(name_of_it)
            made = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
            tags = {**_source(tags), **tags, KEY_TAG: key}
            run = made[0] if made else client.create_run(experiment_id, run_name=name, tags=tags)
        tracker = Tracker(client, uri, run.info.run_id, experiment_id)
        tracker.seconds = time.perf_counter() - began
        return tracker

    @staticmethod
    def of(run_info: Mapping[str, Any], written: Path) -> "Tracker":
        """The run that a run.json or sweep.json (`written`) names; raises `InputError` as `run_of` does."""
        client, uri, run = run_of(run_info, written)
        return Tracker(client, uri, run.info.run_id, run.info.experiment_id)

    @property
    def page(self) -> str:
        """Address of the experiment in MLflow's UI."""
        return page_of(self.experiment_id, self.uri)

    def run_info(self) -> dict[str, Any]:
        """What a directory keeps of its run, for `of` and `place_of`."""
        # A store of the user's is not written down: its address may hold a password.
        uri = None if os.environ.get("MLFLOW_TRACKING_URI") else self.uri
        return {"mlflow_run_id": self.run_id, "mlflow_tracking_uri": uri, "mlflow_experiment_id": self.experiment_id}

    def resume(self) -> "Tracker":
        """Go on with the run: it is running again, and what it holds is not logged again."""
        with self._timed():
            self.client.update_run(self.run_id, status="RUNNING")
            names = self.client.get_run(self.run_id).data.metrics
            histories = [self.client.get_metric_history(self.run_id, name) for name in names]
        self._points = {(point.key, point.step, point.value) for points in histories for point in points}
        return self

    def log_settings(self, params: Mapping[str, Any], info: DatasetInfo | None, directory: Path) -> None:
        """Params (nested mappings become dots), and each split as a dataset input with its digest; None: no splits."""
        from mlflow.entities import Param

        with self._timed():
            flat = flatten(params)
            self.client.log_batch(self.run_id, params=[Param(key, _text(value)) for key, value in flat.items()])
            if info is not None:
                self.client.log_inputs(self.run_id, [_dataset_input(info, split, directory) for split in info.splits])

    def log_epoch(self, record: Mapping[str, Any]) -> None:
        """One epoch of the trainer's history, at its global step; short epochs wait for each other in one request.

        What waits is lost with the process, so a run that is resumed logs the history again that it has on the disk.
        """
        names = {"train_loss": "train/loss", "learning_rate": "train/learning_rate", "epoch": "train/epoch"}
        # Validation first, whose first is AUC: MLflow's page that compares runs begins with what was logged first.
        values = {f"val/{key.removeprefix('valid_')}": v for key, v in record.items() if key.startswith("valid_")}
        values |= {names[key]: record[key] for key in names}
        values |= {key: value for key, value in record.items() if key.startswith("system/")}
        with self._timed():
            self._add(values, step=int(record["global_step"]))
            if time.perf_counter() - self._flushed > FLUSH_SECONDS:
                self._flush()

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Metrics at one step, in one request with what waits; values that are not finite are left out.

        So are those that the run holds: a process may be killed between logging an epoch and writing that down.
        """
        with self._timed():
            self._add(values, step)
            self._flush()

    def log_final(self, values: Mapping[str, float]) -> None:
        """Figures of the whole run: without a step (0, to MLflow), but where they have a curve, as its last point.

        MLflow shows the point of the highest step as the run's figure.
        """
        ends: dict[str, int] = {}
        for key, step, _ in self._points:
            ends[key] = max(step, ends.get(key, 0))
        with self._timed():
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
        """Tags of the run, in one request."""
        from mlflow.entities import RunTag

        with self._timed():
            self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_files(self, directory: Path, folder: str | None = None) -> None:
        """Every file below a directory as an artifact."""
        with self._timed():
            self.client.log_artifacts(self.run_id, str(directory), folder)

    def log_file(self, path: Path) -> None:
        """One file as an artifact at the top."""
        with self._timed():
            self.client.log_artifact(self.run_id, str(path))

    def log_bundle(
        self,
        bundle: Path,
        loader: Path,
        code: list[Path],
        requirements: list[str],
        raw: pl.DataFrame,
        *,
        name: str = "bundle",
    ) -> None:
        """The bundle as a LoggedModel: a pyfunc from code, with signature, example and the serving requirements.

        `loader` is the script that MLflow runs to load it; `raw` holds some made-up raw rows and `probability`.
        No weights are pickled: the artifact is the bundle itself. What the run had under this name goes, such as a
        half of a process that was killed; what a registered version points to stays.
        """
        import mlflow.pyfunc
        from mlflow.models import Model

        inputs = raw.drop("probability").to_pandas()
        with self._timed(), _requirements_unchecked():
            run = self.client.get_run(self.run_id)
            experiment = run.info.experiment_id
            of_this_run = f"source_run_id = '{self.run_id}' and name = '{name}'"
            old = {model.model_id for model in self.client.search_logged_models([experiment], of_this_run)}
            for model_id in old - (self._registered_models() if old else set()):
                self.client.delete_logged_model(model_id)
            # What `mlflow.pyfunc.log_model` does inside `mlflow.start_run`, which would begin an ended run again.
            made = self.client.create_logged_model(experiment, name, self.run_id, params=run.data.params)
            Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                run_id=self.run_id,
                model_id=made.model_id,
                python_model=str(loader),
                artifacts={"bundle": str(bundle)},
                code_paths=[str(path) for path in code],
                pip_requirements=requirements,
                signature=_signature(inputs.columns),
                input_example=inputs.head(3),
            )

    def _registered_models(self) -> set[str]:
        """Identifiers of the run's LoggedModels that are versions of a registered model."""
        versions = self.client.search_model_versions(f"run_id = '{self.run_id}'")
        return {one.model_id or (one.source or "").removeprefix("models:/") for one in versions}

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Add up what tracking costs, reported as `perf/tracking_seconds`; a store that fails is an `InputError`."""
        began = time.perf_counter()
        remedy = f"{CHECK_STORE}; then give the same command again, or pass --no-track"
        with store_errors(f"cannot log to the MLflow run {self.run_id} in {shown_uri(self.uri)}", remedy):
            yield
        self.seconds += time.perf_counter() - began

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        with self._timed():
            self._flush()
            self.client.set_terminated(self.run_id, status)


def _source(tags: Mapping[str, str]) -> dict[str, str]:
    """What MLflow's columns "Source" and "Created by" show."""
    source = {"mlflow.source.name": f"muxrec {tags.get('stage', '')}".strip(), "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError):  # in a container the user may have no name
        source["mlflow.user"] = getpass.getuser()
    return source


class TrackedRun(NamedTuple):
    """A run as the store has it."""

    run_id: str
    experiment_id: str
    name: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    started: int
    """Milliseconds since 1970."""
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """Last value of each."""
    tags: Mapping[str, str]


def tracked_runs(experiment: str | None = None) -> tuple[str, str, list[TrackedRun]]:
    """Name and id of an experiment, and its runs; None: `MLFLOW_EXPERIMENT_NAME`, or the only one that there is.

    Raises `InputError` for a store that does not answer, an unknown experiment, and several to choose from.
    """
    if not is_there(uri := tracking_uri()):
        remedy = "set MLFLOW_TRACKING_URI to the store that holds the runs"
        raise InputError("expected an MLflow store", found=f"none at {shown_uri(uri)}", remedy=remedy)
    client = connect(uri)
    with store_errors(f"cannot list experiments in {shown_uri(uri)}"):
        known = {one.name: one.experiment_id for one in client.search_experiments()}
        named = experiment_of_environment(client, "") if experiment is None else None
    wanted = experiment or (named.name if named else os.environ.get("MLFLOW_EXPERIMENT_NAME"))
    if wanted is None:
        # MLflow makes "Default" in every store.
        known = {name: number for name, number in known.items() if name != "Default"} or known
        wanted = next(iter(known)) if len(known) == 1 else ""
    if wanted not in known:
        refuse_deleted_experiment(client.get_experiment_by_name(wanted) if wanted else None)
        found = repr(wanted) if wanted else f"{len(known)} experiments"
        raise InputError("expected the name of an experiment", found=found, remedy=f"use one of {', '.join(known)}")
    runs: list[TrackedRun] = []
    token: str | None = None
    while True:
        page = client.search_runs([known[wanted]], max_results=1000, page_token=token)
        runs += [_tracked_run(run) for run in page]
        token = page.token
        if not token:
            return wanted, known[wanted], runs


def _tracked_run(run: "Run") -> TrackedRun:
    info, data = run.info, run.data
    return TrackedRun(
        run_id=info.run_id,
        experiment_id=info.experiment_id,
        name=info.run_name or info.run_id,
        status=info.status,
        started=info.start_time,
        params=data.params,
        metrics=data.metrics,
        tags=data.tags,
    )


def git_commit(directory: Path) -> str | None:
    """Commit that a checkout stands at; None outside one."""
    command = ["git", "-C", str(directory), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = ",".join(str(part) for part in value)
    return str(value)[:MAX_PARAM_LENGTH]


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


def _signature(columns: Iterable[str]) -> "ModelSignature":
    """Names of the columns alone: a category may be text, an integer or a boolean, a number of any width.

    A column may be absent: it then reads as missing. The scorer checks values itself.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    inputs = Schema([ColSpec(AnyType(), name, required=False) for name in columns])
    return ModelSignature(inputs, Schema([ColSpec(DataType.double, "probability")]))


@contextmanager
def _requirements_unchecked() -> Iterator[None]:
    """Log a model without MLflow's check that its requirements are installed here: they are read off what is.

    For it MLflow lists the files of every installed package, which takes most of the second that logging would take.
    """
    from mlflow.utils import requirements_utils

    name = "_check_requirement_satisfied"
    check = getattr(requirements_utils, name, None)
    if check is None:  # a version that has it elsewhere, or not at all
        yield
        return
    setattr(requirements_utils, name, lambda requirement_str: None)
    try:
        yield
    finally:
        setattr(requirements_utils, name, check)
