"""The training profile of a bundle: a small, private summary of how features and scores were distributed.

A token is reduced to one of 1,024 hash buckets, and a bucket to how common it was: buckets with fewer than `MIN_ROWS`
values, the empty ones included, are one bin, "rare or new"; the others are sorted into ten bins of about equal weight,
from the rarest to the most common. Floats are in at most ten bins of equal frequency with at least `MIN_ROWS` values
each, whose edges are rounded. So the profile takes about 1.3 kB per feature, and no part of it describes fewer than
`MIN_ROWS` values.

N rows or values, K bins.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from features.encode import EncodedBatch
from features.errors import InputError
from features.hashing import MISSING_TOKEN, Tokens, hash_text, mix64
from features.registry import FeatureRegistry, describe_validation_error
from serving.bundle.manifest import PriorCorrection, Strict

DISTRIBUTIONS = "distributions"
"""Key of profile.json."""
NUM_BUCKETS = 1024
NUM_BINS = 10
MIN_ROWS = 10
MAX_SAMPLE = 200_000
"""Most floats that are kept to fit the quantiles."""
_DIGITS = "0123456789a"
_SALT = np.uint64(hash_text("muxrec training profile"))

Numbers = npt.NDArray[np.floating[Any]]
Counts = npt.NDArray[np.float64]


class FloatBins(Strict):
    """Bins of a number: below the first edge, between two, from the last one on."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    """Shares of the missing values, then of each bin [1 + edges + 1]."""
    num_values: int = Field(ge=0)
    """Effective sample size (Kish 1965): the number of values, where all have the same weight."""

    def counts(self, values: Numbers, num_missing: float = 0.0, weights: Counts | None = None) -> Counts:
        """Missing values and values [N] by bin, of weight 1 by default; a missing value is among the values as 0."""
        bins = np.searchsorted(np.array(self.edges), values, side="right")
        found = np.bincount(bins, weights=weights, minlength=len(self.edges) + 1).astype(np.float64)
        of_zero = int(np.searchsorted(np.array(self.edges), 0.0, side="right"))
        found[of_zero] = max(0.0, found[of_zero] - num_missing)
        return np.concatenate([[float(num_missing)], found])

    @property
    def labels(self) -> list[str]:
        """Names of the bins, for people."""
        return ["missing", *(range_of(self.edges, number) for number in range(len(self.edges) + 1))]


class TokenBins(Strict):
    """Bins of a token by how common its bucket was in training."""

    bin_of_bucket: str = Field(pattern=f"^[0-9a]{{{NUM_BUCKETS}}}$")
    """One digit per bucket: 0 is rare or new, then come the bins from the rarest to the most common."""
    shares: tuple[float, ...]
    """Shares of the missing values, then of each bin [2 ... 12]."""
    num_values: int = Field(ge=0)
    """Effective sample size (Kish 1965): the number of values, where all have the same weight."""

    def counts(self, tokens: Tokens) -> Counts:
        """Missing values and tokens [N] by bin."""
        by_bucket, missing = _by_bucket(tokens, None)
        found = np.bincount(self._bins(), weights=by_bucket, minlength=len(self.shares) - 1)
        return np.concatenate([[missing], found])

    def bounds(self) -> tuple[Counts, Counts]:
        """Bounds of the share that each bucket [1024] had in training.

        Bins are filled in order of the share, so that of a bucket is above the mean of the bin before, and below the
        mean of the next; it is exact for a bin with one bucket.
        """
        bins, shares = self._bins(), np.array(self.shares[1:])
        sizes = np.bincount(bins, minlength=len(shares))
        means = shares / np.maximum(sizes, 1)
        low = np.concatenate([[0.0, 0.0], means[1:-1]])[: len(shares)]
        above = np.append(means[1:], 1.0)
        above[0] = max(above[0], MIN_ROWS / max(self.num_values, 1)) if len(shares) > 1 else 1.0
        high = np.maximum(np.minimum(shares - (sizes - 1) * low, above), low)
        known = sizes == 1
        low[known] = high[known] = shares[known]
        low[0] = 0.0
        return low[bins], high[bins]

    def _bins(self) -> npt.NDArray[np.int64]:
        table = np.frombuffer(self.bin_of_bucket.encode(), dtype=np.uint8).astype(np.int64)
        return np.where(table >= ord("a"), table - ord("a") + 10, table - ord("0"))

    @property
    def labels(self) -> list[str]:
        """Names of the bins, for people."""
        names = [f"common {k}" for k in range(1, len(self.shares) - 1)]
        if names:
            names[0], names[-1] = "least common", "most common"
        return ["missing", "rare or new", *names]


class FeatureProfile(Strict):
    """One feature of the training rows."""

    floats: FloatBins | None = None
    tokens: TokenBins | None = None
    unseen: float | None = None
    """Share of the validation rows' values that training had not seen; None if it was not counted."""

    @property
    def bins(self) -> FloatBins | TokenBins:
        """The bins of the feature, of floats or of tokens."""
        found = self.tokens if self.floats is None else self.floats
        assert found is not None
        return found


class Distributions(Strict):
    """The features of the training rows, and the scores of the validation rows."""

    features: dict[str, FeatureProfile]
    score: FloatBins | None = None

    def corrected(self, correction: PriorCorrection | None) -> "Distributions":
        """The same with the scores of a bundle with this prior correction, which keeps their order."""
        if correction is None or self.score is None:
            return self
        edges = tuple(_rounded(correction.apply(np.array(self.score.edges))))
        return self.model_copy(update={"score": self.score.model_copy(update={"edges": edges})})


def read_distributions(profile: Mapping[str, Any], where: str) -> Distributions:
    """The distributions in profile.json; raises `InputError` for a bundle that was exported without them."""
    if DISTRIBUTIONS not in profile:
        remedy = "train again, and export that: only a run of this version keeps one"
        raise InputError(f"{where}: expected a training profile", found="a bundle without one", remedy=remedy)
    try:
        return Distributions.model_validate(profile[DISTRIBUTIONS])
    except ValidationError as error:
        found = describe_validation_error(error, Distributions)
        raise InputError(f"{where}: expected a training profile", found=found, remedy="export it again") from None


class ProfileBuilder:
    """Counts encoded training rows; memory does not grow with them.

    >>> registry = FeatureRegistry.of(features={"user": "categorical"})
    >>> builder = ProfileBuilder(registry, num_rows=20)
    >>> tokens = {"user": np.full(20, 7, dtype=np.uint64)}
    >>> builder.add(EncodedBatch(num_examples=20, tokens=tokens, lengths={}, dense=np.zeros((20, 0), np.float32)))
    >>> builder.finish({"user": 0.0})["user"].bins.shares
    (0.0, 0.0, 1.0)
    """

    def __init__(self, registry: FeatureRegistry, num_rows: int) -> None:
        self._registry = registry
        self._tokens = {feature.name: _TokenCounts() for feature in registry.token_features}
        self._step = max(1, -(-num_rows // MAX_SAMPLE))
        self._floats: list[npt.NDArray[np.float32]] = []
        self._weights: list[Counts] = []
        self._seen = 0

    def add(self, batch: EncodedBatch, weights: Counts | None = None) -> None:
        """Count some rows; `weights` [B] say how many rows each counts for, by default 1."""
        weights = np.ones(batch.num_examples) if weights is None else weights
        for name, counts in self._tokens.items():
            lengths = batch.lengths.get(name)
            counts.add(batch.tokens[name], weights if lengths is None else np.repeat(weights, lengths))
        # Every step-th of all rows, wherever a batch begins.
        sampled = slice(-self._seen % self._step, None, self._step)
        self._floats.append(batch.dense[sampled].copy())
        self._weights.append(weights[sampled].copy())
        self._seen += batch.num_examples

    def finish(self, missing_rates: Mapping[str, float]) -> dict[str, FeatureProfile]:
        """Profiles in registry order; `missing_rates` of the float columns, where a missing value is 0."""
        profiles = {name: counts.profile() for name, counts in self._tokens.items()}
        if self._registry.dense_features:
            floats, weights = np.concatenate(self._floats), np.concatenate(self._weights)
            for column, feature in enumerate(self._registry.dense_features):
                bins = float_bins(floats[:, column], missing_rates.get(feature.name, 0.0), weights)
                profiles[feature.name] = FeatureProfile(floats=bins)
        return {feature.name: profiles[feature.name] for feature in self._registry.features}


def float_bins(values: Numbers, missing_rate: float = 0.0, weights: Counts | None = None) -> FloatBins:
    """Bins of equal weight of values [N], fewer where many are equal or N is small; edges have four digits.

    `missing_rate` is the share of values [N] that are missing ones, and 0 therefore; `weights` [N] are 1 by default.

    >>> float_bins(np.arange(1000) / 1000).edges[:3]
    (0.1, 0.2, 0.3)
    """
    weights = np.ones(len(values)) if weights is None else weights
    total = float(weights.sum())
    edges: list[float] = []
    if len(values):
        # Few enough that each bin has MIN_ROWS, even of the heaviest rows.
        num_bins = max(1, min(NUM_BINS, int(total / weights.max()) // MIN_ROWS))
        order = np.argsort(values, kind="stable")
        places = np.searchsorted(np.cumsum(weights[order]), np.arange(1, num_bins) * total / num_bins, side="right")
        quantiles = values[order][np.minimum(places, len(values) - 1)]
        edges = sorted({edge for edge in _rounded(quantiles) if edge > values.min()})
    bins = FloatBins(edges=tuple(edges), shares=(), num_values=_num_equal(total, float((weights**2).sum())))
    # Which of the zeros are missing values is not known here, so they get the mean weight of a zero.
    of_zeros = weights[values == 0]
    missing = missing_rate * len(values) * float(of_zeros.mean()) if len(of_zeros) else 0.0
    return bins.model_copy(update={"shares": _shares(bins.counts(values, missing, weights))})


class _TokenCounts:
    """Number and weight of one token feature's values by bucket [1024]."""

    def __init__(self) -> None:
        self.number, self.weight = np.zeros(NUM_BUCKETS), np.zeros(NUM_BUCKETS)
        self.missing = self.squares = 0.0

    def add(self, tokens: Tokens, weights: Counts) -> None:
        """Count tokens of these weights [N]."""
        self.number += _by_bucket(tokens, None)[0]
        by_bucket, missing = _by_bucket(tokens, weights)
        self.weight += by_bucket
        self.missing += missing
        self.squares += float((weights**2).sum())

    def profile(self) -> FeatureProfile:
        """Sort the buckets into bins; a bucket is rare by the number of its values, not by their weight."""
        is_common = self.number >= MIN_ROWS
        bins = np.zeros(NUM_BUCKETS, dtype=np.int64)
        order = np.flatnonzero(is_common)[np.argsort(self.weight[is_common], kind="stable")]
        weights = self.weight[order]
        middles = np.cumsum(weights) - weights / 2
        places = np.minimum((NUM_BINS * middles / max(weights.sum(), 1.0)).astype(np.int64), NUM_BINS - 1)
        bins[order] = 1 + np.unique(places, return_inverse=True)[1]  # a bin that got no bucket is left out
        by_bin = np.bincount(bins, weights=self.weight)
        num_values = _num_equal(float(self.weight.sum()) + self.missing, self.squares)
        shares, digits = _shares(np.concatenate([[self.missing], by_bin])), "".join(_DIGITS[k] for k in bins)
        return FeatureProfile(tokens=TokenBins(bin_of_bucket=digits, shares=shares, num_values=num_values))


def bucket_of(tokens: Tokens) -> npt.NDArray[np.int64]:
    """The hash bucket of each token [N]."""
    return (mix64(tokens ^ _SALT) >> np.uint64(64 - 10)).astype(np.int64)


def range_of(edges: Sequence[float], number: int) -> str:
    """Name of a bin between edges, by its number.

    >>> range_of((1.0, 2.5), 0), range_of((1.0, 2.5), 1), range_of((1.0, 2.5), 2), range_of((), 0)
    ('below 1', '1 to 2.5', 'from 2.5', 'any')
    """
    if not edges:
        return "any"
    if number == 0:
        return f"below {edges[0]:g}"
    return f"from {edges[-1]:g}" if number == len(edges) else f"{edges[number - 1]:g} to {edges[number]:g}"


def _by_bucket(tokens: Tokens, weights: Counts | None) -> tuple[Counts, float]:
    """Present tokens [N] by bucket [1024], and the missing ones; counted by weights [N], by default 1."""
    is_present = tokens != np.uint64(MISSING_TOKEN)
    buckets = bucket_of(tokens[is_present])
    of_present = None if weights is None else weights[is_present]
    missing = float((~is_present).sum() if weights is None else weights[~is_present].sum())
    return np.bincount(buckets, weights=of_present, minlength=NUM_BUCKETS).astype(np.float64), missing


def _num_equal(total: float, squares: float) -> int:
    """Effective sample size of weights with this sum and this sum of squares.

    >>> _num_equal(3.0, 3.0), _num_equal(1.0 + 10.0, 1.0 + 100.0)
    (3, 1)
    """
    return round(total**2 / squares) if squares else 0


def _shares(counts: Counts) -> tuple[float, ...]:
    return tuple(round(float(count), 6) for count in counts / max(counts.sum(), 1.0))


def _rounded(values: Iterable[float]) -> list[float]:
    """Numbers to four digits, so that the profile holds no exact values."""
    return [float(f"{float(value):.4g}") for value in values if math.isfinite(value)]
