"""A scoring job in MLflow: `python -m recsys.tracking.scoring_run` logs what it reads, and ends; whoever scores
starts it.

So the process that scores never imports mlflow, and a store that cannot be reached costs no score.
"""

import importlib.util
import json
import re
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.errors import InputError

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
    told = json.dumps({"report": report, "params": params}, default=str)
    # -P: what stands in the working directory is data, not code.
    command = [sys.executable, "-P", "-m", "recsys.tracking.scoring_run"]
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        answer = {"expected": "cannot log the scoring run", "found": lines[-1][:200]}
    if "run_id" not in answer:
        remedy = "the scores are whole; check MLFLOW_TRACKING_URI, and start again to log them alone"
        raise InputError(answer["expected"], found=answer["found"], remedy=remedy)
    return answer["run_id"]


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


def main() -> int:
    """Log what stands on standard input; exit code 0, or 2 where the store cannot be used."""
    told = json.load(sys.stdin)
    report, params = told["report"], told["params"]
    out = Path(report["path"])
    try:
        from recsys.tracking.tracker import Tracker

        tags = {
            "stage": "score",
            "model_id": report["model_id"],
            "mlflow.note.content": f"muxrec score, {out.absolute()}",
        }
        tracker = Tracker.start(experiment=EXPERIMENT, name=f"score {out.name}", tags=tags, key=uuid.uuid4().hex)
        for key, value in params.items():
            tracker.client.log_param(tracker.run_id, key, value)
        tracker.log_metrics(metrics_of(report))
        tracker.log_file(out / "_manifest.json")
        tracker.finish()
        answer, code = {"run_id": tracker.run_id}, 0
    except InputError as error:
        answer, code = {"expected": error.expected, "found": error.found}, 2
    sys.stdout.write(json.dumps(answer) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
