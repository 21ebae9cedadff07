"""Logs a scoring job to MLflow, in a separate worker process.

So the process that scores never imports mlflow, and a store that cannot be reached costs no scores.
"""

import importlib.util
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.errors import InputError
from features.line_worker import LineServer, WorkerError, ask_once

EXPERIMENT = "scoring"
_NOT_IN_NAMES = re.compile(r"[^-.\w ]", flags=re.ASCII)


def require_mlflow() -> None:
    """Raise `InputError` where mlflow is not installed: before any work, not after it."""
    if importlib.util.find_spec("mlflow") is None:
        raise InputError(
            "a scoring run is logged by mlflow", found="no mlflow", remedy="pip install mlflow, or do not track"
        )


def log_scoring_run(report: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Log a `ScoringReport` (as a mapping), its settings and the manifest; the MLflow run's id.

    Raises `InputError` when the store cannot be used. `MLFLOW_EXPERIMENT_NAME` names the experiment, else "scoring".
    """
    try:
        return ask_once("recsys.tracking.scoring_run", {"report": report, "params": params})
    except WorkerError as error:
        failure = InputError("cannot log the scoring run", found=error.last_line or str(error))
    except InputError as error:
        failure = error
    remedy = "the scores are complete; check MLFLOW_TRACKING_URI, and start again, which only logs them"
    raise InputError(failure.expected, found=failure.found, remedy=remedy)


def metrics_of(report: Mapping[str, Any]) -> dict[str, float]:
    """MLflow's metrics of a report, under names that it accepts.

    >>> report = {"rows_in": 3, "score_quantiles": {"p50": 0.5}, "unseen_rates": {"a:b": 0.25}, "path": "out"}
    >>> metrics_of(report)
    {'score/rows_in': 3, 'score/quantile/p50': 0.5, 'unseen/a_b': 0.25}
    """
    metrics: dict[str, float] = {}
    for name, value in report.items():
        if isinstance(value, Mapping):
            folder = "score/quantile" if name == "score_quantiles" else name.removesuffix("_rates")
            metrics |= {f"{folder}/{_NOT_IN_NAMES.sub('_', key)}": number for key, number in value.items()}
        elif name in ("seconds", "rows_per_second"):
            metrics[f"perf/{name}"] = value
        elif isinstance(value, int | float):
            metrics[f"score/{name.removeprefix('score_')}"] = value
    return metrics


def log_run(request: dict[str, Any]) -> str:
    """Log a report and its params; the id of the MLflow run. Raises `InputError` when the store cannot be used."""
    from recsys.tracking.tracker import Tracker

    report = request["report"]
    out = Path(report["path"])
    tags = {"stage": "score", "model_id": report["model_id"]}
    tags["mlflow.note.content"] = f"muxrec score, {out.absolute()}"
    tracker = Tracker.start(experiment=EXPERIMENT, name=f"score {out.name}", tags=tags, key=uuid.uuid4().hex)
    with tracker.ending():
        for key, value in request["params"].items():
            tracker.client.log_param(tracker.run_id, key, value)
        tracker.log_metrics(metrics_of(report))
        tracker.log_file(out / "_manifest.json")
    return tracker.run_id


if __name__ == "__main__":
    LineServer().run(log_run)
