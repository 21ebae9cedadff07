"""Synthetic raw rows for self-tests: every kind of value, and no real data.

A table without a vocabulary scores any value, so made-up values exercise the whole scoring path.
"""

import numpy as np
import polars as pl

from features.parsing import ValueType
from features.registry import FeatureRegistry
from features.spec import CategoricalList, Numeric

ODD_TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "true",
    "\u00e9",
    "\u65e5\u672c",
    "\U0001d4b3",
    "a b",
    "a,b",
    "a|b",
    "\t",
    "NaN",
    "null",
)
ODD_TEXTS += ("x" * 300,)
INTEGER_TEXTS = ("", "0", "-1", "7.0", "+7", " 12 ", "128", "1e3", "9007199254740993", *map(str, range(20, 60)))
FLAG_TEXTS = ("", "true", "False", "T", "no", "1", "0.0")


def golden_frame(registry: FeatureRegistry, num_rows: int = 64, seed: int = 0) -> pl.DataFrame:
    """Raw rows [num_rows] with plain, odd and missing values; deterministic in registry and seed.

    >>> golden_frame(FeatureRegistry.of(features={"user": "categorical"}), num_rows=3).shape
    (3, 1)
    """
    random = np.random.default_rng(seed)
    columns: dict[str, pl.Series] = {}
    for feature in registry.features:
        if isinstance(feature, Numeric):
            columns[feature.name] = _numbers(feature, num_rows, random)
        elif isinstance(feature, CategoricalList):
            columns[feature.name] = _lists(feature, num_rows, random)
        else:
            texts = [_text(random, feature.value_type) for _ in range(num_rows)]
            columns[feature.name] = pl.Series(texts, dtype=pl.String)
    return pl.DataFrame(columns)


def _text(random: np.random.Generator, value_type: ValueType | None) -> str | None:
    kind = random.random()
    if kind < 0.05:
        return None
    if value_type is not None:
        return str(random.choice(INTEGER_TEXTS if value_type == "integer" else FLAG_TEXTS))
    if kind < 0.15:
        return str(random.choice(ODD_TEXTS))
    return str(random.integers(0, 10_000)) if kind < 0.6 else f"value {random.integers(0, 10_000)}"


def _numbers(feature: Numeric, num_rows: int, random: np.random.Generator) -> pl.Series:
    mean, std = (feature.fitted.mean, feature.fitted.std or 1.0) if feature.fitted else (1.0, 10.0)
    values = mean + std * random.standard_normal(num_rows)
    return pl.Series(values, dtype=pl.Float64).set(pl.Series(random.random(num_rows) < 0.1), None)


def _lists(feature: CategoricalList, num_rows: int, random: np.random.Generator) -> pl.Series:
    lists = [
        None
        if random.random() < 0.05
        else [_text(random, feature.value_type) for _ in range(int(random.integers(0, 5)))]
        for _ in range(num_rows)
    ]
    if feature.separator is None:
        return pl.Series(lists, dtype=pl.List(pl.String))
    texts = [None if one is None else feature.separator.join(text or "" for text in one) for one in lists]
    return pl.Series(texts, dtype=pl.String)
