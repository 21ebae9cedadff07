"""ROC, gain and reliability curves; each raises `InputError` for malformed predictions.

Shapes: ``N`` rows, ``R`` runs of rows with equal score, ``K`` bins. Everything is numpy, O(N log N).
"""

from typing import NamedTuple

import numpy as np

from recsys.evaluation.predictions import (
    Amounts,
    Examples,
    Floats,
    Predictions,
    check_both_classes,
    checked,
    tied_runs,
)

MAX_POINTS = 200
"""Points kept of a ROC or gain curve, spread evenly along it."""
NUM_BINS = 20
"""Bins of a reliability curve, and of the calibration error."""


class ReliabilityCurve(NamedTuple):
    """One entry per bin that holds rows, at most K, in order of rising probability."""

    mean_probability: Floats  # [K]
    mean_label: Floats  # [K]
    count: Amounts  # [K]  # pyright: ignore[reportIncompatibleMethodOverride]


def roc_curve(predictions: Predictions) -> tuple[Floats, Floats]:
    """False and true positive rates of the ROC curve [at most MAX_POINTS], rising from (0, 0) to (1, 1).

    Raises `InputError` for labels of one class.

    >>> false_rate, true_rate = roc_curve(Predictions.of([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8]))
    >>> false_rate.tolist(), true_rate.tolist()
    ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    false, true = _from_the_top(checked(predictions, is_probability=False), "roc_curve")
    return _thinned(false / false[-1], true / true[-1])


def gain_curve(predictions: Predictions) -> tuple[Floats, Floats]:
    """Share of the examples taken, from the highest score on, and share of the positives among them [as `roc_curve`].

    Gain over share is the lift. Raises `InputError` for labels of one class.

    >>> share, gain = gain_curve(Predictions.of([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8]))
    >>> share.tolist(), gain.tolist()
    ([0.0, 0.25, 0.75, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    false, true = _from_the_top(checked(predictions, is_probability=False), "gain_curve")
    return _thinned((false + true) / (false[-1] + true[-1]), true / true[-1])


def _from_the_top(examples: Examples, curve: str) -> tuple[Amounts, Amounts]:
    """Negatives and positives [R + 1] at or above each score, from the highest on; the first entry is 0."""
    check_both_classes(examples, curve)
    runs = tied_runs(examples)
    sums = [np.concatenate([[0], np.cumsum(rows[::-1])]) for rows in (runs.negatives, runs.positives)]
    return sums[0], sums[1]


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    if len(x) <= MAX_POINTS:
        return x, y
    keep = np.unique(np.searchsorted(x + y, np.linspace(0, 2, MAX_POINTS)))
    return x[keep], y[keep]


def reliability_curve(predictions: Predictions) -> ReliabilityCurve:
    """Mean label against mean probability in NUM_BINS bins of about equal frequency, or weight.

    Rows of equal probability share a bin, that of their middle rank, so the curve does not depend on the order of the
    rows. Bins without a row are left out.

    >>> curve = reliability_curve(Predictions.of([0, 0, 1, 1, 1], [0.1, 0.3, 0.3, 0.3, 0.9]))
    >>> curve.mean_probability.round(2).tolist(), curve.mean_label.round(2).tolist(), curve.count.tolist()
    ([0.1, 0.3, 0.9], [0.0, 0.67, 1.0], [1, 3, 1])
    """
    runs = tied_runs(checked(predictions))
    rows = runs.positives + runs.negatives
    so_far = np.cumsum(rows)
    bins = (2 * so_far - rows) * NUM_BINS // (2 * so_far[-1])
    # A last run lighter than the rounding of the sum would fall into a bin beyond the last one.
    _, starts = np.unique(np.minimum(bins, NUM_BINS - 1), return_index=True)
    count = np.add.reduceat(rows, starts)
    mean_label = np.add.reduceat(runs.positives, starts) / count
    return ReliabilityCurve(np.add.reduceat(runs.score * rows, starts) / count, mean_label, count)
