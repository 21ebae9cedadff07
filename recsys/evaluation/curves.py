"""ROC, gain and reliability curves.

Shapes: ``N`` rows, ``R`` runs of rows with equal score, ``K`` bins. Everything is numpy, O(N log N).
"""

from typing import NamedTuple

import numpy as np

from features.errors import InputError
from recsys.evaluation.predictions import (
    Amounts,
    Examples,
    Floats,
    Predictions,
    check_both_classes,
    checked,
    tied_runs,
)


class ReliabilityCurve(NamedTuple):
    """One entry per bin that holds rows, at most K, in order of rising probability."""

    mean_probability: Floats  # [K]
    mean_label: Floats  # [K]
    count: Amounts  # [K]  # pyright: ignore[reportIncompatibleMethodOverride]


def roc_curve(predictions: Predictions, max_points: int = 200) -> tuple[Floats, Floats]:
    """Points of the ROC curve from (0, 0) to (1, 1), spread evenly along it where it has more than ``max_points``.

    Returns:
        False and true positive rates, each [at most max_points], rising.

    Raises:
        InputError: malformed input, labels of one class, or ``max_points`` below 2.

    Example:
        >>> false_rate, true_rate = roc_curve(Predictions.of([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8]))
        >>> false_rate.tolist(), true_rate.tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    false, true = _from_the_top(checked(predictions, is_probability=False), "roc_curve", max_points)
    return _thinned(false / false[-1], true / true[-1], max_points)


def gain_curve(predictions: Predictions, max_points: int = 200) -> tuple[Floats, Floats]:
    """Share of the positives among the examples of highest score, by the share of examples taken.

    Gain over share is the lift. Points and errors are those of `roc_curve`.

    Example:
        >>> share, gain = gain_curve(Predictions.of([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8]))
        >>> share.tolist(), gain.tolist()
        ([0.0, 0.25, 0.75, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    false, true = _from_the_top(checked(predictions, is_probability=False), "gain_curve", max_points)
    return _thinned((false + true) / (false[-1] + true[-1]), true / true[-1], max_points)


def _from_the_top(examples: Examples, curve: str, max_points: int) -> tuple[Amounts, Amounts]:
    """Negatives and positives [R + 1] at or above each score, from the highest on; the first entry is 0."""
    check_both_classes(examples, curve)
    if max_points < 2:
        raise InputError("max_points must be at least 2", found=repr(max_points), remedy="leave it out")
    runs = tied_runs(examples)
    sums = [np.concatenate([[0], np.cumsum(rows[::-1])]) for rows in (runs.negatives, runs.positives)]
    return sums[0], sums[1]


def _thinned(x: Floats, y: Floats, max_points: int) -> tuple[Floats, Floats]:
    """At most `max_points` of a rising curve's points, evenly spread along it."""
    if len(x) <= max_points:
        return x, y
    keep = np.unique(np.searchsorted(x + y, np.linspace(0, 2, max_points)))
    return x[keep], y[keep]


def reliability_curve(predictions: Predictions, num_bins: int = 20) -> ReliabilityCurve:
    """Mean label against mean probability in bins of about equal frequency, or weight.

    Rows of equal probability share a bin, that of their middle rank, so the curve does not depend on the order of the
    rows. Bins without a row are left out.

    Raises:
        InputError: malformed input, or ``num_bins`` below 1.

    Example:
        >>> curve = reliability_curve(Predictions.of([0, 0, 1, 1, 1], [0.1, 0.3, 0.3, 0.3, 0.9]), num_bins=2)
        >>> curve.mean_probability.round(2).tolist(), curve.mean_label.tolist(), curve.count.tolist()
        ([0.1, 0.45], [0.0, 0.75], [1, 4])
    """
    examples = checked(predictions)
    if num_bins < 1:
        raise InputError("num_bins must be at least 1", found=repr(num_bins), remedy="leave it out")
    runs = tied_runs(examples)
    rows = runs.positives + runs.negatives
    so_far = np.cumsum(rows)
    bins = (2 * so_far - rows) * num_bins // (2 * so_far[-1])
    # A last run lighter than the rounding of the sum would fall into a bin beyond the last one.
    _, starts = np.unique(np.minimum(bins, num_bins - 1), return_index=True)
    count = np.add.reduceat(rows, starts)
    mean_label = np.add.reduceat(runs.positives, starts) / count
    return ReliabilityCurve(np.add.reduceat(runs.score * rows, starts) / count, mean_label, count)
