"""Statistics of numeric columns in one pass over the training rows.

Mean and variance are merged pairwise over chunks (Chan, Golub & LeVeque 1983); quantiles come from a seeded sample.
"""

from collections.abc import Callable, Iterable

import numpy as np
import polars as pl

from features.arrays import Float64s
from features.errors import InputError
from features.hashing import hash_text
from features.registry import FeatureRegistry
from features.spec import Numeric, NumericFit

RESERVOIR_SIZE = 200_000


class NumericSummary:
    """Running mean, variance and uniform sample of a column.

    >>> summary = NumericSummary(seed=0)
    >>> summary.add(np.array([1.0, 2.0])); summary.add(np.array([3.0, 6.0]))
    >>> summary.mean, round(summary.std, 6)
    (3.0, 1.870829)
    """

    def __init__(self, seed: int) -> None:
        self.count, self.mean, self.sum_of_squares = 0, 0.0, 0.0
        self.low, self.high = np.inf, -np.inf
        self.sample = np.empty(0, dtype=np.float64)
        self._priority = np.empty(0, dtype=np.float64)
        self._random = np.random.default_rng(seed)

    def add(self, values: Float64s) -> None:
        """Add values [N], none of them missing."""
        if not len(values):
            return
        count, mean = len(values), float(values.mean())
        total = self.count + count
        delta = mean - self.mean
        self.sum_of_squares += float(((values - mean) ** 2).sum()) + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        # The values with the smallest random priorities are a uniform sample of any stream.
        priority = np.concatenate([self._priority, self._random.random(count)])
        pool = np.concatenate([self.sample, values])
        if len(pool) > RESERVOIR_SIZE:
            kept = np.sort(np.argpartition(priority, RESERVOIR_SIZE)[:RESERVOIR_SIZE])
            pool, priority = pool[kept], priority[kept]
        self.sample, self._priority = pool, priority

    @property
    def std(self) -> float:
        """Population standard deviation; 0 without values or for equal ones."""
        # Equal values may have a rounded mean, and then the squares do not add up to 0.
        return float(np.sqrt(self.sum_of_squares / self.count)) if self.low < self.high else 0.0

    def boundaries(self, num_buckets: int) -> tuple[float, ...]:
        """Increasing inner edges of equal-frequency buckets; one bucket per value if there are few values.

        >>> summary = NumericSummary(seed=0)
        >>> summary.add(np.array([0.0] * 99 + [7.0]))
        >>> summary.boundaries(4)
        (7.0,)
        """
        edges = values = np.unique(self.sample)
        if len(values) > num_buckets:
            edges = np.unique(np.quantile(self.sample, np.arange(1, num_buckets) / num_buckets, method="lower"))
            if edges[-1] == values[0]:
                edges = values[1:2]  # nearly all are equal: separate the others from them
        return tuple(float(edge) for edge in edges if edge > self.low)


def fit_registry(registry: FeatureRegistry, read_train: Callable[[], Iterable[pl.DataFrame]]) -> FeatureRegistry:
    """The registry with statistics for every numeric feature that needs them; at most one pass.

    Raises `InputError` for a column of another type or without a value, and if there are no rows.
    """
    unfitted = [feature for feature in registry.features if isinstance(feature, Numeric) and feature.needs_fit]
    if not unfitted:
        return registry
    # Seeded by the key, not the position: adding a feature does not change the others' edges.
    summaries = {feature.name: NumericSummary(seed=hash_text(feature.stable_key)) for feature in unfitted}
    num_rows = 0
    for raw in read_train():
        num_rows += raw.height
        for feature in unfitted:
            column = feature.parse(raw[feature.name])
            feature.check(column)
            summaries[feature.name].add(column.cast(pl.Float64).fill_nan(None).drop_nulls().to_numpy())
    if num_rows == 0:
        raise InputError("split 'train': expected rows", found="none", remedy="check the input files")
    fitted: dict[str, Numeric] = {}
    for feature in unfitted:
        summary = summaries[feature.name]
        if not summary.count:
            remedy = "remove it from the registry: it has no information"
            raise InputError(f"column {feature.name!r}: expected numbers", found="no value in train", remedy=remedy)
        edges = summary.boundaries(feature.num_buckets) if feature.transform == "bucketize" else ()
        fit = NumericFit(mean=summary.mean, std=summary.std, boundaries=edges)
        fitted[feature.name] = feature.model_copy(update={"fitted": fit})
    return registry.with_settings(features=[fitted.get(feature.name, feature) for feature in registry.features])
