"""Predictions of a model with the labels, and the checks and runs of ties that metrics and curves share.

Shapes: ``N`` rows, ``R`` runs of rows with equal score, ``G`` groups. A row of weight k counts as k rows, and one of
weight 0 does not count. Without weights rows are counted in integers.
"""

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.errors import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Amounts = Integers | Floats
"""Numbers of rows, or sums of their weights."""


class Predictions(NamedTuple):
    """Scores of a model for examples with known labels: the argument of every metric and curve.

    >>> Predictions.of([0, 1], [0.25, 0.75], weights=[1, 3]).labels.tolist()
    [0, 1]
    """

    labels: NDArray[Any]  # [N], 0 or 1
    probabilities: NDArray[Any]  # [N], in [0, 1]; rankings and curves of ranks take any finite score
    groups: NDArray[Any] | None = None  # [N], any values that sort, such as users
    weights: NDArray[Any] | None = None  # [N], from 0; None: every row counts once

    @classmethod
    def of(
        cls,
        labels: ArrayLike,
        probabilities: ArrayLike,
        groups: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> Self:
        """Predictions from lists or arrays; metrics and curves check them."""
        optional = [None if values is None else np.asarray(values) for values in (groups, weights)]
        return cls(np.asarray(labels), np.asarray(probabilities), *optional)

    def take(self, rows: NDArray[Any]) -> Self:
        """The given rows (indices or flags), in their order."""
        labels, probabilities, *optional = self
        taken = [None if values is None else values[rows] for values in optional]
        return type(self)(labels[rows], probabilities[rows], *taken)


class Examples(NamedTuple):
    """Checked rows, without those of weight 0."""

    is_positive: NDArray[np.bool_]  # [N]
    scores: Floats  # [N]
    groups: Integers | None  # [N], 0 ... G-1, every number in use
    weights: Amounts  # [N], above 0; integers where none were given


class Runs(NamedTuple):
    """Rows of equal (group, score), ordered by both."""

    score: Floats  # [R]
    positives: Amounts  # [R]
    negatives: Amounts  # [R]
    group: Integers  # [R], 0 ... G-1


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


def checked(predictions: Predictions, *, is_probability: bool = True, by_group: bool = False) -> Examples:
    """The rows [N] that count, with their groups if `by_group`; `is_probability` demands scores in [0, 1].

    Raises:
        InputError: wrong shape, label, score or weight.
    """
    labels, scores, groups, weights = predictions
    is_positive, p = _checked_columns(labels, scores, is_probability)
    num_rows = len(p)
    codes = _codes(groups, num_rows) if by_group and groups is not None else None
    if weights is None:
        return Examples(is_positive, p, codes, np.ones(num_rows, np.int64))
    amounts = _checked_weights(weights, num_rows)
    if (counts := amounts > 0).all():
        return Examples(is_positive, p, codes, amounts)
    codes = None if codes is None else _codes(codes[counts], int(counts.sum()))
    return Examples(is_positive[counts], p[counts], codes, amounts[counts])


def check_both_classes(examples: Examples, name: str) -> None:
    """Raise `InputError`, naming the metric or curve, unless both labels occur."""
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
        raise InputError(f"{name}s must have shape [{num_rows}]", found=found, remedy=f"give one {name} per row")
