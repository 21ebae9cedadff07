"""How good probabilities of a click are: ranking (auc, gauc), likelihood (logloss, normalized entropy), calibration.

Shapes: ``N`` rows, ``G`` groups. Everything is numpy, float64, O(N log N). No figure depends on the order of the rows.
Ranking metrics take any finite score; the others need probabilities in [0, 1]. With ``weights`` a row of weight k
counts as k rows do, in every figure.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.errors import InputError
from recsys.evaluation.curves import Examples, Floats, Runs, check_both_classes, checked, reliability_curve, tied_runs

LOG_LOSS_CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1, as the published benchmarks do; one sure mistake costs 16.1 nats."""


class Predictions(NamedTuple):
    """What a model says about examples whose labels are known: the arguments of `evaluate`, in their order."""

    labels: NDArray[np.float32]  # [N], 0 or 1
    probabilities: Floats  # [N]
    groups: NDArray[np.int64] | None  # [N]
    weights: NDArray[np.float32] | None  # [N]


def auc(
    labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float:
    """Area under the ROC curve: the chance that a random positive outranks a random negative, ties counting one half.

    Exact without weights: pairs are counted in integers (Mann & Whitney 1947; Hanley & McNeil 1982). A pair weighs the
    product of its rows' weights.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], or any finite scores.
        groups: not used.
        weights: [N], from 0; None: every row counts alike.

    Raises:
        InputError: malformed input, or labels of one class.

    Example:
        >>> auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])  # of four pairs three are won and one is tied
        0.875
    """
    examples = checked(labels, probabilities, weights=weights, is_probability=False)
    check_both_classes(examples, "auc")
    return float(_auc_by_group(tied_runs(examples))[0])


def gauc(
    labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float:
    """Mean AUC over groups, mostly users, each weighted by its rows, or their weight; groups of one class are left out.

    "GAUC" or user-weighted AUC of Zhou et al. 2018 (Deep Interest Network), in its experiments.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], or any finite scores.
        groups: [N], any values that sort.
        weights: [N], from 0; None: every row counts alike.

    Raises:
        InputError: malformed input, no groups, or no group with both classes.

    Example:
        >>> gauc([0, 1, 0, 1, 1], [0.1, 0.4, 0.6, 0.5, 0.2], groups=["a", "a", "b", "b", "b"])
        0.4
    """
    if groups is None:
        raise InputError("gauc needs groups", found="none", remedy="name the registry's group column")
    examples = checked(labels, probabilities, groups=groups, weights=weights, is_probability=False)
    is_mixed = _has_both_classes(examples)
    if not is_mixed.any():
        raise InputError(
            "gauc needs a group with both classes", found="none", remedy="use a coarser group or more rows"
        )
    by_group = _auc_by_group(tied_runs(examples))[is_mixed]
    amounts = _sum_by_group(examples, examples.weights)[is_mixed]
    return float(amounts @ by_group / amounts.sum())


def log_loss(
    labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float:
    """Mean negative log likelihood in nats, ``-mean(y ln p + (1 - y) ln(1 - p))``, p clipped by ``LOG_LOSS_CLIP``.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], in [0, 1].
        groups: not used.
        weights: [N], from 0; None: every row counts alike.

    Raises:
        InputError: malformed input.

    Example:
        >>> round(log_loss([1, 0], [0.5, 0.5]), 4)
        0.6931
    """
    examples = checked(labels, probabilities, weights=weights)
    of_truth = np.where(examples.is_positive, examples.scores, 1 - examples.scores)
    return _mean(-np.log(np.clip(of_truth, LOG_LOSS_CLIP, 1 - LOG_LOSS_CLIP)), examples)


def normalized_entropy(
    labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float:
    """Log loss relative to always answering the base rate (He et al. 2014, eq. 1): 1 is no better than that, 0 perfect.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], in [0, 1].
        groups: not used.
        weights: [N], from 0; None: every row counts alike.

    Raises:
        InputError: malformed input, or labels of one class.

    Example:
        >>> round(normalized_entropy([1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]), 6)
        1.0
    """
    examples = checked(labels, probabilities, weights=weights)
    check_both_classes(examples, "normalized_entropy")
    loss, rate = log_loss(labels, probabilities, weights=weights), _mean(examples.is_positive, examples)
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))


def ece(
    labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float:
    """Expected calibration error: row-weighted mean of ``|mean p - mean y|`` over the bins of ``reliability_curve``.

    Guo et al. 2017, eq. 3, with bins of equal frequency: clicks are rare, and equal widths would put all in one bin.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], in [0, 1].
        groups: not used.
        weights: [N], from 0; None: every row counts alike.

    Raises:
        InputError: malformed input.

    Example:
        >>> round(ece([0, 1, 1, 1], [0.5, 0.5, 0.8, 0.8]), 6)
        0.1
    """
    curve = reliability_curve(labels, probabilities, weights=weights)
    return float(curve.count @ np.abs(curve.mean_probability - curve.mean_label) / curve.count.sum())


def calibration_ratio(
    labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float:
    """Clicks expected over clicks seen, ``sum p / sum y``: above 1 the model promises too much.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], in [0, 1].
        groups: not used.
        weights: [N], from 0; None: every row counts alike.

    Raises:
        InputError: malformed input, or no positive label.

    Example:
        >>> calibration_ratio([0, 1, 0, 1], [0.5, 0.75, 0.25, 1.0])
        1.25
    """
    examples = checked(labels, probabilities, weights=weights)
    if not examples.is_positive.any():
        raise InputError("calibration_ratio needs a positive label", found="none", remedy="use more rows")
    weighted = examples.scores * examples.weights
    return float(weighted.sum() / examples.weights[examples.is_positive].sum())


def brier(
    labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None, weights: ArrayLike | None = None
) -> float:
    """Mean squared error of the probabilities, ``mean((p - y)^2)`` (Brier 1950, of one class).

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], in [0, 1].
        groups: not used.
        weights: [N], from 0; None: every row counts alike.

    Raises:
        InputError: malformed input.

    Example:
        >>> brier([0, 1], [0.5, 1.0])
        0.125
    """
    examples = checked(labels, probabilities, weights=weights)
    return _mean(np.square(examples.scores - examples.is_positive), examples)


METRICS: dict[str, Callable[..., float]] = {
    "auc": auc,
    "gauc": gauc,
    "logloss": log_loss,
    "normalized_entropy": normalized_entropy,
    "ece": ece,
    "calibration_ratio": calibration_ratio,
    "brier": brier,
}


def evaluate(
    labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike | None = None, weights: ArrayLike | None = None
) -> dict[str, float]:
    """Every entry of ``METRICS``; without ``gauc`` where there are no groups, or none of them has both classes.

    Args:
        labels: [N], 0 or 1, both present.
        probabilities: [N], in [0, 1].
        groups: [N], any values that sort.
        weights: [N], from 0; None: every row counts alike.

    Raises:
        InputError: malformed input, or labels of one class.

    Example:
        >>> figures = evaluate([0, 1, 1], [0.25, 0.5, 0.75])
        >>> list(figures)
        ['auc', 'logloss', 'normalized_entropy', 'ece', 'calibration_ratio', 'brier']
        >>> figures["auc"], figures["brier"]
        (1.0, 0.125)
    """
    examples = checked(labels, probabilities, groups=groups, weights=weights)
    has_gauc = groups is not None and bool(_has_both_classes(examples).any())
    amounts = None if weights is None else examples.weights
    return {
        name: metric(examples.is_positive, examples.scores, groups=examples.groups, weights=amounts)
        for name, metric in METRICS.items()
        if metric is not gauc or has_gauc
    }


def _mean(values: NDArray[Any], examples: Examples) -> float:
    """Mean of values [N] by weight."""
    return float((values * examples.weights).sum() / examples.weights.sum())


def _sum_by_group(examples: Examples, values: NDArray[Any]) -> Floats:
    """Sums [G] of values [N]."""
    assert examples.groups is not None
    return np.bincount(examples.groups, weights=values).astype(np.float64)


def _has_both_classes(examples: Examples) -> NDArray[np.bool_]:
    """Flags [G] of the groups with both labels."""
    return (_sum_by_group(examples, examples.is_positive) > 0) & (_sum_by_group(examples, ~examples.is_positive) > 0)


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


CORRECTED = "calibration_ratio_corrected"
"""Name of the calibration ratio after the prior correction, which the other metrics go without."""
