"""Coverage: counts the missing and unseen values of scored rows, and warns where they are far from training's.

A column that is written in another way than in training (`128.0` for `128`, `True` for `true`) has only unseen values:
its rows are scored without an error, but wrong.
"""

from collections.abc import Mapping
from typing import NamedTuple

from serving.bundle import Bundle
from serving.bundle.profile import DISTRIBUTIONS, read_distributions

FAR = 0.5
"""Least difference of two shares that are far from each other."""
MIN_VALUES = 20
"""Fewest values to judge a share by."""


class Coverage(NamedTuple):
    """Counts of a feature's missing and unseen values; `add_coverage` adds those of several batches."""

    num_examples: int
    missing: int
    """Examples without a value, as a dataset's `missing_rates` count them."""
    num_values: int
    """Values looked up: one per present value, or per list element that is not null; 0 for a float column."""
    unseen: int
    """Values that certainly no training example had, since one of their rows was never read. These are all unseen
    values of a collisionless table, fewer where values share rows, and none if the bundle does not say which rows were
    trained. In a pruned table, values of which no row is left."""

    @property
    def missing_rate(self) -> float:
        """Share of the examples without a value."""
        return self.missing / self.num_examples if self.num_examples else 0.0

    @property
    def unseen_rate(self) -> float:
        """Share of the values that training did not see."""
        return self.unseen / self.num_values if self.num_values else 0.0


def add_coverage(total: Mapping[str, Coverage], more: Mapping[str, Coverage]) -> dict[str, Coverage]:
    """Sum of two counts by feature.

    >>> add_coverage({"a": Coverage(1, 0, 1, 1)}, {"a": Coverage(2, 1, 1, 0)})["a"].unseen_rate
    0.5
    """
    pairs = {name: zip(total.get(name, Coverage(0, 0, 0, 0)), one, strict=True) for name, one in more.items()}
    return {**total, **{name: Coverage(*map(sum, counts)) for name, counts in pairs.items()}}


def training_unseen_rates(bundle: Bundle) -> dict[str, float]:
    """Share of the validation rows' values that training had not seen, by feature, as far as the bundle says."""
    if DISTRIBUTIONS not in bundle.profile:
        return {}
    features = read_distributions(bundle.profile, str(bundle.path)).features
    return {name: feature.unseen for name, feature in features.items() if feature.unseen is not None}


def coverage_warnings(coverage: Mapping[str, Coverage], bundle: Bundle) -> list[str]:
    """One line per feature whose share of unseen or missing values is far above training's."""
    unseen, missing = training_unseen_rates(bundle), dict(bundle.profile.get("missing_rates", {}))
    lines: list[str] = []
    for name, one in coverage.items():
        rates = [
            ("unseen", one.num_values, one.unseen_rate, unseen.get(name, 0.0)),
            ("missing", one.num_examples, one.missing_rate, missing.get(name, 0.0)),
        ]
        for kind, count, rate, known in rates:
            if count >= MIN_VALUES and rate - known >= FAR:
                found = f"{name}: {rate:.1%} of the values are {kind}, {known:.1%} in training"
                lines.append(f"{found}; check how the column is written and typed")
    return lines
