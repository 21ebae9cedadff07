"""Target statistics: for each value of a token feature a smoothed rate of positives and a count, as float columns.

A training row must not see its own label. So rows are divided into folds by the hash of their tokens and floats, and a
row's columns come from the other folds: equal rows share a fold, and a row's columns depend on nothing but the row. All
other rows see the whole of train (Micci-Barreca 2001, out of fold).

B examples, V values of one feature, F token features.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from features.arrays import Float32s, Float64s, Int64s
from features.encode import EncodedBatch
from features.errors import InputError
from features.hashing import Tokens, hash_text, mix64
from recsys.dataset import Split
from serving.bundle.target_statistics import TargetStatistics, ValueColumns

NUM_FOLDS = 10
STRENGTHS = 10.0 ** np.arange(-0.5, 6.01, 0.25)
"""Weights of the prior among which a feature's is chosen."""
CONSTANT_STD = 1e-6
"""A column of a smaller standard deviation is a constant, rounded; the network cannot learn from it, so it is 0."""
MIN_STD = 0.1
"""Columns are divided by no less than this: smaller differences of log odds or log counts are mostly chance."""

_FOLD_KEYS: Tokens = mix64(np.arange(1, NUM_FOLDS + 1, dtype=np.uint64))


def value_columns(amounts: Float64s, positives: Float64s, base: float, strength: float) -> Float64s:
    """Columns [V, 2] of values: the log odds of the smoothed rate over those of `base`, and log(1 + amount).

    `amounts` and `positives` [V] are summed example weights; `strength` is the weight of the prior.

    >>> value_columns(np.array([0.0, 6.0]), np.array([0.0, 6.0]), 0.5, 2.0).round(3).tolist()
    [[0.0, 0.0], [1.946, 1.946]]
    """
    rates = np.zeros_like(amounts)
    if 0 < base < 1:
        prior = strength * base, strength * (1 - base)
        rates = np.log(positives + prior[0]) - np.log(amounts - positives + prior[1]) - np.log(prior[0] / prior[1])
    return np.stack([rates, np.log1p(amounts)], axis=1)


def strength_of(amounts: Float64s, positives: Float64s, base: float) -> float:
    """The weight of the prior under which the values [V] are likeliest: empirical Bayes, beta-binomial."""
    from scipy.special import betaln  # takes longer to import than all of this to run

    if not 0 < base < 1:
        return 1.0
    pairs, repeats = np.unique(amounts + 1j * positives, return_counts=True)  # many values have equal counts
    amounts, positives = pairs.real, pairs.imag
    logs = [
        repeats
        @ (betaln(positives + m * base, amounts - positives + m * (1 - base)) - betaln(m * base, m * (1 - base)))
        for m in STRENGTHS
    ]
    return float(STRENGTHS[np.argmax(logs)])


class FittedStatistics(NamedTuple):
    """The statistics of a run."""

    totals: TargetStatistics
    """Of all training rows."""
    out_of_fold: TargetStatistics | None = None
    """By value and fold, without the fold; None for a run that was read from its directory, which does not train."""

    def columns(self, batch: EncodedBatch, *, is_training: bool) -> Float32s:
        """Float columns [B, 2F] of a batch; `is_training`: of training rows, each without its own fold."""
        if not is_training:
            return self.totals.columns(batch)
        assert self.out_of_fold is not None
        return self.out_of_fold.columns(_keyed_by_fold(batch))


def column_names(feature: str) -> tuple[str, str]:
    """Names of a feature's columns; no feature has such a name, as a tab is not printable.

    >>> column_names("user")
    ('user\\trate', 'user\\tcount')
    """
    return f"{feature}\trate", f"{feature}\tcount"


def fit_target_statistics(train: Split) -> FittedStatistics:
    """The statistics of a split, from two passes over it; raises `InputError` if it has no token feature."""
    if not train.registry.token_features:
        remedy = "leave target_statistics out"
        raise InputError("target_statistics need a categorical feature", found="numeric ones alone", remedy=remedy)
    counts: dict[str, list[_Counts]] = {feature.name: [_Counts.of([])] for feature in train.registry.token_features}
    amount = positive = 0.0
    for batch, labels, weights in train.labelled_tokens():
        folds, weights = _folds(batch), weights.astype(np.float64)
        amount, positive = amount + weights.sum(), positive + (weights * labels).sum()
        for name, parts in counts.items():
            columns = [_of_tokens(batch, name, one) for one in (folds, weights, weights * labels)]
            parts.append(_Counts.of([_Counts(batch.tokens[name], *columns)]))
            if sum(len(part.tokens) for part in parts[1:]) > len(parts[0].tokens):  # merged when they have doubled
                counts[name] = [_Counts.of(parts)]
    base = float(positive / amount)
    both = {name: _Counts.of(parts).value_columns(base) for name, parts in counts.items()}
    totals, out_of_fold = (TargetStatistics({name: pair[k] for name, pair in both.items()}) for k in (0, 1))
    mean, std = _moments(out_of_fold.columns(_keyed_by_fold(batch)) for batch in train.tokens())
    return FittedStatistics(_standardized(totals, mean, std), _standardized(out_of_fold, mean, std))


class _Counts(NamedTuple):
    """Sums per (value, fold) pair of one feature, [pairs] each."""

    tokens: Tokens
    folds: Int64s
    amounts: Float64s
    positives: Float64s

    @staticmethod
    def of(parts: "list[_Counts]") -> "_Counts":
        """The sums over all parts, by increasing value, then by fold."""
        empty = _Counts(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
        tokens, folds, amounts, positives = map(np.concatenate, zip(empty, *parts, strict=True))
        values, numbers = np.unique(tokens, return_inverse=True)
        pairs, places = np.unique(numbers * NUM_FOLDS + folds, return_inverse=True)
        sums = (_sums(places, column) for column in (amounts, positives))
        return _Counts(values[pairs // NUM_FOLDS], pairs % NUM_FOLDS, *sums)

    def value_columns(self, base: float) -> tuple[ValueColumns, ValueColumns]:
        """Columns of each value, and those of each pair, made from the value's other folds."""
        values, numbers = np.unique(self.tokens, return_inverse=True)
        amounts, positives = (_sums(numbers, column) for column in (self.amounts, self.positives))
        strength = strength_of(amounts, positives, base)
        # Other folds are nine tenths of the rows; scaled to all of them, so that columns do not shift after training.
        scale = NUM_FOLDS / (NUM_FOLDS - 1)
        others = np.maximum(amounts[numbers] - self.amounts, 0) * scale
        other_positives = np.clip((positives[numbers] - self.positives) * scale, 0, others)
        keys = self.tokens ^ _FOLD_KEYS[self.folds]
        order = np.argsort(keys)
        columns = value_columns(others, other_positives, base, strength)[order]
        first = np.concatenate([value_columns(np.zeros(1), np.zeros(1), base, strength), np.zeros((1, 2))])
        total = ValueColumns(values, np.concatenate([first, value_columns(amounts, positives, base, strength)]))
        return total, ValueColumns(keys[order], np.concatenate([first, columns]))


def _sums(places: Int64s, column: Float64s) -> Float64s:
    return np.bincount(places, weights=column).astype(np.float64)


def _folds(batch: EncodedBatch) -> Int64s:
    """Fold of each example [B]: the hash of all its tokens and floats, whatever the order of tokens within a list."""
    hashes = np.zeros(batch.num_examples, dtype=np.uint64)
    for name, tokens in batch.tokens.items():
        mixed = mix64(tokens ^ np.uint64(hash_text(name)))
        if name in batch.lengths:
            sums, ends = np.concatenate([np.zeros(1, np.uint64), mixed.cumsum()]), batch.lengths[name].cumsum()
            mixed = sums[ends] - sums[ends - batch.lengths[name]]  # modulo 2^64, as all sums here
        hashes += mixed
    for number, column in enumerate(batch.dense.T):
        hashes += mix64(column.copy().view(np.uint32) ^ np.uint64(hash_text(str(number))))
    return (mix64(hashes) % NUM_FOLDS).astype(np.int64)


def _of_tokens(batch: EncodedBatch, name: str, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A column of examples [B], once for each token of a feature."""
    return np.repeat(column, batch.lengths[name]) if name in batch.lengths else column


def _keyed_by_fold(batch: EncodedBatch) -> EncodedBatch:
    """The batch with each token replaced by the key of its pair of value and fold."""
    keys = _FOLD_KEYS[_folds(batch)]
    return replace(batch, tokens={name: own ^ _of_tokens(batch, name, keys) for name, own in batch.tokens.items()})


def _moments(parts: Iterator[Float32s]) -> tuple[Float64s, Float64s]:
    """Mean and standard deviation of each column over all parts; infinite for a constant (Chan et al. 1979)."""
    num_rows, mean, squares = 0, np.zeros(0), np.zeros(0)
    for part in parts:
        columns = part.astype(np.float64)
        own, before, num_rows = columns.mean(axis=0), num_rows, num_rows + len(part)
        if not before:
            mean, squares = np.zeros_like(own), np.zeros_like(own)
        squares += ((columns - own) ** 2).sum(axis=0) + (own - mean) ** 2 * (before * len(part) / num_rows)
        mean += (own - mean) * (len(part) / num_rows)
    std = np.sqrt(squares / max(num_rows, 1))
    return mean, np.where(std < CONSTANT_STD, np.inf, np.maximum(std, MIN_STD))


def _standardized(statistics: TargetStatistics, mean: Float64s, std: Float64s) -> TargetStatistics:
    found = {}
    for (name, one), own, scale in zip(
        statistics.features.items(), mean.reshape(-1, 2), std.reshape(-1, 2), strict=True
    ):
        found[name] = ValueColumns(one.tokens, ((one.columns - own) / scale).astype(np.float32))
    return TargetStatistics(found)
