"""Results of a sweep: its trials as a table and as files, and the importance of its settings.

Importance is that of PED-ANOVA (Watanabe et al., IJCAI 2023): how much the best trials' values of a setting differ from
all trials' values of it. With few trials it is only a hint.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import TrialState
from rich.table import Table

from features.files import write_text
from recsys.config import Experiment
from recsys.evaluation.metrics import METRICS
from recsys.report.text import csv_text, rich_table, text_of
from recsys.sweep.search_space import with_settings

MIN_TRIALS = 4
"""Complete trials that importance needs."""
MOST_ROWS = 20
"""Trials in the terminal's table; report/trials.csv has all."""


class TrialResult(NamedTuple):
    """A trial that ended."""

    number: int
    state: str
    """complete, pruned or failed."""
    score: float | None
    """Best validation score."""
    epochs: int
    settings: dict[str, Any]
    run: Path
    metrics: dict[str, dict[str, float]]
    """Metrics of metrics.json; empty for a trial that is not complete."""
    error: str | None


def best_of(results: Sequence[TrialResult], experiment: Experiment) -> TrialResult | None:
    """The complete trial with the best validation score, the first of equals; None without complete trials."""
    complete = [one for one in results if one.state == "complete"]
    return in_order(complete, experiment)[0] if complete else None


def in_order(results: Sequence[TrialResult], experiment: Experiment) -> list[TrialResult]:
    """Complete trials first, by falling quality; then pruned and failed ones."""
    quality = METRICS[experiment.trainer.monitor].quality
    places = {"complete": 0, "pruned": 1, "failed": 2}
    return sorted(results, key=lambda one: (places[one.state], -quality(one.score or 0.0), one.number))


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of each setting in the quality of a trial, the largest first; empty for too few trials."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < MIN_TRIALS or len({trial.value for trial in complete}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # settings with a single value
        return {}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def trial_name(experiment: Experiment, number: int) -> str:
    """Name of a trial's run, and of others with its settings."""
    return f"{experiment.name} trial {number}"


def write_sweep_report(
    directory: Path, study: optuna.Study, results: Sequence[TrialResult], experiment: Experiment
) -> None:
    """Write trials.csv, best.yaml, importance.csv, importance.png and progress.png."""
    from recsys.report import figures

    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "trials.csv", csv_text([_record(one) for one in in_order(results, experiment)]))
    if best := best_of(results, experiment):
        named = experiment.model_copy(update={"name": trial_name(experiment, best.number)})
        write_text(directory / "best.yaml", with_settings(named, best.settings).to_yaml())
    if shares := importances(study):
        lines = [{"setting": key, "share": share} for key, share in shares.items()]
        write_text(directory / "importance.csv", csv_text(lines))
        figures.save(directory / "importance.png", figures.setting_importance, shares, left=figures.NAMES)
    scores = [(one.number, one.score, one.state) for one in results if one.score is not None]
    if scores:
        figures.save(directory / "progress.png", figures.sweep_progress, scores, experiment.trainer.monitor)


def _record(one: TrialResult) -> dict[str, Any]:
    test = one.metrics.get("test", {})
    figures = {"score": one.score, **{f"test_{name}": test.get(name) for name in METRICS}}
    figures["epochs"] = one.epochs
    return {"trial": one.number, "state": one.state, **figures, **one.settings, "error": one.error}


def sweep_table(results: Sequence[TrialResult], experiment: Experiment) -> Table:
    """The best trials for a terminal."""
    metric = f"valid {experiment.trainer.monitor}"
    counts = {name: sum(one.state == name for one in results) for name in ("complete", "pruned", "failed")}
    title = f"{len(results)} trials: " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    settings = {key: key.replace(".", "\n", 1) for key in (results[0].settings if results else ())}
    rows = []
    for one in in_order(results, experiment)[:MOST_ROWS]:
        scores = (one.score, one.metrics.get("test", {}).get("auc"))
        values = (one.settings.get(key, "") for key in settings)
        rows.append(
            [
                *(str(one.number), one.state),
                *("" if score is None else f"{score:.4f}" for score in scores),
                str(one.epochs),
                *(f"{value:.3g}" if isinstance(value, float) else text_of(value) for value in values),
            ]
        )
    headings = ["trial", "", metric, "test auc", "epochs", *settings.values()]
    return rich_table(title, headings, rows, left=[""], folding=[*settings.values()])
