"""Differences of two models' metrics on the same rows, with confidence bounds.

N rows, G groups. A metric's error is, to first order, a sum over rows of their influence on it (Hampel 1974). For the
AUC that sum gives the variance of DeLong, DeLong and Clarke-Pearson (1988). Rows of a group depend on each other, so
their influences are added before they are squared (Obuchowski 1997). The two models' influences are subtracted row by
row, so errors that both make cancel. Nothing is random.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.errors import InputError
from recsys.evaluation.curves import NUM_BINS
from recsys.evaluation.metrics import LOG_LOSS_CLIP, METRICS
from recsys.evaluation.predictions import Amounts, Examples, Floats, Predictions, check_both_classes, checked

ONE_SIDED_95 = 1.6448536269514722


class Influence(NamedTuple):
    """A metric, and the contribution of each row to its error."""

    value: float
    of_rows: Floats  # [N], of mean 0


class Difference(NamedTuple):
    """A metric of two models on the same rows; `low` and `high` are bounds of 95 % each, on `difference`."""

    metric: str
    champion: float
    challenger: float
    difference: float
    """Challenger minus champion."""
    standard_error: float
    low: float
    high: float
    higher_is_better: bool

    @property
    def loss(self) -> float:
        """Loss of the challenger at the bad end of the interval; negative if it is better even there."""
        return -self.low if self.higher_is_better else self.high

    @property
    def loss_at_least(self) -> float:
        """Loss of the challenger at the good end of the interval."""
        return -self.high if self.higher_is_better else self.low


def compare(
    labels: ArrayLike,
    champion: ArrayLike,
    challenger: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> list[Difference]:
    """AUC, log loss and calibration error of two models on the same rows, the difference of each and its interval.

    Args:
        labels: [N], 0 or 1, both present.
        champion: [N], probabilities.
        challenger: [N], probabilities of the same rows.
        groups: [N], whose rows depend on each other, such as those of a user; None: all rows are independent.
        weights: [N], from 0; None: every row counts alike.

    Raises:
        InputError: malformed input, labels of one class, or one group alone.

    Example:
        >>> rows = compare([0, 1, 0, 1], [0.1, 0.4, 0.35, 0.8], [0.1, 0.4, 0.45, 0.8])
        >>> rows[0].metric, rows[0].champion, rows[0].challenger
        ('auc', 1.0, 0.75)
    """
    old, new = (
        checked(Predictions.of(labels, scores, groups, weights), by_group=True) for scores in (champion, challenger)
    )
    check_both_classes(old, "a comparison")
    if old.groups is not None and not old.groups.any():
        raise InputError("a comparison needs more than one group", found="one", remedy="leave the groups out")
    return [
        _difference(
            name, influence(old), influence(new), old.groups, name in METRICS and bool(METRICS[name].higher_is_better)
        )
        for name, influence in INFLUENCES.items()
    ]


def _difference(
    name: str, old: Influence, new: Influence, groups: NDArray[np.int64] | None, higher_is_better: bool
) -> Difference:
    of_rows = new.of_rows - old.of_rows
    sums = of_rows if groups is None else np.bincount(groups, weights=of_rows)
    error = float(np.sqrt(np.square(sums).sum() * len(sums) / max(len(sums) - 1, 1)))
    difference = new.value - old.value
    low, high = difference - ONE_SIDED_95 * error, difference + ONE_SIDED_95 * error
    return Difference(name, old.value, new.value, difference, error, low, high, higher_is_better)


def auc_influence(examples: Examples) -> Influence:
    """The AUC: a row's influence is the share of the other class that it beats, less the AUC, by its weight.

    >>> rows = auc_influence(checked(Predictions.of([0, 1, 1], [0.5, 0.2, 0.9])))
    >>> rows.value, rows.of_rows.tolist()
    (0.5, [0.0, -0.25, 0.25])
    """
    is_positive, scores, _, weights = examples
    beaten = np.where(is_positive, _weight_below(scores, scores, weights * ~is_positive), 0.0)
    beating = np.where(is_positive, 0.0, _weight_below(-scores, -scores, weights * is_positive))
    of_positives, of_negatives = float(weights[is_positive].sum()), float(weights[~is_positive].sum())
    shares = np.where(is_positive, beaten / of_negatives, beating / of_positives)
    value = float((weights * shares)[is_positive].sum() / of_positives)
    return Influence(value, weights * (shares - value) / np.where(is_positive, of_positives, of_negatives))


def _weight_below(scores: Floats, others: Floats, weights: Amounts) -> Floats:
    """For each score the weight of the others below it, plus half of the weight of those that are equal."""
    order = np.argsort(others, kind="stable")
    so_far = np.concatenate([[0.0], np.cumsum(weights[order])])
    sorted_others = others[order]
    below = so_far[np.searchsorted(sorted_others, scores, side="left")]
    return (below + so_far[np.searchsorted(sorted_others, scores, side="right")]) / 2


def log_loss_influence(examples: Examples) -> Influence:
    """The log loss, a mean: a row's influence is its own loss, less the mean, by its share of the weight."""
    is_positive, scores, _, weights = examples
    losses = -np.log(np.clip(np.where(is_positive, scores, 1 - scores), LOG_LOSS_CLIP, 1 - LOG_LOSS_CLIP))
    total = weights.sum()
    value = float((weights * losses).sum() / total)
    return Influence(value, weights * (losses - value) / total)


def calibration_influence(examples: Examples) -> Influence:
    """The calibration error over the label rate: the share of the clicks that are predicted in the wrong bin.

    ECE is in units of probability, so a margin that suits one click rate does not suit another; a share of the rate
    suits both. It also bounds the calibration ratio: |ratio - 1| never exceeds it.

    >>> calibration_influence(checked(Predictions.of([0, 1, 1, 0], [0.5, 0.5, 0.5, 0.5]))).value
    0.0
    """
    is_positive, scores, _, weights = examples
    residuals = weights * (scores - is_positive)
    bins = _bins(scores, weights)
    sums = np.bincount(bins, weights=residuals, minlength=NUM_BINS)
    clicks = float(weights[is_positive].sum())
    value = float(np.abs(sums).sum() / clicks)
    return Influence(value, (np.sign(sums)[bins] * residuals - value * weights * is_positive) / clicks)


def _bins(scores: Floats, weights: Amounts) -> NDArray[np.int64]:
    """Bin [N] of each row: equal frequency, rows of equal score together, as in
    `recsys.evaluation.curves.reliability_curve`."""
    total = weights.sum()
    middles = _weight_below(scores, scores, weights)
    return np.minimum((middles * NUM_BINS // total).astype(np.int64), NUM_BINS - 1)


INFLUENCES = {"auc": auc_influence, "logloss": log_loss_influence, "calibration_error": calibration_influence}
