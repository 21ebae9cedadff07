"""Feature types: the columns that each accepts and refuses, and the encoded columns."""

import math
from datetime import date
from decimal import Decimal

import numpy as np
import polars as pl
import pytest

from features.errors import InputError
from features.hashing import MISSING_TOKEN, hash_text
from features.spec import FEATURE_TYPES, Categorical, CategoricalList, Numeric, NumericFit

NAN, INF = float("nan"), float("inf")
EMOJI = "\U0001f600"


def encoded(feature, values, dtype=None) -> list:
    column = pl.Series(feature.name, values, dtype=dtype)
    feature.check(column)
    column = feature.normalize(column)
    result = column.to_frame().select(feature.encode(column.dtype)).to_series()
    assert result.dtype == (pl.List(pl.UInt64) if feature.is_list else pl.UInt64 if feature.has_tokens else pl.Float32)
    assert result.name == feature.name
    return result.to_list()


def refusal(feature, values, dtype=None) -> InputError:
    with pytest.raises(InputError) as caught:
        feature.check(pl.Series(feature.name, values, dtype=dtype))
    assert "\n" not in str(caught.value)
    return caught.value


def tokens(*texts: str | None) -> list[int]:
    return [MISSING_TOKEN if text is None else hash_text(text) for text in texts]


USER = Categorical(name="user")
TAGS = CategoricalList(name="tags")
SPLIT = CategoricalList(name="tags", separator="|")
PRICE = Numeric(name="price", transform="none")
BUCKETS = Numeric(name="price", transform="bucketize", fitted=NumericFit(mean=0, std=1, boundaries=(1.0, 2.5, 7.0)))
SQUARE = Numeric(name="price", transform="log_square")


@pytest.mark.parametrize(
    "dtype",
    [pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128, pl.Float16, pl.Float32, pl.Float64, pl.Decimal(9, 0), pl.String],
)
def test_a_number_has_one_token_whatever_it_is_stored_as(dtype):
    values = ["7", "-12", None] if dtype == pl.String else [7, -12, None]
    assert encoded(USER, values, dtype) == tokens("7", "-12", None)


@pytest.mark.parametrize("dtype", [pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64])
def test_unsigned_numbers_too(dtype):
    assert encoded(USER, [7, 0, None], dtype) == tokens("7", "0", None)


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical, pl.Enum(["", "red", "7", "true"])])
def test_a_text_has_one_token_whatever_it_is_stored_as(dtype):
    assert encoded(USER, ["red", "", "7", None, "true"], dtype) == tokens("red", "", "7", None, "true")


def test_booleans_are_their_lower_case_words():
    assert encoded(USER, [True, False, None]) == tokens("true", "false", None)


def test_missing_zero_and_empty_differ():
    assert encoded(USER, [NAN, None, -0.0]) == tokens(None, None, "0")
    assert len({*tokens(None, "", "0", "null", "NaN", " ")}) == 6
    assert encoded(USER, [None, None], pl.Null) == tokens(None, None)


def test_text_is_taken_as_it_is():
    values = ["7.0", "07", " 7", "True", "é", "e\u0301", "日本", EMOJI, "a\x00b", "x" * 2**20]
    assert encoded(USER, values) == tokens(*values)
    assert len(set(encoded(USER, values))) == len(values)


def test_integers_are_exact_to_the_last_digit():
    assert encoded(USER, [2**53, 2**53 + 1, 2**63 - 1, -(2**63)], pl.Int64) == tokens(
        "9007199254740992", "9007199254740993", "9223372036854775807", "-9223372036854775808"
    )
    assert encoded(USER, [2**64 - 1], pl.UInt64) == tokens("18446744073709551615")


@pytest.mark.parametrize(("dtype", "exponent"), [(pl.Float16, 11), (pl.Float32, 24), (pl.Float64, 53)])
def test_floats_are_refused_from_where_they_skip_integers(dtype, exponent):
    assert encoded(USER, [NAN, 2**exponent - 1, 1 - 2**exponent], dtype) == tokens(
        None, str(2**exponent - 1), str(1 - 2**exponent)
    )
    for value in (2.0**exponent, -(2.0**exponent)):
        error = refusal(USER, [NAN, 3.0, value], dtype)
        assert f"integers below 2^{exponent} in a Float" in str(error)
        assert f"found {value:.0f}; store the column as integers or text" in str(error)
        assert error.row == 2


@pytest.mark.parametrize(("value", "shown"), [(1.5, "1.5"), (-0.25, "-0.25"), (INF, "inf"), (123456.5, "123456.5")])
def test_fractions_are_no_categories(value, shown):
    error = refusal(USER, [None, 2.0, value])
    assert "column 'user': expected categories: text, integers or booleans" in str(error)
    assert f"found the number {shown}; declare it `numeric`" in str(error)
    assert error.row == 2


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([date(2024, 2, 3)], "Date"),
        ([b"x"], "Binary"),
        ([{"x": 1}], "Struct"),
        ([object()], "Object"),
        ([Decimal("1.50")], "decimals"),
        ([[1]], "a list (List(Int64))"),
    ],
)
def test_other_types_are_no_categories(values, shown):
    assert f"found {shown}" in str(refusal(USER, values))


def test_lists():
    values = [["a", "b"], [], None, [None, "a"], ["", "b"]]
    assert encoded(TAGS, values) == [
        tokens("a", "b"),
        [],
        [MISSING_TOKEN],
        tokens(None, "a"),
        tokens("", "b"),
    ]
    assert encoded(TAGS, [[7, -1], None], pl.List(pl.Int64)) == [tokens("7", "-1"), [MISSING_TOKEN]]
    assert encoded(TAGS, [[7.0, NAN], []], pl.List(pl.Float32)) == [tokens("7", None), []]
    assert encoded(TAGS, [[True]]) == [tokens("true")]


def test_fixed_size_arrays_are_lists():
    assert encoded(TAGS, [[1, 2], [3, None], None], pl.Array(pl.Int64, 2)) == [
        tokens("1", "2"),
        tokens("3", None),
        [MISSING_TOKEN],
    ]


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical])
def test_text_lists(dtype):
    assert encoded(SPLIT, ["a|b", "", None, "c", "a||", "|"], dtype) == [
        tokens("a", "b"),
        [],
        [MISSING_TOKEN],
        tokens("c"),
        tokens("a", "", ""),
        tokens("", ""),
    ]


def test_a_separator_is_text_and_no_pattern():
    assert encoded(CategoricalList(name="t", separator=". "), ["a. b.c"]) == [tokens("a", "b.c")]


def test_a_declared_separator_leaves_native_lists_alone():
    assert encoded(SPLIT, [["a|b"]]) == [tokens("a|b")]


@pytest.mark.parametrize("dtype", [pl.Null, pl.List(pl.Null)])
def test_lists_without_any_value_keep_their_rows(dtype):
    assert encoded(TAGS, [None, None, None], dtype) == [[MISSING_TOKEN]] * 3


def test_a_scalar_is_no_list_and_text_needs_a_separator():
    assert "found one value per row (Int64); declare it `categorical`" in str(refusal(SPLIT, [1]))
    assert "found text and no separator declared; set `separator:`" in str(refusal(TAGS, ["a|b"]))


def test_the_row_of_a_bad_value_inside_a_list_is_known():
    error = refusal(TAGS, [[1.0, 2.0], None, [], [3.0], [4.0, 4.5]])
    assert "the number 4.5" in str(error)
    assert error.row == 4
    assert refusal(TAGS, [[1.0, 2.0], [1.5, 3.0]], pl.Array(pl.Float64, 2)).row == 1
    assert "found List(Int64)" in str(refusal(TAGS, [[[1]]]))


def test_plain_numbers():
    assert encoded(PRICE, [1.5, None, NAN, -2.0]) == [1.5, 0.0, 0.0, -2.0]
    assert encoded(PRICE, [3, None], pl.Int64) == [3.0, 0.0]
    assert encoded(PRICE, [True, False]) == [1.0, 0.0]
    assert encoded(PRICE, [Decimal("1.25")]) == [1.25]
    assert encoded(PRICE, [None], pl.Null) == [0.0]


def test_log1p_keeps_the_sign():
    feature = Numeric(name="price", transform="log1p")
    expected = [math.log(2), -math.log(4), 0.0, 0.0]
    assert encoded(feature, [1.0, -3.0, 0.0, None]) == pytest.approx(expected, abs=1e-7)


def test_standardize():
    feature = Numeric(name="price", fitted=NumericFit(mean=3.0, std=2.0))
    assert encoded(feature, [3.0, 7.0, None, 2.0]) == [0.0, 2.0, 0.0, -0.5]


def test_a_constant_column_standardizes_to_the_distance_from_it():
    feature = Numeric(name="price", fitted=NumericFit(mean=3.0, std=0.0))
    assert encoded(feature, [3.0, 4.0]) == [0.0, 1.0]


def test_standardize_stays_finite():
    feature = Numeric(name="price", fitted=NumericFit(mean=0.0, std=1e-9))
    assert all(math.isfinite(value) for value in encoded(feature, [3e38, -3e38]))


@pytest.mark.parametrize(
    ("value", "bucket"),
    [
        # floor(ln(x)^2) above 2, else the integer part; the left column by hand.
        (-1.0, -1),
        (-1.9, -1),
        (0.0, 0),
        (1.0, 1),
        (1.99, 1),
        (2.0, 2),
        (2.01, 0),
        (3.0, 1),  # ln 3 = 1.0986, squared 1.2069
        (10.0, 5),  # 2.3026, 5.3019
        (100.0, 21),  # 4.6052, 21.2076
        (12345.0, 88),  # 9.4210, 88.755
        (1e9, 429),  # 20.7233, 429.454
    ],
)
def test_log_square(value: float, bucket: int):
    assert encoded(SQUARE, [value]) == tokens(str(bucket))
    if value == int(value):
        assert encoded(SQUARE, [int(value)], pl.Int64) == tokens(str(bucket))


def test_log_square_of_nothing_is_the_missing_token():
    assert encoded(SQUARE, [None, NAN, 0.0]) == tokens(None, None, "0")


@pytest.mark.parametrize(
    ("value", "bucket"), [(-9.0, 0), (0.999, 0), (1.0, 1), (2.4, 1), (2.5, 2), (6.9, 2), (7.0, 3), (1e30, 3)]
)
def test_bucketize_puts_an_edge_into_the_upper_bucket(value: float, bucket: int):
    assert encoded(BUCKETS, [value, None, NAN]) == tokens(str(bucket), None, None)


def test_bucketize_without_edges_is_one_bucket():
    feature = Numeric(name="price", transform="bucketize", fitted=NumericFit(mean=5, std=0))
    assert encoded(feature, [5.0, 9.0]) == tokens("0", "0")


@pytest.mark.parametrize("transform", ["standardize", "log1p", "none", "bucketize", "log_square"])
@pytest.mark.parametrize(("value", "shown"), [(INF, "inf"), (-INF, "-inf"), (1e39, "1e+39")])
def test_infinite_numbers_are_refused(transform, value, shown):
    error = refusal(Numeric(name="price", transform=transform), [NAN, value])
    assert f"expected finite numbers in float32's range; found {shown}; make it null, or clip it" in str(error)
    assert error.row == 1


@pytest.mark.parametrize(
    ("values", "shown"), [(["abc"], "String, such as 'abc'"), ([[1]], "a list (List(Int64))"), ([date.max], "Date")]
)
def test_other_types_are_no_numbers(values, shown):
    assert f"column 'price': expected a number; found {shown}" in str(refusal(PRICE, values))


def test_which_transforms_need_statistics():
    needing = {
        t
        for t in ("standardize", "log1p", "none", "bucketize", "log_square")
        if Numeric(name="x", transform=t).needs_fit
    }
    assert needing == {"standardize", "bucketize"}
    assert not BUCKETS.needs_fit


def test_an_unfitted_transform_is_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="price: standardize before prepare fitted it"):
        Numeric(name="price").normalize(pl.Series([1.0]))


def test_encoding_reads_no_other_row():
    """Elementwise: a value's encoded form is the same alone and among others."""
    generator = np.random.default_rng(4)
    values = [None if generator.random() < 0.1 else float(value) for value in generator.normal(0, 30, 200)]
    for feature in (PRICE, BUCKETS, SQUARE):
        assert encoded(feature, values) == [encoded(feature, [value], pl.Float64)[0] for value in values]


def test_every_type_is_listed_under_its_own_name():
    assert {name: kind(name="x").type for name, kind in FEATURE_TYPES.items()} == {name: name for name in FEATURE_TYPES}
