"""TrackedRun: the runs of an MLflow experiment as they are in the store, for comparisons."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from features.errors import InputError
from recsys.tracking.store import (
    connect_existing,
    experiment_of_environment,
    refuse_deleted_experiment,
    shown_uri,
    store_errors,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow.entities import RunData, RunInfo


class TrackedRun(NamedTuple):
    """A run in the store."""

    run_id: str
    experiment_id: str
    name: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    started: int
    """Milliseconds since 1970."""
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    """Last value of each metric."""
    tags: Mapping[str, str]


def tracked_runs(experiment: str | None = None) -> tuple[str, str, list[TrackedRun]]:
    """Name, id and runs of an experiment; None: the one of `MLFLOW_EXPERIMENT_NAME`, or the store's only one.

    Raises `InputError` for a store that does not answer, an unknown experiment, and several to choose from.
    """
    uri = tracking_uri()
    client = connect_existing(uri)
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
    import mlflow

    runs = mlflow.search_runs([known[wanted]], output_format="list")
    return wanted, known[wanted], [_tracked_run(run.info, run.data) for run in runs]


def _tracked_run(info: "RunInfo", data: "RunData") -> TrackedRun:
    return TrackedRun(
        *(info.run_id, info.experiment_id, info.run_name or info.run_id, info.status, info.start_time),
        *(data.params, data.metrics, data.tags),
    )
