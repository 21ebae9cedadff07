"""Synthetic requests for `benchmarks.serve`, shaped like the rows of two data sets; torch is not imported.

B rows of a request.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from data.synthetic import power_law
from features.feature_types import AnyFeature
from features.registry import FeatureRegistry

NUM_DISTINCT = 10_000
GENRES = ("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Drama", "Horror", "Romance", "Thriller")


class Case(NamedTuple):
    """A model, and the features that go into a context."""

    run: str
    """Named run with the model's settings."""
    features: Mapping[str, Any]
    shared: tuple[str, ...]
    """Features of the user and the situation; the others are the candidate's."""

    @property
    def registry(self) -> FeatureRegistry:
        """Registry of the features, not fitted."""
        return FeatureRegistry.of(features=self.features)


CASES = {
    "frappe": Case(
        "frappe",
        dict.fromkeys(
            ["user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"],
            "categorical",
        ),
        ("user", "daytime", "weekday", "isweekend", "homework", "weather", "country", "city"),
    ),
    "movielens_100k": Case(
        "movielens_100k",
        {
            **dict.fromkeys(
                ["user_id", "item_id", "age", "gender", "occupation", "zip_code", "release_year"], "categorical"
            ),
            "genres": {"type": "categorical_list", "separator": "|"},
        },
        ("user_id", "age", "gender", "occupation", "zip_code"),
    ),
}


class Request(NamedTuple):
    """One request as rows and as candidates of a context, which score the same."""

    rows: list[dict[str, Any]]
    """[B]."""
    context: dict[str, Any]
    candidates: list[dict[str, Any]]
    """[B]."""


def requests(case: Case, size: int, number: int = 16, seed: int = 1) -> list[Request]:
    """`number` different requests of `size` rows, as a JSON parser makes them; values follow a power law."""
    rng = np.random.default_rng(seed)
    features = case.registry.features
    made: list[Request] = []
    for _ in range(number):
        context = {f.name: next(_values(f, rng, 1)) for f in features if f.name in case.shared}
        own = {f.name: [*_values(f, rng, size)] for f in features if f.name not in case.shared}
        candidates = [dict(zip(own, values, strict=True)) for values in zip(*own.values(), strict=True)]
        made.append(Request([{**context, **candidate} for candidate in candidates], context, candidates))
    return made


def _values(feature: AnyFeature, rng: np.random.Generator, size: int) -> Iterator[str]:
    if feature.is_list:
        for length in rng.integers(1, 4, size):
            yield "|".join(rng.choice(GENRES, length, replace=False))
    else:
        yield from map(str, power_law(rng, size, NUM_DISTINCT).tolist())
