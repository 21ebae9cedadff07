"""ROC, gain and reliability curves, and the checked rows and runs of ties that they share with the metrics.

Shapes: ``N`` rows, ``R`` runs of rows with equal score, ``G`` groups, ``K`` bins. Everything is numpy, O(N log N).
A row of weight k counts as k rows do, and one of weight 0 as none. Without weights rows are counted in integers.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.errors import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Amounts = Integers | Floats
"""Rows, or their weight."""


class Examples(NamedTuple):
    """Checked rows, those of weight 0 left out."""

    is_positive: NDArray[np.bool_]  # [N]
    scores: Floats  # [N]
    groups: Integers | None  # [N], 0 ... G-1, every number in use
    weights: Amounts  # [N], above 0; integer ones where none were given


class Runs(NamedTuple):
    """Rows of equal (group, score), in order of both."""

    score: Floats  # [R]
    positives: Amounts  # [R]
    negatives: Amounts  # [R]
    group: Integers  # [R], 0 ... G-1


class ReliabilityCurve(NamedTuple):
    """One entry a bin that holds rows, K at most, in order of rising probability."""

    mean_probability: Floats  # [K]
    mean_label: Floats  # [K]
    count: Amounts  # [K]  # pyright: ignore[reportIncompatibleMethodOverride]


def roc_curve(
    labels: ArrayLike, probabilities: ArrayLike, max_points: int = 200, *, weights: ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """Points of the ROC curve from (0, 0) to (1, 1), evenly spread along it where it has more than ``max_points``.

    Args:
        labels: [N], 0 or 1, both present.
        probabilities: [N], or any finite scores.
        max_points: at least 2.
        weights: [N], from 0; None: every row counts alike.

    Returns:
        False and true positive rates, each [at most max_points], rising.

    Raises:
        InputError: malformed input, labels of one class, or fewer than two points.

    Example:
        >>> false_rate, true_rate = roc_curve([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
        >>> false_rate.tolist(), true_rate.tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    examples = checked(labels, probabilities, weights=weights, is_probability=False)
    false, true = _from_the_top(examples, "roc_curve", max_points)
    return _thinned(false / false[-1], true / true[-1], max_points)


def gain_curve(
    labels: ArrayLike, probabilities: ArrayLike, max_points: int = 200, *, weights: ArrayLike | None = None
) -> tuple[Floats, Floats]:
    """Points of the gain curve from (0, 0) to (1, 1): examples taken by falling score, and positives among them.

    Gain over share is the lift. Arguments, points and errors are those of `roc_curve`.

    Example:
        >>> share, gain = gain_curve([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
        >>> share.tolist(), gain.tolist()
        ([0.0, 0.25, 0.75, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    examples = checked(labels, probabilities, weights=weights, is_probability=False)
    false, true = _from_the_top(examples, "gain_curve", max_points)
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


def reliability_curve(
    labels: ArrayLike, probabilities: ArrayLike, num_bins: int = 20, *, weights: ArrayLike | None = None
) -> ReliabilityCurve:
    """Mean label against mean probability in bins of about equal frequency, or weight.

    Rows of equal probability always share a bin, that of their middle rank, so the curve does not depend on the order
    of the rows; bins that stay empty thereby are left out.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], in [0, 1].
        num_bins: at least 1.
        weights: [N], from 0; None: every row counts alike.

    Raises:
        InputError: malformed input, or no bins.

    Example:
        >>> curve = reliability_curve([0, 0, 1, 1, 1], [0.1, 0.3, 0.3, 0.3, 0.9], num_bins=2)
        >>> curve.mean_probability.round(2).tolist(), curve.mean_label.tolist(), curve.count.tolist()
        ([0.1, 0.45], [0.0, 0.75], [1, 4])
    """
    examples = checked(labels, probabilities, weights=weights)
    if num_bins < 1:
        raise InputError("num_bins must be at least 1", found=repr(num_bins), remedy="leave it out")
    runs = tied_runs(examples)
    rows = runs.positives + runs.negatives
    so_far = np.cumsum(rows)
    bins = (2 * so_far - rows) * num_bins // (2 * so_far[-1])
    # A last run that is lighter than the rounding of the sum would stand in a bin beyond the last one.
    _, starts = np.unique(np.minimum(bins, num_bins - 1), return_index=True)
    count = np.add.reduceat(rows, starts)
    mean_label = np.add.reduceat(runs.positives, starts) / count
    return ReliabilityCurve(np.add.reduceat(runs.score * rows, starts) / count, mean_label, count)


def tied_runs(examples: Examples) -> Runs:
    """Runs [R] of rows [N] with equal score and, where there are groups, equal group."""
    is_positive, scores, groups, weights = examples
    order = np.argsort(scores)
    if groups is not None:
        order = order[np.argsort(groups[order], kind="stable")]  # three times as fast as lexsort
    codes = np.zeros(len(scores), np.int64) if groups is None else groups[order]
    sorted_scores, is_positive, weights = scores[order], is_positive[order], weights[order]
    is_start = np.ones(len(scores), bool)
    is_start[1:] = (sorted_scores[1:] != sorted_scores[:-1]) | (codes[1:] != codes[:-1])
    starts = np.flatnonzero(is_start)
    positives = np.add.reduceat(np.where(is_positive, weights, 0), starts)
    negatives = np.add.reduceat(np.where(is_positive, 0, weights), starts)
    return Runs(sorted_scores[starts], positives, negatives, codes[starts])


def checked(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    is_probability: bool = True,
) -> Examples:
    """The rows [N] that count, or an `InputError` that names what is wrong; `is_probability`: scores lie in [0, 1]."""
    is_positive, p = _checked_columns(labels, scores, is_probability)
    num_rows = len(p)
    codes = None if groups is None else _codes(groups, num_rows)
    if weights is None:
        return Examples(is_positive, p, codes, np.ones(num_rows, np.int64))
    amounts = _checked_weights(weights, num_rows)
    if (counts := amounts > 0).all():
        return Examples(is_positive, p, codes, amounts)
    codes = None if codes is None else _codes(codes[counts], int(counts.sum()))
    return Examples(is_positive[counts], p[counts], codes, amounts[counts])


def check_both_classes(examples: Examples, name: str) -> None:
    """Raise `InputError`, which names the figure, unless both labels are among the examples."""
    is_positive = examples.is_positive
    if is_positive.all() or not is_positive.any():
        found = f"only {int(is_positive[0])} in {len(is_positive)} rows"
        raise InputError(f"{name} needs labels of both classes", found=found, remedy="use more rows or another split")


def _checked_columns(labels: ArrayLike, scores: ArrayLike, is_probability: bool) -> tuple[NDArray[np.bool_], Floats]:
    """(is positive [N], scores [N] as float64)."""
    y: NDArray[Any] = np.asarray(labels)
    p = np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or y.shape != p.shape or not len(y):
        found = f"{list(y.shape)} and {list(p.shape)}"
        raise InputError("labels and probabilities must both have shape [N], N > 0", found=found, remedy="flatten them")
    is_positive = y == 1
    if not (is_binary := is_positive | (y == 0)).all():
        row = int(np.argmin(is_binary))
        raise InputError("labels must be 0 or 1", found=f"{y[row]} in row {row}", remedy="map the label first")
    low, high = (0.0, 1.0) if is_probability else (-np.finfo(np.float64).max, np.finfo(np.float64).max)
    if not (is_inside := (p >= low) & (p <= high)).all():
        row = int(np.argmin(is_inside))
        expected = "probabilities must lie in [0, 1]" if is_probability else "scores must be finite"
        raise InputError(
            expected, found=f"{p[row]} in row {row}", remedy="check for a missing sigmoid or a diverged run"
        )
    return is_positive, p


def _codes(groups: ArrayLike, num_rows: int) -> Integers:
    """Groups [N] as numbers 0 ... G-1, every number in use."""
    values = np.asarray(groups)
    _check_length(values, num_rows, "group")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _checked_weights(weights: ArrayLike, num_rows: int) -> Floats:
    amounts = np.asarray(weights, dtype=np.float64)
    _check_length(amounts, num_rows, "weight")
    if not (is_amount := (amounts >= 0) & (amounts < np.inf)).all():
        row = int(np.argmin(is_amount))
        found = f"{amounts[row]} in row {row}"
        raise InputError("weights must be finite numbers from 0", found=found, remedy="leave such rows out")
    if not amounts.any():
        raise InputError("a row must have a weight above 0", found="none", remedy="leave the weights out")
    return amounts


def _check_length(values: NDArray[Any], num_rows: int, name: str) -> None:
    if values.shape != (num_rows,):
        found = f"{list(values.shape)}"
        raise InputError(f"{name}s must have shape [{num_rows}]", found=found, remedy=f"one {name} a row")
