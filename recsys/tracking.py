"""MLflow, and the only file that imports it: one run a training run, batched, resumable.

Without `MLFLOW_TRACKING_URI` the store is `sqlite:///mlflow.db` in the working directory, which `mlflow ui` opens.
"""

import logging
import math
import os
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import polars as pl
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

from features.dataset_info import DatasetInfo
from features.errors import InputError
from features.files import temporary_directory_beside

DEFAULT_FILE = "mlflow.db"
MAX_PARAM_LENGTH = 500
KEY_TAG = "muxrec.run"


def tracking_uri() -> str:
    """Where runs are kept: `MLFLOW_TRACKING_URI`, or a SQLite file in the working directory (its absolute URI)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(DEFAULT_FILE).absolute()}"


class Tracker:
    """One MLflow run. Metrics are named `train/ val/ test/ perf/ parity/`; params are flattened with dots.

    `start` makes a run, `resume` takes up one that was cut off, `attach` adds to one that has ended. The first two
    raise when the store cannot be used: a run that nobody can find is not worth training.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self.seconds = 0.0
        """What tracking has cost so far."""
        self._points: set[tuple[str, int, float]] = set()
        """Metric, step and value of what the run is known to hold."""

    @staticmethod
    def start(*, experiment: str, name: str, tags: Mapping[str, str], key: str) -> "Tracker":
        """A new run, or the one of this `key` that a killed process made and could not write down any more.

        `MLFLOW_EXPERIMENT_NAME` wins over `experiment`.
        """
        began = time.perf_counter()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
        try:
            client = _client(tracking_uri())
            known = client.get_experiment_by_name(experiment)
            experiment_id = known.experiment_id if known else client.create_experiment(experiment)
            made = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
            run = made[0] if made else client.create_run(experiment_id, run_name=name, tags={**tags, KEY_TAG: key})
            tracker = Tracker(client, run.info.run_id)
        except MlflowException as error:
            # The store's address is not shown: it may hold a password.
            found = " ".join(str(error.message).split())[:200]
            remedy = "check MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, or pass --no-track"
            expected = f"cannot start an MLflow run in experiment {experiment!r}"
            raise InputError(expected, found=found, remedy=remedy) from None
        tracker.seconds = time.perf_counter() - began
        return tracker

    @staticmethod
    def attach(uri: str, run_id: str) -> "Tracker":
        """A run that has ended, to add figures to; its status and its end stay as they are."""
        return Tracker(_client(uri), run_id)

    @staticmethod
    def resume(uri: str, run_id: str) -> "Tracker":
        """A run that `start` made in the store at `uri`; raises `InputError` where there is no such run any more."""
        client = _client(uri)
        try:
            client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            # The address is not shown: it may hold a password.
            found, remedy = "no such run in its store", "bring the store back, or train into another directory"
            raise InputError(f"expected the MLflow run {run_id}", found=found, remedy=remedy) from None
        tracker = Tracker(client, run_id)
        histories = [client.get_metric_history(run_id, name) for name in client.get_run(run_id).data.metrics]
        tracker._points = {(point.key, point.step, point.value) for points in histories for point in points}
        return tracker

    def log_settings(self, params: Mapping[str, Any], info: DatasetInfo, directory: Path) -> None:
        """Params (nested mappings become dots), and each split as a dataset input with its digest."""
        with self._timed():
            flat = flatten(params)
            self.client.log_batch(self.run_id, params=[Param(key, _text(value)) for key, value in flat.items()])
            self.client.log_inputs(self.run_id, [_dataset_input(info, split, directory) for split in info.splits])

    def log_epoch(self, record: Mapping[str, Any]) -> None:
        """One epoch of the trainer's history, at its global step, in one request."""
        names = {"train_loss": "train/loss", "learning_rate": "train/learning_rate", "epoch": "train/epoch"}
        values = {names[key]: record[key] for key in names}
        values |= {f"val/{key.removeprefix('valid_')}": v for key, v in record.items() if key.startswith("valid_")}
        self.log_metrics(values, step=int(record["global_step"]))

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Metrics at one step, in one request; values that are not finite are left out.

        So are those that the run holds: a process may be killed between logging an epoch and writing that down.
        """
        with self._timed():
            now = int(time.time() * 1000)
            points = {(key, step, float(v)) for key, v in values.items() if math.isfinite(v)} - self._points
            self.client.log_batch(self.run_id, metrics=[Metric(key, v, now, step) for key, step, v in sorted(points)])
            self._points |= points

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the run, in one request."""
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
        self, bundle: Path, loader: Path, code: list[Path], requirements: list[str], raw: pl.DataFrame
    ) -> None:
        """The bundle as a LoggedModel: a pyfunc from code, with signature, example and the serving requirements.

        `loader` is the script that MLflow runs to load it; `raw` holds some made-up raw rows and `probability`.
        No weights are pickled: the artifact is the bundle itself. What a process that was killed had logged goes.
        """
        inputs = raw.drop("probability").to_pandas()
        # A category may be text, an integer or a boolean, a number of any width, a column absent: it then reads as
        # missing. The scorer checks values itself, so the signature names the columns and leaves their types open.
        signature = ModelSignature(
            Schema([ColSpec(AnyType(), name, required=False) for name in inputs.columns]),
            Schema([ColSpec(DataType.double, "probability")]),
        )
        with self._timed(), mlflow.start_run(run_id=self.run_id) as run:
            of_this_run = f"source_run_id = '{self.run_id}'"
            for model in self.client.search_logged_models([run.info.experiment_id], of_this_run):
                self.client.delete_logged_model(model.model_id)
            mlflow.pyfunc.log_model(
                name="bundle",
                python_model=str(loader),
                artifacts={"bundle": str(bundle)},
                code_paths=[str(path) for path in code],
                pip_requirements=requirements,
                signature=signature,
                input_example=inputs.head(3),
            )

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Add up what tracking costs; it is reported as `perf/tracking_seconds`."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def finish(self, status: str = "FINISHED") -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots.

    >>> flatten({"a": {"b": 1}, "c": [1, 2]})
    {'a.b': 1, 'c': [1, 2]}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


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


def _dataset_input(info: DatasetInfo, split: str, directory: Path) -> DatasetInput:
    rows = info.splits[split].rows
    dataset = Dataset(
        name=info.name,
        digest=info.digest_of(split),
        source_type="local",
        source=f'{{"uri": "{(directory / split).absolute().as_uri()}"}}',
        profile=f'{{"num_rows": {rows}, "label_rate": {info.splits[split].label_rate:.6f}}}',
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", split)])


def _make_store(uri: str) -> None:
    """Make a SQLite store whole or not at all: MLflow cannot use one that it was killed over."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.exists() or not path.parent.is_dir():
        return
    with temporary_directory_beside(path.absolute()) as temporary:
        MlflowClient(f"sqlite:///{temporary / path.name}")
        if not path.exists():  # else another process was faster
            (temporary / path.name).rename(path)


def _client(uri: str) -> MlflowClient:
    """Keep the store's migrations and MLflow's hints out of the user's terminal; errors still show."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="mlflow.*")
    _make_store(uri)
    mlflow.set_tracking_uri(uri)
    return MlflowClient()
