"""How good probabilities of a click are: ranking (auc, gauc), likelihood (logloss, normalized entropy), calibration.

Shapes: ``N`` rows, ``R`` runs of rows with equal probability, ``G`` groups, ``K`` bins. Everything is numpy, float64,
O(N log N). No figure depends on the order of the rows. Ranking metrics take any finite score; the others need
probabilities in [0, 1].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from features.errors import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LOG_LOSS_CLIP = 1e-7
"""Probabilities are kept this far from 0 and 1, as the published benchmarks do; one sure mistake costs 16.1 nats."""


class ReliabilityCurve(NamedTuple):
    """One entry a bin that holds rows, K at most, in order of rising probability."""

    mean_probability: Floats  # [K]
    mean_label: Floats  # [K]
    count: Integers  # [K], rows  # pyright: ignore[reportIncompatibleMethodOverride]


class _Runs(NamedTuple):
    """Rows of equal (group, score), in order of both."""

    score: Floats  # [R]
    positives: Integers  # [R], rows
    rows: Integers  # [R]
    group: Integers  # [R], 0 ... G-1


def auc(labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the chance that a random positive outranks a random negative, ties counting one half.

    Exact: pairs are counted in integers (Mann & Whitney 1947; Hanley & McNeil 1982).

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], or any finite scores.
        groups: not used.

    Raises:
        InputError: malformed input, or labels of one class.

    Example:
        >>> auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])  # of four pairs three are won and one is tied
        0.875
    """
    is_positive, scores = _check(labels, probabilities, is_probability=False)
    _check_both_classes(is_positive, "auc")
    return float(_auc_by_group(_tied_runs(is_positive, scores))[0])


def gauc(labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None) -> float:
    """Mean AUC over groups, mostly users, each weighted by its rows; groups of one class are left out.

    "GAUC" or user-weighted AUC of Zhou et al. 2018 (Deep Interest Network), in its experiments.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], or any finite scores.
        groups: [N], any values that sort.

    Raises:
        InputError: malformed input, no groups, or no group with both classes.

    Example:
        >>> gauc([0, 1, 0, 1, 1], [0.1, 0.4, 0.6, 0.5, 0.2], groups=["a", "a", "b", "b", "b"])
        0.4
    """
    is_positive, scores = _check(labels, probabilities, is_probability=False)
    if groups is None:
        raise InputError("gauc needs groups", found="none", remedy="name the registry's group column")
    codes = _group_codes(groups, len(scores))
    by_group = _auc_by_group(_tied_runs(is_positive, scores, codes))
    is_mixed = ~np.isnan(by_group)
    if not is_mixed.any():
        raise InputError(
            "gauc needs a group with both classes", found="none", remedy="use a coarser group or more rows"
        )
    rows = np.bincount(codes)[is_mixed]
    return float(rows @ by_group[is_mixed] / rows.sum())


def log_loss(labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None) -> float:
    """Mean negative log likelihood in nats, ``-mean(y ln p + (1 - y) ln(1 - p))``, p clipped by ``LOG_LOSS_CLIP``.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], in [0, 1].
        groups: not used.

    Raises:
        InputError: malformed input.

    Example:
        >>> round(log_loss([1, 0], [0.5, 0.5]), 4)
        0.6931
    """
    is_positive, probability = _check(labels, probabilities)
    of_truth = np.where(is_positive, probability, 1 - probability)
    return float(-np.log(np.clip(of_truth, LOG_LOSS_CLIP, 1 - LOG_LOSS_CLIP)).mean())


def normalized_entropy(labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None) -> float:
    """Log loss relative to always answering the base rate (He et al. 2014, eq. 1): 1 is no better than that, 0 perfect.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], in [0, 1].
        groups: not used.

    Raises:
        InputError: malformed input, or labels of one class.

    Example:
        >>> round(normalized_entropy([1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]), 6)
        1.0
    """
    loss = log_loss(labels, probabilities)
    is_positive = np.asarray(labels) == 1
    _check_both_classes(is_positive, "normalized_entropy")
    rate = is_positive.mean()
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))


def ece(labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None) -> float:
    """Expected calibration error: row-weighted mean of ``|mean p - mean y|`` over the bins of ``reliability_curve``.

    Guo et al. 2017, eq. 3, with bins of equal frequency: clicks are rare, and equal widths would put all in one bin.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], in [0, 1].
        groups: not used.

    Raises:
        InputError: malformed input.

    Example:
        >>> round(ece([0, 1, 1, 1], [0.5, 0.5, 0.8, 0.8]), 6)
        0.1
    """
    curve = reliability_curve(labels, probabilities)
    return float(curve.count @ np.abs(curve.mean_probability - curve.mean_label) / curve.count.sum())


def calibration_ratio(labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None) -> float:
    """Clicks expected over clicks seen, ``sum p / sum y``: above 1 the model promises too much.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], in [0, 1].
        groups: not used.

    Raises:
        InputError: malformed input, or no positive label.

    Example:
        >>> calibration_ratio([0, 1, 0, 1], [0.5, 0.75, 0.25, 1.0])
        1.25
    """
    is_positive, probability = _check(labels, probabilities)
    if not is_positive.any():
        raise InputError("calibration_ratio needs a positive label", found="none", remedy="use more rows")
    return float(probability.sum() / is_positive.sum())


def brier(labels: ArrayLike, probabilities: ArrayLike, *, groups: ArrayLike | None = None) -> float:
    """Mean squared error of the probabilities, ``mean((p - y)^2)`` (Brier 1950, of one class).

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], in [0, 1].
        groups: not used.

    Raises:
        InputError: malformed input.

    Example:
        >>> brier([0, 1], [0.5, 1.0])
        0.125
    """
    is_positive, probability = _check(labels, probabilities)
    return float(np.square(probability - is_positive).mean())


METRICS: dict[str, Callable[..., float]] = {
    "auc": auc,
    "gauc": gauc,
    "logloss": log_loss,
    "normalized_entropy": normalized_entropy,
    "ece": ece,
    "calibration_ratio": calibration_ratio,
    "brier": brier,
}


def evaluate(labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike | None = None) -> dict[str, float]:
    """Every entry of ``METRICS``; without ``gauc`` where there are no groups, or none of them has both classes.

    Args:
        labels: [N], 0 or 1, both present.
        probabilities: [N], in [0, 1].
        groups: [N], any values that sort.

    Raises:
        InputError: malformed input, or labels of one class.

    Example:
        >>> figures = evaluate([0, 1, 1], [0.25, 0.5, 0.75])
        >>> list(figures)
        ['auc', 'logloss', 'normalized_entropy', 'ece', 'calibration_ratio', 'brier']
        >>> figures["auc"], figures["brier"]
        (1.0, 0.125)
    """
    is_positive, _ = _check(labels, probabilities)
    has_gauc = False
    if groups is not None:
        groups = _group_codes(groups, len(is_positive))
        rows, positives = np.bincount(groups), np.bincount(groups, weights=is_positive)
        has_gauc = bool(((positives > 0) & (positives < rows)).any())
    return {
        name: metric(labels, probabilities, groups=groups)
        for name, metric in METRICS.items()
        if metric is not gauc or has_gauc
    }


def roc_curve(labels: ArrayLike, probabilities: ArrayLike, max_points: int = 200) -> tuple[Floats, Floats]:
    """Points of the ROC curve from (0, 0) to (1, 1), evenly spread along it where it has more than ``max_points``.

    Args:
        labels: [N], 0 or 1, both present.
        probabilities: [N], or any finite scores.
        max_points: at least 2.

    Returns:
        False and true positive rates, each [at most max_points], rising.

    Raises:
        InputError: malformed input, labels of one class, or fewer than two points.

    Example:
        >>> false_rate, true_rate = roc_curve([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
        >>> false_rate.tolist(), true_rate.tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    is_positive, scores = _check(labels, probabilities, is_probability=False)
    _check_both_classes(is_positive, "roc_curve")
    if max_points < 2:
        raise InputError("max_points must be at least 2", found=repr(max_points), remedy="leave it out")
    runs = _tied_runs(is_positive, scores)
    true = np.concatenate([[0], np.cumsum(runs.positives[::-1])])
    false = np.concatenate([[0], np.cumsum((runs.rows - runs.positives)[::-1])])
    false_rate, true_rate = false / false[-1], true / true[-1]
    if len(false_rate) > max_points:
        keep = np.unique(np.searchsorted(false_rate + true_rate, np.linspace(0, 2, max_points)))
        false_rate, true_rate = false_rate[keep], true_rate[keep]
    return false_rate, true_rate


def reliability_curve(labels: ArrayLike, probabilities: ArrayLike, num_bins: int = 20) -> ReliabilityCurve:
    """Mean label against mean probability in bins of about equal frequency.

    Rows of equal probability always share a bin, that of their middle rank, so the curve does not depend on the order
    of the rows; bins that stay empty thereby are left out.

    Args:
        labels: [N], 0 or 1.
        probabilities: [N], in [0, 1].
        num_bins: at least 1.

    Raises:
        InputError: malformed input, or no bins.

    Example:
        >>> curve = reliability_curve([0, 0, 1, 1, 1], [0.1, 0.3, 0.3, 0.3, 0.9], num_bins=2)
        >>> curve.mean_probability.round(2).tolist(), curve.mean_label.tolist(), curve.count.tolist()
        ([0.1, 0.45], [0.0, 0.75], [1, 4])
    """
    is_positive, probability = _check(labels, probabilities)
    if num_bins < 1:
        raise InputError("num_bins must be at least 1", found=repr(num_bins), remedy="leave it out")
    runs = _tied_runs(is_positive, probability)
    twice_middle = 2 * np.cumsum(runs.rows) - runs.rows
    _, starts = np.unique(twice_middle * num_bins // (2 * len(probability)), return_index=True)
    count = np.add.reduceat(runs.rows, starts)
    mean_label = np.add.reduceat(runs.positives, starts) / count
    return ReliabilityCurve(np.add.reduceat(runs.score * runs.rows, starts) / count, mean_label, count)


def _tied_runs(is_positive: NDArray[np.bool_], scores: Floats, groups: Integers | None = None) -> _Runs:
    """Runs [R] of rows [N] with equal score and group."""
    order = np.argsort(scores)
    if groups is not None:
        order = order[np.argsort(groups[order], kind="stable")]  # three times as fast as lexsort
    codes = np.zeros(len(scores), np.int64) if groups is None else groups[order]
    sorted_scores = scores[order]
    is_start = np.ones(len(scores), bool)
    is_start[1:] = (sorted_scores[1:] != sorted_scores[:-1]) | (codes[1:] != codes[:-1])
    starts = np.flatnonzero(is_start)
    positives = np.add.reduceat(is_positive[order], starts, dtype=np.int64)
    return _Runs(sorted_scores[starts], positives, np.diff(starts, append=len(scores)), codes[starts])


def _auc_by_group(runs: _Runs) -> Floats:
    """AUC [G] of each group, NaN where it has one class."""
    negatives = runs.rows - runs.positives
    starts = np.flatnonzero(np.diff(runs.group, prepend=-1))
    num_positives, num_negatives = np.add.reduceat(runs.positives, starts), np.add.reduceat(negatives, starts)
    before_group = np.cumsum(num_negatives) - num_negatives
    below = np.cumsum(negatives) - negatives - before_group[runs.group]
    twice_wins = np.add.reduceat(runs.positives * (2 * below + negatives), starts)
    twice_pairs = 2 * num_positives * num_negatives
    return np.divide(twice_wins, twice_pairs, out=np.full(len(starts), np.nan), where=twice_pairs > 0)


def _group_codes(groups: ArrayLike, num_rows: int) -> Integers:
    """Groups [N] as numbers 0 ... G-1, every number in use."""
    values = np.asarray(groups)
    if values.shape != (num_rows,):
        raise InputError(
            f"groups must have shape [{num_rows}]", found=f"{list(values.shape)}", remedy="one group a row"
        )
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _check(
    labels: ArrayLike, probabilities: ArrayLike, is_probability: bool = True
) -> tuple[NDArray[np.bool_], Floats]:
    """(is positive [N], probabilities [N] as float64), or an ``InputError`` that names what is wrong."""
    y: NDArray[Any] = np.asarray(labels)
    p = np.asarray(probabilities, dtype=np.float64)
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


def _check_both_classes(is_positive: NDArray[np.bool_], name: str) -> None:
    if is_positive.all() or not is_positive.any():
        found = f"only {int(is_positive[0])} in {len(is_positive)} rows"
        raise InputError(f"{name} needs labels of both classes", found=found, remedy="use more rows or another split")
