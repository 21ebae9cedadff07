"""Raw frame to lowered columns: the one code path of training, batch scoring and online scoring.

B examples, N float columns. A lowered frame has one column a feature, in registry order: UInt64 tokens, lists of
UInt64 tokens, or Float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl

from features.errors import InputError
from features.hashing import Tokens
from features.registry import FeatureRegistry
from features.spec import AnyFeature


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """Examples in the two forms that a model reads: bags of tokens and float columns.

    >>> registry = FeatureRegistry.of(features={"user": "categorical", "price": "numeric"})
    >>> EncodedBatch(num_examples=0, tokens={}, lengths={}, dense=np.zeros((0, 1), np.float32)).dense.shape
    (0, 1)
    """

    num_examples: int
    """B."""
    tokens: Mapping[str, Tokens]
    """Tokens of each token feature, example after example: [B], or [sum of lengths] for a list."""
    lengths: Mapping[str, npt.NDArray[np.int64]]
    """Tokens an example [B], for list features alone; a scalar has one."""
    dense: npt.NDArray[np.float32]
    """Float columns [B, N], in registry order."""

    @staticmethod
    def from_frame(lowered: pl.DataFrame, registry: FeatureRegistry) -> "EncodedBatch":
        """Arrays of a lowered frame, as `encode_frame` or a dataset part holds it."""
        tokens: dict[str, Tokens] = {}
        lengths: dict[str, npt.NDArray[np.int64]] = {}
        for feature in registry.token_features:
            column = lowered[feature.name]
            if feature.is_list:
                lengths[feature.name] = column.list.len().cast(pl.Int64).to_numpy()
                column = column.filter(column.list.len() > 0).explode() if len(column) else column.explode()
            tokens[feature.name] = column.to_numpy()
        names = [feature.name for feature in registry.dense_features]
        if names:
            dense = np.ascontiguousarray(lowered.select(names).to_numpy(), dtype=np.float32)
        else:
            dense = np.zeros((len(lowered), 0), dtype=np.float32)
        return EncodedBatch(num_examples=len(lowered), tokens=tokens, lengths=lengths, dense=dense)


def encode_frame(raw: pl.DataFrame, registry: FeatureRegistry, *, allow_missing: bool = False) -> pl.DataFrame:
    """Lower every feature of a raw frame [B rows]; other columns are left out.

    A column that is not there raises `InputError`, or reads as all missing with `allow_missing`. So does a column
    of a type, or with a value, that its feature cannot take.

    >>> registry = FeatureRegistry.of(features={"user": "categorical"})
    >>> encode_frame(pl.DataFrame({"user": [7], "other": ["x"]}), registry).schema
    Schema([('user', UInt64)])
    """
    expressions: list[pl.Expr] = []
    for feature in registry.features:
        if feature.name in raw.columns:
            column = raw[feature.name]
            feature.check(column)
            expressions.append(_lowering(feature, column.dtype))  # pyright: ignore[reportArgumentType]  # frozen models hash
        elif allow_missing:
            # A literal would make one row of a frame without any.
            raw = raw.with_columns(pl.repeat(None, raw.height, dtype=pl.Null, eager=True).alias(feature.name))
            expressions.append(_lowering(feature, pl.Null()))  # pyright: ignore[reportArgumentType]
        else:
            raise missing_column(feature.name, raw.columns)
    return raw.select(expressions)


@lru_cache(maxsize=8192)
def _lowering(feature: AnyFeature, dtype: pl.DataType) -> pl.Expr:
    """Kept, because to build an expression takes as long as to lower a row with it."""
    return feature.lower(dtype)


def encode(raw: pl.DataFrame, registry: FeatureRegistry, *, allow_missing: bool = False) -> EncodedBatch:
    """`encode_frame`, as arrays.

    >>> registry = FeatureRegistry.of(features={"tags": "categorical_list"})
    >>> encode(pl.DataFrame({"tags": [["a", "b"], []]}), registry).lengths["tags"].tolist()
    [2, 0]
    """
    return EncodedBatch.from_frame(encode_frame(raw, registry, allow_missing=allow_missing), registry)


def missing_column(name: str, columns: list[str]) -> InputError:
    """The error for a column that is not in the data: what there is instead."""
    shown = ", ".join(columns[:12]) + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")
    remedy = "correct the registry or the file"
    if len(columns) == 1 and any(separator in columns[0] for separator in ";\t|"):
        remedy = "separate the fields by commas"
    return InputError(f"expected a column {name!r}", found=f"columns {shown}", remedy=remedy)
