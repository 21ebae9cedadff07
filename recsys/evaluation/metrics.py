"""Metrics of click probabilities: ranking (auc, gauc), likelihood (logloss, normalized entropy), calibration.

A new metric is a function of `Predictions` and one line in ``METRICS``; the trainer's monitor, sweeps, comparisons,
segments, the model card and MLflow read that entry.

Shapes: ``N`` rows, ``G`` groups. Everything is numpy, float64, O(N log N). No metric depends on the order of the rows.
Ranking metrics take any finite score; the others need probabilities in [0, 1]. A row of weight k counts as k rows.
Every metric raises `InputError` for malformed predictions.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from features.errors import InputError
from recsys.evaluation.curves import reliability_curve
from recsys.evaluation.predictions import (
    Examples,
    Floats,
    Predictions,
    Runs,
    UndefinedMetricError,
    check_both_classes,
    checked,
    tied_runs,
)

LOG_LOSS_CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1, as the published benchmarks do; one sure mistake costs 16.1 nats."""


def auc(predictions: Predictions) -> float:
    """Area under the ROC curve: the chance that a random positive outranks a random negative, ties counting one half.

    Exact without weights: pairs are counted in integers (Mann & Whitney 1947; Hanley & McNeil 1982). A pair weighs the
    product of its rows' weights. Raises `InputError` for labels of one class.

    >>> auc(Predictions.of([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8]))  # of four pairs three are won and one is tied
    0.875
    """
    examples = checked(predictions, is_probability=False)
    check_both_classes(examples, "auc")
    return float(_auc_by_group(tied_runs(examples))[0])


def gauc(predictions: Predictions) -> float:
    """Mean AUC over groups, mostly users, weighted by their rows, or by the sum of those rows' weights.

    "GAUC" or user-weighted AUC of Zhou et al. 2018 (Deep Interest Network), in its experiments. Groups of one class are
    left out; raises `UndefinedMetricError` if there are no others.

    >>> gauc(Predictions.of([0, 1, 0, 1, 1], [0.1, 0.4, 0.6, 0.5, 0.2], groups=["a", "a", "b", "b", "b"]))
    0.4
    """
    if predictions.groups is None:
        raise UndefinedMetricError("gauc needs groups", found="none", remedy="name the registry's group column")
    examples = checked(predictions, is_probability=False, by_group=True)
    assert examples.groups is not None
    by_group = _auc_by_group(tied_runs(examples))
    is_mixed = ~np.isnan(by_group)
    if not is_mixed.any():
        remedy = "use a coarser group or more rows"
        raise UndefinedMetricError("gauc needs a group with both classes", found="none", remedy=remedy)
    amounts = np.bincount(examples.groups, weights=examples.weights)[is_mixed]
    return float(amounts @ by_group[is_mixed] / amounts.sum())


def log_loss(predictions: Predictions) -> float:
    """Mean negative log likelihood in nats, ``-mean(y ln p + (1 - y) ln(1 - p))``, p clipped by ``LOG_LOSS_CLIP``.

    >>> round(log_loss(Predictions.of([1, 0], [0.5, 0.5])), 4)
    0.6931
    """
    return _log_loss(checked(predictions))


def normalized_entropy(predictions: Predictions) -> float:
    """Log loss over that of the constant base rate (He et al. 2014, eq. 1): 1 is no better than that, 0 perfect.

    Raises `InputError` for labels of one class.

    >>> round(normalized_entropy(Predictions.of([1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25])), 6)
    1.0
    """
    examples = checked(predictions)
    check_both_classes(examples, "normalized_entropy")
    rate = _mean(examples.is_positive, examples)
    return float(_log_loss(examples) / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))


def ece(predictions: Predictions) -> float:
    """Expected calibration error: row-weighted mean of ``|mean p - mean y|`` over the bins of ``reliability_curve``.

    Guo et al. 2017, eq. 3, with bins of equal frequency: clicks are rare, and equal widths would put all in one bin.

    >>> round(ece(Predictions.of([0, 1, 1, 1], [0.5, 0.5, 0.8, 0.8])), 6)
    0.1
    """
    curve = reliability_curve(predictions)
    return float(curve.count @ np.abs(curve.mean_probability - curve.mean_label) / curve.count.sum())


def calibration_ratio(predictions: Predictions) -> float:
    """Clicks expected over clicks seen, ``sum p / sum y``: above 1 the model predicts too many.

    Raises `InputError` without a positive label.

    >>> calibration_ratio(Predictions.of([0, 1, 0, 1], [0.5, 0.75, 0.25, 1.0]))
    1.25
    """
    examples = checked(predictions)
    if not examples.is_positive.any():
        raise InputError("calibration_ratio needs a positive label", found="none", remedy="use more rows")
    weighted = examples.scores * examples.weights
    return float(weighted.sum() / examples.weights[examples.is_positive].sum())


def brier(predictions: Predictions) -> float:
    """Mean squared error of the probabilities, ``mean((p - y)^2)`` (Brier 1950, of one class).

    >>> brier(Predictions.of([0, 1], [0.5, 1.0]))
    0.125
    """
    examples = checked(predictions)
    return _mean(np.square(examples.scores - examples.is_positive), examples)


class Metric(NamedTuple):
    """An entry of METRICS: how a metric is computed, compared and shown."""

    function: Callable[[Predictions], float]
    higher_is_better: bool | None
    """None if neither direction is better, as for a ratio that is best at 1; training cannot monitor such a metric."""
    title: str
    digits: int = 4
    """Decimals shown."""

    def quality(self, value: float) -> float:
        """The value, negated if lower is better: the higher the better."""
        return value if self.higher_is_better else -value

    def text(self, value: float | None) -> str:
        """A value as tables show it, empty for None.

        >>> METRICS["auc"].text(0.81234), METRICS["auc"].text(None)
        ('0.8123', '')
        """
        return "" if value is None else f"{value:.{self.digits}f}"


METRICS: dict[str, Metric] = {
    "auc": Metric(auc, True, "AUC"),
    "gauc": Metric(gauc, True, "gAUC"),
    "logloss": Metric(log_loss, False, "log loss"),
    "normalized_entropy": Metric(normalized_entropy, False, "normalised entropy"),
    "ece": Metric(ece, False, "ECE"),
    "calibration_ratio": Metric(calibration_ratio, None, "calibration ratio"),
    "brier": Metric(brier, False, "Brier score"),
}
"""Metrics by their names in metrics.json and MLflow; a new one is its function and a line here."""

CORRECTED = "calibration_ratio_corrected"
"""Name of the calibration ratio after the prior correction; the other metrics are computed before it."""


def evaluate(predictions: Predictions) -> dict[str, float]:
    """Every entry of ``METRICS`` that is defined; gauc is not without groups, or if none of them has both classes.

    Raises `InputError` for malformed predictions, and for labels of one class.

    >>> metrics = evaluate(Predictions.of([0, 1, 1], [0.25, 0.5, 0.75]))
    >>> metrics["auc"], metrics["brier"], "gauc" in metrics
    (1.0, 0.125, False)
    """
    metrics: dict[str, float] = {}
    for name, metric in METRICS.items():
        try:
            metrics[name] = metric.function(predictions)
        except UndefinedMetricError:
            continue
    return metrics


def _check_monitor(name: str) -> str:
    """Accept the name of a metric with a better direction."""
    known = [key for key, metric in METRICS.items() if metric.higher_is_better is not None]
    if name not in known:
        raise InputError("unknown metric to monitor", found=repr(name), remedy=f"use one of {', '.join(known)}")
    return name


Monitor = Annotated[str, AfterValidator(_check_monitor)]
"""Name of the metric that decides which weights, and which trials, are best."""


def monitored(metrics: Mapping[str, float], monitor: str) -> float:
    """The monitored metric's quality; raises `InputError` if it is undefined for the validation rows.

    >>> monitored({"auc": 0.75, "logloss": 0.5}, "logloss")
    -0.5
    """
    if monitor not in metrics:
        expected, remedy = f"trainer.monitor: {monitor} of the validation split", "monitor auc or logloss"
        raise InputError(expected, found="undefined", remedy=remedy)
    return METRICS[monitor].quality(metrics[monitor])


def _log_loss(examples: Examples) -> float:
    of_truth = np.where(examples.is_positive, examples.scores, 1 - examples.scores)
    return _mean(-np.log(np.clip(of_truth, LOG_LOSS_CLIP, 1 - LOG_LOSS_CLIP)), examples)


def _mean(values: NDArray[Any], examples: Examples) -> float:
    """Mean of values [N] by weight."""
    return float((values * examples.weights).sum() / examples.weights.sum())


def _auc_by_group(runs: Runs) -> Floats:
    """AUC [G] of each group, NaN where it has one class."""
    starts = np.flatnonzero(np.diff(runs.group, prepend=-1))
    num_positives, num_negatives = np.add.reduceat(runs.positives, starts), np.add.reduceat(runs.negatives, starts)
    below = np.cumsum(runs.negatives) - runs.negatives
    below -= below[starts][runs.group]
    twice_wins = np.add.reduceat(runs.positives * (2 * below + runs.negatives), starts)
    twice_pairs = 2 * num_positives * num_negatives
    ratio = np.divide(twice_wins, twice_pairs, out=np.full(len(starts), np.nan), where=twice_pairs > 0)
    return np.clip(ratio, 0.0, 1.0)  # weights are summed with rounding
