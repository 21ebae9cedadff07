"""Texts to numbers: accepted and refused texts, alike for a column and for a request's values."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.encode import encode, encode_values
from features.errors import InputError
from features.parsing import parse_numbers
from features.registry import FeatureRegistry
from tests.floats import floats

READ = {
    ".": {
        "1.5": 1.5,
        " -2 ": -2,
        "+.5": 0.5,
        "5.": 5,
        "1e3": 1000,
        "$1,234.50": 1234.5,
        "-$5": -5,
        "$-5": -5,
        "5 €": 5,
        "£ 7": 7,
        "12 %": 0.12,
        "1,234,567": 1234567,
        "$1,234": 1234,
        "1 234": 1234,
        "1\u202f234,567": 1234567,
        "1'000": 1000,
        "TRUE": 1,
        "false": 0,
        "": None,
        "  ": None,
        "NaN": math.nan,
    },
    ",": {"1,5": 1.5, "1.234,5": 1234.5, "7": 7, "1.234": 1234, "€ 3,20": 3.2, "5 %": 0.05, ",5": 0.5, "": None},
}
REFUSED = {
    ".": [
        "1,5",
        "1,234",
        "-3,141",
        "0,123",
        "1 2",
        "abc",
        "+-5",
        "1,23,456",
        "$",
        "%",
        "1.2.3",
        "12,34",
        "5%%",
        "0x10",
        "1_000",
        "NA",
    ],
    ",": ["1,2,3", "1.23", "1.5", "0.123", "abc"],
}


@pytest.mark.parametrize(("decimal", "text"), [(decimal, text) for decimal in READ for text in READ[decimal]])
def test_a_text_is_the_number_that_it_means(decimal, text):
    expected = READ[decimal][text]
    setting = None if decimal == "." else decimal
    assert parse_numbers(pl.Series([text]), setting).equals(pl.Series([expected], dtype=pl.Float64))
    registry = FeatureRegistry.of(features={"x": {"type": "numeric", "transform": "none", "decimal": setting}})
    as_number = encode_values({"x": [expected, None]}, registry, 2)
    for found in (
        encode(pl.DataFrame({"x": [text, None]}), registry),
        encode(pl.DataFrame({"x": pl.Series([text, None], dtype=pl.Categorical)}), registry),
        encode_values({"x": [text, None]}, registry, 2),
    ):
        assert np.array_equal(found.dense, as_number.dense)
        assert found.num_missing == as_number.num_missing


@pytest.mark.parametrize(("decimal", "text"), [(decimal, text) for decimal in REFUSED for text in REFUSED[decimal]])
def test_a_text_that_may_mean_another_number_is_refused(decimal, text):
    with pytest.raises(InputError, match="column 'x': expected a number; found") as caught:
        parse_numbers(pl.Series("x", ["1", None, text]), None if decimal == "." else decimal)
    assert caught.value.row == 2


@given(st.lists(st.one_of(st.none(), floats(allow_infinity=False), st.integers(-(2**53), 2**53)), max_size=9))
def test_the_text_of_a_number_is_that_number(values):
    texts = pl.Series([None if value is None else repr(value) for value in values], dtype=pl.String)
    expected = pl.Series([None if value is None else float(value) for value in values], dtype=pl.Float64)
    assert parse_numbers(texts).equals(expected)


@given(floats(0.01, 10**12).map(lambda value: round(value, 2)))
def test_thousands_and_decimals_in_both_conventions(value):
    text = f"{value:,.2f}"
    assert parse_numbers(pl.Series([f"${text}"])).item() == value
    swapped = text.translate(str.maketrans(",.", ".,"))
    assert parse_numbers(pl.Series([f"{swapped} €"]), ",").item() == value


def test_a_comma_of_thousands_has_to_be_said():
    """1,234 may mean 1234 or 1.234: a silent guess could be off by a factor of a thousand."""
    assert parse_numbers(pl.Series(["950", "1,234"]), ".").to_list() == [950, 1234]
    assert parse_numbers(pl.Series(["950", "1,234"]), ",").to_list() == [950, 1.234]
    with pytest.raises(InputError, match=r"found '1,234'; set `decimal: \",\"` if a comma is the decimal mark"):
        parse_numbers(pl.Series(["950", "1,234"]))


def test_a_list_column_without_any_list_is_missing():
    """pandas writes it as a column of float NaN."""
    registry = FeatureRegistry.of(features={"tags": "categorical_list"})
    expected = encode(pl.DataFrame({"tags": pl.Series([None, None], dtype=pl.List(pl.String))}), registry)
    for values in ([math.nan, None], [math.nan, math.nan], [None, None]):
        found = encode(pl.DataFrame({"tags": pl.Series(values, dtype=pl.Float64)}), registry)
        assert found.tokens["tags"].tolist() == expected.tokens["tags"].tolist()
        assert found.lengths["tags"].tolist() == expected.lengths["tags"].tolist() == [1, 1]
    for dtype in (pl.Int64, pl.Boolean, pl.String, pl.Datetime, pl.Float32):
        found = encode(pl.DataFrame({"tags": pl.Series([None, None], dtype=dtype)}), registry)
        assert found.tokens["tags"].tolist() == expected.tokens["tags"].tolist()
    with pytest.raises(InputError, match="column 'tags': expected a list column"):
        encode(pl.DataFrame({"tags": [math.nan, 1.0]}), registry)
