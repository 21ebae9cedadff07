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


class UndefinedMetricError(InputError):
    """A metric has no value for these predictions; `evaluate` leaves it out."""


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

    Raises `InputError` for a wrong shape, label, score or weight.
    """
    labels, scores, groups, weights = predictions
    y, p = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if y.ndim != 1 or y.shape != p.shape or not len(y):
        found = f"{list(y.shape)} and {list(p.shape)}"
        raise InputError("labels and probabilities must both have shape [N], N > 0", found=found, remedy="flatten them")
    is_positive = y == 1
    _check_each(is_positive | (y == 0), y, "labels must be 0 or 1", "map the label first")
    is_inside = (p >= 0) & (p <= 1) if is_probability else np.isfinite(p)
    expected = "probabilities must lie in [0, 1]" if is_probability else "scores must be finite"
    _check_each(is_inside, p, expected, "check for a missing sigmoid or a diverged run")
    for name, column in (("group", groups if by_group else None), ("weight", weights)):
        if column is not None and np.shape(column) != p.shape:
            expected, remedy = f"{name}s must have shape [{len(p)}]", f"give one {name} per row"
            raise InputError(expected, found=f"{list(np.shape(column))}", remedy=remedy)
    amounts = np.ones(len(p), np.int64) if weights is None else np.asarray(weights, dtype=np.float64)
    is_amount = (amounts >= 0) & (amounts < np.inf)
    _check_each(is_amount, amounts, "weights must be finite numbers from 0", "leave such rows out")
    rows = slice(None) if amounts.all() else np.flatnonzero(amounts)
    if not len(amounts[rows]):
        raise InputError("a row must have a weight above 0", found="none", remedy="leave the weights out")
    codes = None
    if by_group and groups is not None:
        codes = np.unique(np.asarray(groups)[rows], return_inverse=True)[1].astype(np.int64)
    return Examples(is_positive[rows], p[rows], codes, amounts[rows])


def _check_each(is_right: NDArray[np.bool_], values: NDArray[Any], expected: str, remedy: str) -> None:
    """Raise `InputError` for the first of the values [N] that is not right."""
    if not is_right.all():
        row = int(np.argmin(is_right))
        raise InputError(expected, found=f"{values[row]} in row {row}", remedy=remedy)


def check_both_classes(examples: Examples, name: str) -> None:
    """Raise `InputError`, naming the metric or curve, unless both labels occur."""
    is_positive = examples.is_positive
    if is_positive.all() or not is_positive.any():
        found = f"only {int(is_positive[0])} in {len(is_positive)} rows"
        raise InputError(f"{name} needs labels of both classes", found=found, remedy="use more rows or another split")
