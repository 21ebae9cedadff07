"""Encoding of raw examples: the one code path of training, batch scoring and online scoring.

B examples, N float columns. An encoded frame has one column per feature, in registry order: UInt64 tokens, lists of
UInt64 tokens, or Float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
import polars as pl

from features.arrays import Float32s, Int64s
from features.errors import missing_column
from features.feature_types import AnyFeature
from features.hashing import Tokens, tokens_of_texts
from features.registry import FeatureRegistry
from features.spec import Categorical, CategoricalList, Numeric
from features.values import Text, bucket_texts, check_unicode, column_of, lists_of, numbers_of, texts_of

_WITHOUT_A_FRAME = (Categorical, CategoricalList, Numeric)
"""Types whose Python values are encoded without a frame, the faster way; not their subclasses."""


@dataclass(frozen=True, kw_only=True)
class EncodedBatch:
    """Examples in the two forms that a model reads: bags of tokens and float columns."""

    num_examples: int
    """B."""
    tokens: Mapping[str, Tokens]
    """Tokens of each token feature, example after example: [B], or [sum of lengths] for a list."""
    lengths: Mapping[str, Int64s]
    """Tokens per example [B], for list features only; a scalar has one."""
    dense: Float32s
    """Float columns [B, N], in registry order."""
    num_missing: Mapping[str, int] = field(default_factory=dict)
    """Missing values per float column encoded here, which holds 0 there; a token feature has missing tokens."""

    def bag(self, name: str, first: int, last: int) -> tuple[Tokens, Int64s | None]:
        """Tokens of a feature in examples `first` to `last`, and their number per example if it is a list."""
        if name not in self.lengths:
            return self.tokens[name][first:last], None
        begin, lengths = int(self.lengths[name][:first].sum()), self.lengths[name][first:last]
        return self.tokens[name][begin : begin + int(lengths.sum())], lengths

    @staticmethod
    def from_frame(encoded: pl.DataFrame, registry: FeatureRegistry) -> "EncodedBatch":
        """Arrays of an encoded frame, as `encode_frame` returns it or a dataset part holds it."""
        tokens: dict[str, Tokens] = {}
        lengths: dict[str, Int64s] = {}
        for feature in registry.token_features:
            column = encoded[feature.name]
            if feature.is_list:
                lengths[feature.name] = column.list.len().to_numpy().astype(np.int64)
                column = column.explode(empty_as_null=False)
            tokens[feature.name] = column.to_numpy()
        columns = [encoded[feature.name].to_numpy() for feature in registry.dense_features]
        dense = _dense(columns, len(encoded))
        return EncodedBatch(num_examples=len(encoded), tokens=tokens, lengths=lengths, dense=dense)


def _dense(columns: Sequence[Float32s], num_examples: int) -> Float32s:
    """Float columns, [B] each, as one array [B, N]."""
    dense = np.empty((num_examples, len(columns)), dtype=np.float32)
    for position, column in enumerate(columns):
        dense[:, position] = column
    return dense


def encode_frame(raw: pl.DataFrame, registry: FeatureRegistry, *, allow_missing: bool = False) -> pl.DataFrame:
    """Encode every feature of a raw frame [B rows]; other columns are left out.

    Raises `InputError` for a type or a value that a feature cannot take and for a missing column, which
    `allow_missing` fills with missing values instead.

    >>> registry = FeatureRegistry.of(features={"user": "categorical"})
    >>> encode_frame(pl.DataFrame({"user": [7], "other": ["x"]}), registry).schema
    Schema([('user', UInt64)])
    """
    return encode_parsed(parse_frame(raw, registry), registry, allow_missing=allow_missing)


def encode_parsed(parsed: pl.DataFrame, registry: FeatureRegistry, *, allow_missing: bool = False) -> pl.DataFrame:
    """`encode_frame` of a frame that `parse_frame` returned."""
    names = frozenset(parsed.columns)
    columns: list[pl.Series] = []
    expressions: list[pl.Expr] = []
    for feature in registry.features:
        if feature.name in names:
            column = parsed[feature.name]
            feature.check(column)
        elif allow_missing:
            column = pl.repeat(None, parsed.height, dtype=pl.Null, eager=True).alias(feature.name)
        else:
            raise missing_column(feature.name, parsed.columns)
        columns.append(feature.normalize(column))
        expressions.append(_encoding(feature, columns[-1].dtype))  # pyright: ignore[reportArgumentType]  # frozen models hash
    return pl.DataFrame(columns).select(expressions)


@lru_cache(maxsize=8192)
def _encoding(feature: AnyFeature, dtype: pl.DataType) -> pl.Expr:
    """`feature.encode`, cached: building the expression takes as long as encoding a row with it."""
    return feature.encode(dtype)


def encode(raw: pl.DataFrame, registry: FeatureRegistry, *, allow_missing: bool = False) -> EncodedBatch:
    """`encode_frame` as arrays.

    >>> registry = FeatureRegistry.of(features={"tags": "categorical_list"})
    >>> encode(pl.DataFrame({"tags": [["a", "b"], []]}), registry).lengths["tags"].tolist()
    [2, 0]
    """
    parsed = parse_frame(raw, registry)
    encoded = EncodedBatch.from_frame(encode_parsed(parsed, registry, allow_missing=allow_missing), registry)
    dense = [feature.name for feature in registry.dense_features]
    num_missing = {name: count_missing(parsed[name]) if name in parsed.columns else raw.height for name in dense}
    return replace(encoded, num_missing=num_missing)


def parse_frame(raw: pl.DataFrame, registry: FeatureRegistry) -> pl.DataFrame:
    """A raw frame [B rows] with the texts of its features parsed; other columns are unchanged.

    >>> registry = FeatureRegistry.of(features={"price": "numeric"})
    >>> parse_frame(pl.DataFrame({"price": ["3.5"]}), registry).item()
    3.5
    """
    features = [feature for feature in registry.features if feature.name in raw.columns]
    return raw.with_columns([feature.parse(raw[feature.name]) for feature in features])


def count_missing(column: pl.Series) -> int:
    """Number of missing values in a parsed column: nulls and NaNs."""
    return column.null_count() + (int(column.is_nan().sum()) if column.dtype.is_float() else 0)


def encode_values(columns: Mapping[str, Sequence[Any]], registry: FeatureRegistry, num_examples: int) -> EncodedBatch:
    """`encode` of Python values [B] by feature, as in a request; a feature without values is missing.

    Builds no frame for the common types, as that would take longer than the rest of scoring a few rows, and hashes
    the texts of all features at once. Raises `InputError` for a value that its feature cannot take.

    >>> registry = FeatureRegistry.of(features={"user": "categorical", "tags": "categorical_list"})
    >>> batch = encode_values({"tags": [["a", "b"], []]}, registry, 2)
    >>> batch.lengths["tags"].tolist(), [f"{token:x}" for token in batch.tokens["user"].tolist()]
    ([2, 0], ['ea92b629d1d5a8d', 'ea92b629d1d5a8d'])
    """
    texts: dict[str, Sequence[Text]] = {}
    lengths: dict[str, Int64s] = {}
    dense: dict[str, Float32s] = {}
    num_missing: dict[str, int] = {}
    others: dict[str, Tokens] = {}
    for feature in registry.features:
        name, values = feature.name, columns.get(feature.name)
        if values is None:
            values = [None] * num_examples
        if type(feature) not in _WITHOUT_A_FRAME:
            one = encode(
                pl.DataFrame([column_of(feature, values)]), registry.model_copy(update={"features": (feature,)})
            )
            others |= one.tokens
            lengths |= one.lengths
            num_missing |= one.num_missing
            if not feature.has_tokens:
                dense[name] = one.dense[:, 0]
        elif isinstance(feature, CategoricalList):
            lists = lists_of(feature, values)
            lengths[name] = np.array([len(one) for one in lists], dtype=np.int64)
            texts[name] = [*chain.from_iterable(lists)]
        elif not isinstance(feature, Numeric):
            texts[name] = texts_of(feature, values)
        elif feature.has_tokens:
            texts[name] = bucket_texts(feature, values)
        else:
            numbers = numbers_of(feature, values)
            dense[name], num_missing[name] = feature.floats(numbers), int(np.isnan(numbers).sum())
    try:
        hashed = tokens_of_texts(chain.from_iterable(texts.values()))
    except UnicodeEncodeError:
        for feature in registry.token_features:  # raises with the row
            if isinstance(feature, CategoricalList):
                check_unicode(feature, lists_of(feature, columns.get(feature.name, [])))
            elif feature.name in texts:
                check_unicode(feature, texts[feature.name])
        raise
    edges = pairwise(accumulate(map(len, texts.values()), initial=0))
    return EncodedBatch(
        num_examples=num_examples,
        tokens={name: hashed[start:end] for name, (start, end) in zip(texts, edges, strict=True)} | others,
        lengths=lengths,
        dense=_dense([*dense.values()], num_examples),
        num_missing=num_missing,
    )
