"""Finds the values that moved: compares today's shares with the training profile, and takes names from today's rows.

The profile has only the bin of each hash bucket. But bins are filled from the rarest bucket to the most common one, so
the share that a bucket had is between the means of the neighbouring bins. A bucket is named after its most common value
in today's rows, and has no name without rows. Of a number, the ranges are known.

N tokens, K bins.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encode import EncodedBatch
from features.hashing import MISSING_TOKEN
from features.spec import AnyFeature, CategoricalList, Numeric
from serving.bundle.profile import MIN_ROWS, NUM_BUCKETS, Counts, FloatBins, TokenBins, bucket_of, range_of

MAX_SHOWN = 5
LEAST_SHARE = 0.005
"""Smaller moves are not shown."""
SIGMAS = 4.0
"""Nor are moves of fewer standard deviations: chance moves one of 1,000 buckets so far in one of 16 reports."""
SAMPLE = 2048
"""Values of a chunk that are searched for names; enough to find all values with a share that matters."""
NOT_HERE, NOT_NAMED = "(a value that no row has)", "(a value of few rows)"
CROWDED = 0.1
"""Share of used buckets above which a bucket that lost rows may have lost those of a value that is now absent."""
ALONE = 0.9
"""Share of a bucket's rows above which its most common value names it alone."""


class Moved(NamedTuple):
    """A value, or a range, whose share differs today from that in training."""

    value: str
    now: float
    """Its share of today's values, the missing ones included."""
    low: float
    high: float
    """`low` and `high` bound its share in training; they are equal if it is known exactly."""


class BucketNames:
    """Today's values of a token feature by bucket [1024]: their number, and the most common one of a sample."""

    def __init__(self, feature: AnyFeature) -> None:
        self._feature = feature
        self.counts = np.zeros(NUM_BUCKETS)
        self.names = [""] * NUM_BUCKETS
        self._most = np.zeros(NUM_BUCKETS)
        self._random = np.random.default_rng(0)

    def add(self, raw: pl.DataFrame, batch: EncodedBatch) -> None:
        """Count a chunk of raw rows and their encoded batch, and name the common values of a sample."""
        tokens = batch.tokens[self._feature.name]
        places = np.flatnonzero(tokens != np.uint64(MISSING_TOKEN))
        if not len(places):
            return
        self.counts += np.bincount(bucket_of(tokens[places]), minlength=NUM_BUCKETS)
        if len(places) > SAMPLE:
            places = places[np.sort(self._random.choice(len(places), SAMPLE, replace=False))]
        values, first, counts = np.unique(tokens[places], return_index=True, return_counts=True)
        buckets = bucket_of(values)
        in_bucket = np.bincount(buckets, weights=counts, minlength=NUM_BUCKETS)
        order = np.lexsort((counts, buckets))  # the last of each bucket is its most common value
        most = order[np.flatnonzero(np.diff(buckets[order], append=-1))]
        better = most[counts[most] > self._most[buckets[most]]]
        named = zip(buckets[better], counts[better], self._values(raw, batch, places[first[better]]), strict=True)
        for bucket, count, value in named:
            self._most[bucket] = count
            self.names[bucket] = value if count >= ALONE * in_bucket[bucket] else f"{value} and others of its hash"

    def _values(self, raw: pl.DataFrame, batch: EncodedBatch, places: npt.NDArray[np.int64]) -> list[str]:
        """The raw values at these places among a feature's tokens."""
        feature, column = self._feature, raw[self._feature.name]
        if isinstance(feature, CategoricalList):
            ends = np.cumsum(batch.lengths[feature.name])
            rows = np.searchsorted(ends, places, side="right")
            offsets = places - (ends[rows] - batch.lengths[feature.name][rows])
            lists = feature.parse(column.gather(rows)).to_list()
            return [_of_list(one, int(offset), feature) for one, offset in zip(lists, offsets, strict=True)]
        values = feature.parse(column.gather(places)).to_list()
        return [_range(feature, float(one)) if isinstance(feature, Numeric) else _text(one) for one in values]


def moved_tokens(bins: TokenBins, names: BucketNames, num_missing: float) -> list[Moved]:
    """The buckets that moved most, the missing value among them."""
    total = max(float(names.counts.sum()) + num_missing, 1.0)
    is_crowded = bool((names.counts > 0).mean() > CROWDED)
    low, high = bins.bounds()
    known = zip(names.names, names.counts.tolist(), low.tolist(), high.tolist(), strict=True)
    found: list[Moved] = []
    for name, count, least, most in known:
        found.append(Moved(_name(name, count, count < least * total and is_crowded), count / total, least, most))
    found.append(Moved("(missing)", num_missing / total, bins.shares[0], bins.shares[0]))
    return _most_moved(found, bins.num_values, total)


def _name(name: str, count: float, may_be_another: bool) -> str:
    """Name of a bucket; as in the profile, values of few rows are not named."""
    if not count:
        return NOT_HERE
    if count < MIN_ROWS or not name:
        return NOT_NAMED
    return f"{name}, or another of its hash" if may_be_another else name


def moved_floats(bins: FloatBins, labels: Sequence[str], counts: Counts) -> list[Moved]:
    """The bins [K] of a number that moved most."""
    total = max(float(counts.sum()), 1.0)
    known = zip(labels, counts.tolist(), bins.shares, strict=True)
    found = [Moved(label, count / total, share, share) for label, count, share in known]
    return _most_moved(found, bins.num_values, total)


def _most_moved(found: Sequence[Moved], num_expected: float, num_actual: float) -> list[Moved]:
    moves = sorted(((_move(one), one) for one in found), key=lambda pair: -pair[0])
    noise = 1 / max(num_expected, 1.0) + 1 / num_actual
    most_moved: list[Moved] = []
    for move, one in moves[:MAX_SHOWN]:
        # With one more row on either side (Laplace), as one row proves nothing.
        shares = [(share * num_actual + 1) / (num_actual + 2) for share in (one.now, min(one.high, 1.0))]
        deviation = math.sqrt(noise * max(share * (1 - share) for share in shares))
        if move >= max(LEAST_SHARE, SIGMAS * deviation):
            most_moved.append(one)
    return most_moved


def _move(one: Moved) -> float:
    return max(one.low - one.now, one.now - one.high, 0.0)


def _of_list(value: Any, offset: int, feature: CategoricalList) -> str:
    values = value if isinstance(value, list) else str(value).split(feature.separator)
    return _text(values[offset])


def _text(value: Any) -> str:
    """A categorical value as text, as it is hashed."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _range(feature: Numeric, value: float) -> str:
    """The range of a number that became a token."""
    bucket = int(feature.buckets(np.array([value]))[0])
    if feature.transform == "bucketize":
        assert feature.fitted is not None
        return range_of(feature.fitted.boundaries, bucket)
    if value <= 2:
        return str(bucket)
    return f"{max(2.0, math.exp(math.sqrt(bucket))):.4g} to {math.exp(math.sqrt(bucket + 1)):.4g}"


def raw_edges(feature: Numeric, edges: Sequence[float]) -> tuple[float, ...]:
    """Raw values of the edges of a transformed number, in as few digits as keep them distinct.

    >>> raw_edges(Numeric(name="price", transform="log1p"), (-0.6931, 0.0, 1.0986))
    (-0.9999, 0.0, 2.0)
    """
    values = np.array(edges, dtype=np.float64)
    if feature.transform == "log1p":
        values = np.copysign(np.expm1(np.abs(values)), values)
    elif feature.transform == "standardize" and feature.fitted is not None:
        values = values * (feature.fitted.std or 1.0) + feature.fitted.mean
    choices = (tuple(float(f"{value:.{digits}g}") for value in values) for digits in range(4, 16))
    return next((rounded for rounded in choices if len(set(rounded)) == len(rounded)), tuple(values.tolist()))
