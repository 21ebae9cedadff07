"""Python values and columns are encoded alike for every feature type, bit for bit, with the same errors."""

import math
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encode import EncodedBatch, encode, encode_values
from features.errors import InputError
from features.hashing import MISSING_TOKEN, hash_text
from features.registry import FeatureRegistry
from features.spec import FEATURE_TYPES, Categorical, CategoricalList, Numeric
from features.values import column_of, texts_of
from tests.features.test_encode import CASES, VARIANTS
from tests.floats import floats

INTEGERS = st.integers(-(2**53) + 1, 2**53 - 1)
NUMBERS = st.one_of(INTEGERS, floats(-1e30, 1e30), st.just(math.nan))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
# Lists of one Python type, of which polars makes a typed column, and the type.
SCALARS = [
    (TEXTS, pl.String()),
    (st.integers(-(2**63), 2**63 - 1), pl.Int64()),
    (st.booleans(), pl.Boolean()),
    (st.one_of(INTEGERS.map(float), st.just(math.nan), st.just(-0.0)), pl.Float64()),
    (st.integers(0, 2**64 - 1), pl.UInt64()),
    (st.nothing(), pl.Null()),
]
MIXED = st.one_of(*(values for values, _ in SCALARS[:-1]), st.integers(-(2**70), 2**70))


def features() -> list[Any]:
    return [FEATURE_TYPES[kind](name="x", **VARIANTS[kind][number]) for kind, number in CASES]


def same(one: EncodedBatch, other: EncodedBatch) -> bool:
    assert one.tokens.keys() == other.tokens.keys()
    assert one.lengths.keys() == other.lengths.keys()
    assert one.num_missing == other.num_missing
    return (
        one.num_examples == other.num_examples
        and all(np.array_equal(one.tokens[name], other.tokens[name]) for name in one.tokens)
        and all(np.array_equal(one.lengths[name], other.lengths[name]) for name in one.lengths)
        and one.dense.dtype == other.dense.dtype
        and one.dense.tobytes() == other.dense.tobytes()
    )


def optional(values: Any) -> Any:
    return st.lists(st.one_of(st.none(), values), max_size=12)


def columns(feature: Any) -> Any:
    """(values of one type, the type) that a feature takes."""
    if isinstance(feature, Numeric):
        pairs = [
            (NUMBERS.map(float), pl.Float64()),
            (st.integers(-(2**63), 2**63 - 1), pl.Int64()),
            SCALARS[2],
            SCALARS[5],
        ]
    elif isinstance(feature, CategoricalList):
        pairs = [(optional(values), pl.List(dtype)) for values, dtype in SCALARS]
        pairs += [(st.text("a|b c", max_size=9), pl.String())] if feature.separator else []
    else:
        pairs = SCALARS
    return st.one_of(*(st.tuples(optional(values), st.just(dtype)) for values, dtype in pairs))


@pytest.mark.parametrize(
    "feature", features(), ids=lambda feature: f"{feature.type}-{getattr(feature, 'transform', '')}"
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_values_are_the_column_of_their_type(feature: Any, data: st.DataObject) -> None:
    values, dtype = data.draw(columns(feature))
    registry = FeatureRegistry(features=(feature,))
    frame = pl.DataFrame({"x": pl.Series(values, dtype=dtype)})
    assert same(encode_values({"x": values}, registry, len(values)), encode(frame, registry))


@pytest.mark.parametrize(
    "feature", features(), ids=lambda feature: f"{feature.type}-{getattr(feature, 'transform', '')}"
)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_values_are_themselves_alone_and_as_a_raw_column(feature: Any, data: st.DataObject) -> None:
    kinds = NUMBERS if isinstance(feature, Numeric) else st.lists(MIXED, max_size=4) if feature.is_list else MIXED
    values = data.draw(optional(kinds))
    registry = FeatureRegistry(features=(feature,))
    together = encode_values({"x": values}, registry, len(values))
    assert same(together, encode(pl.DataFrame([column_of(feature, values)]), registry))
    alone = [encode_values({"x": [value]}, registry, 1) for value in values]
    for name, tokens in together.tokens.items():
        assert tokens.tolist() == [token for one in alone for token in one.tokens[name].tolist()]
    assert together.dense.tobytes() == b"".join(one.dense.tobytes() for one in alone)


WRONG: dict[str, list[Any]] = {
    "categorical": [[1], {"a": 1}, b"x", 1.5, math.inf, 2.0**53, Decimal("1.5"), "\ud800", object(), 10**5000],
    "categorical_list": [3, 10**5000, {"a": 1}, [[1]], [1.5], [b"x"], ["\ud800"], ["a", 10**5000]],
    "numeric": ["three", [3], math.inf, 1e39, 10**400, 10**5000, b"x", {"a": 1}],
}


@pytest.mark.parametrize(
    "feature", features(), ids=lambda feature: f"{feature.type}-{getattr(feature, 'transform', '')}"
)
def test_both_ways_refuse_in_the_same_words(feature: Any) -> None:
    registry = FeatureRegistry(features=(feature,))
    for value in WRONG[feature.type]:
        errors: list[InputError] = []
        for refuse in (
            lambda values: encode_values({"x": values}, registry, 3),
            lambda values: encode(pl.DataFrame([column_of(feature, values)]), registry),
        ):
            with pytest.raises(InputError, match="column 'x': expected") as caught:
                refuse([None, None, value])
            errors.append(caught.value)
        assert str(errors[0]) == str(errors[1])
        assert errors[0].row == errors[1].row == 2


def test_every_type_is_covered() -> None:
    assert list(WRONG) == list(FEATURE_TYPES)


def test_by_hand() -> None:
    registry = FeatureRegistry.of(
        features={
            "age": {"type": "numeric", "transform": "log_square"},
            "tags": {"type": "categorical_list", "separator": "|"},
            "price": {"type": "numeric", "transform": "none"},
            "user": "categorical",
        }
    )
    columns = {"user": [7, "7", True], "tags": ["a|b", "", None], "age": [30.0, None, 2.5], "price": [1, None, 2.5]}
    batch = encode_values(columns, registry, 3)
    seven = hash_text("7")
    assert batch.tokens["user"].tolist() == [seven, seven, hash_text("true")]
    assert batch.tokens["tags"].tolist() == [hash_text("a"), hash_text("b"), MISSING_TOKEN]
    assert batch.lengths["tags"].tolist() == [2, 0, 1]
    assert batch.tokens["age"].tolist() == [hash_text("11"), MISSING_TOKEN, hash_text("0")]
    assert batch.dense.tolist() == [[1.0], [0.0], [2.5]]
    assert batch.num_missing == {"price": 1}


def test_features_that_are_not_there_are_missing() -> None:
    registry = FeatureRegistry.of(features={"user": "categorical", "tags": "categorical_list", "price": "numeric"})
    fitted = registry.features[2].model_copy(update={"transform": "none"})
    registry = registry.with_settings(features=[*registry.features[:2], fitted])
    batch = encode_values({}, registry, 2)
    assert batch.tokens["user"].tolist() == batch.tokens["tags"].tolist() == [MISSING_TOKEN] * 2
    assert batch.num_missing == {"price": 2}
    assert encode_values({}, registry, 0).tokens["user"].dtype == np.uint64


def test_subclasses_of_plain_types_are_what_they_are() -> None:
    class Name(str):
        __slots__ = ()

    assert [*texts_of(Categorical(name="x"), [Name("a"), np.int8(3), np.True_, np.float32(7)])] == [
        "a",
        "3",
        "true",
        "7",
    ]
