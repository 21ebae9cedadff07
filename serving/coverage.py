"""How the values of scored rows met what training saw, and a line of warning where they are far from it.

A column that is written in another way than in training (`128.0` for `128`, `True` for `true`) has only unseen values:
its rows score without an error, and wrong.
"""

from collections.abc import Mapping
from typing import NamedTuple

from serving.bundle import Bundle
from serving.bundle.profile import DISTRIBUTIONS, read_distributions

FAR = 0.5
"""Difference of two shares from which one is far from the other."""
MIN_VALUES = 20
"""Values that are enough to judge a share by."""


class Coverage(NamedTuple):
    """How the values of a feature met what training saw; counts of several batches add up by `plus`."""

    num_examples: int
    missing: int
    """Examples without a value, as a dataset's `missing_rates` count them."""
    num_values: int
    """Values looked up: one for an example that has one, or its list's elements but null; 0 for a float column."""
    unseen: int
    """Values that certainly no training example had, as one of their rows was never read: all such values in a
    collisionless table, fewer where values share rows, none where the bundle does not say which rows were trained. In a
    pruned table, values of which no row is left."""

    def plus(self, other: "Coverage") -> "Coverage":
        """The counts of both."""
        return Coverage(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def missing_rate(self) -> float:
        """Share of the examples without a value."""
        return self.missing / self.num_examples if self.num_examples else 0.0

    @property
    def unseen_rate(self) -> float:
        """Share of the values that training did not see."""
        return self.unseen / self.num_values if self.num_values else 0.0


def add_coverage(total: Mapping[str, Coverage], more: Mapping[str, Coverage]) -> dict[str, Coverage]:
    """Counts of both by feature.

    >>> add_coverage({"a": Coverage(1, 0, 1, 1)}, {"a": Coverage(2, 1, 1, 0)})["a"].unseen_rate
    0.5
    """
    return {**total, **{name: total[name].plus(one) if name in total else one for name, one in more.items()}}


def training_unseen_rates(bundle: Bundle) -> dict[str, float]:
    """Share of the validation rows' values that training had not seen, by feature, as far as the bundle tells."""
    if DISTRIBUTIONS not in bundle.profile:
        return {}
    features = read_distributions(bundle.profile, str(bundle.path)).features
    return {name: feature.unseen for name, feature in features.items() if feature.unseen is not None}


def coverage_warnings(coverage: Mapping[str, Coverage], bundle: Bundle) -> list[str]:
    """A line for each feature whose share of unseen or of missing values is far above training's."""
    unseen, missing = training_unseen_rates(bundle), dict(bundle.profile.get("missing_rates", {}))
    lines: list[str] = []
    for name, one in coverage.items():
        rates = [
            ("unseen", one.num_values, one.unseen_rate, unseen.get(name, 0.0)),
            ("missing", one.num_examples, one.missing_rate, missing.get(name, 0.0)),
        ]
        for kind, count, rate, known in rates:
            if count >= MIN_VALUES and rate - known >= FAR:
                lines.append(
                    f"{name}: {rate:.1%} of the values are {kind}, {known:.1%} in training; "
                    "check how the column is written and typed"
                )
    return lines
