"""Texts as numbers, integers and flags, with the same rules for files, frames and requests.

N values. A blank text and NaN are missing values.
"""

import re
from collections.abc import Callable
from typing import Literal

import polars as pl

from features.errors import InputError

ValueType = Literal["integer", "boolean"]
Decimal = Literal[".", ","]

TRUE_TEXTS, FALSE_TEXTS = ("true", "t", "yes", "y", "on"), ("false", "f", "no", "n", "off")
FIRST_INEXACT_FLOAT64 = 2**53

_CURRENCY = "$€£¥"
_BLANKS = " \u00a0\u202f"
_AROUND = _BLANKS + "\t\r\n"
MAY_BE_TWO = r"^[+-]?[1-9]\d{0,2},\d{3}$"
_PLAIN_INTEGER = r"^(?:0|-?[1-9]\d*)$"


def parse_numbers(column: pl.Series, decimal: Decimal | None = None) -> pl.Series:
    """Texts [N] as float64 [N]; null for a blank text.

    A number may have a currency sign, thousands separators and a percent sign (which divides by 100), and a flag is 0
    or 1. Without `decimal` the decimal mark is a point, and a comma separates thousands if that is unambiguous. Raises
    `InputError` with the first text that is not a number or is ambiguous.

    >>> parse_numbers(pl.Series(["1.5", "$1,234", "1,234,567", "20 %", "true", ""])).to_list()
    [1.5, 1234.0, 1234567.0, 0.2, 1.0, None]
    """
    text = column.cast(pl.String).str.strip_chars(_AROUND)
    text = text.set(text == "", None)
    is_plain = text if decimal != "," else text.set(text.str.contains("[.,]"), None)
    numbers = is_plain.cast(pl.Float64, strict=False)
    left = numbers.is_null() & text.is_not_null()
    if not left.any():
        return numbers
    others = _decorated_numbers(text.filter(left), decimal or ".")
    numbers = numbers.scatter(left.arg_true(), others)
    if decimal is None:
        numbers = numbers.set(text.str.contains(MAY_BE_TWO).fill_null(False), None)
    for row in (numbers.is_null() & text.is_not_null()).arg_true().head(1):
        remedy = "declare it `categorical`, or correct the value"
        if decimal != "," and re.fullmatch(r"[+-]?\d+,\d+", text[row]):
            remedy = 'set `decimal: ","` if a comma is the decimal mark, `decimal: "."` if it separates thousands'
        found = repr(text[row][:40])
        raise InputError(f"column {column.name!r}: expected a number", found=found, remedy=remedy, row=row)
    return numbers


def _decorated_numbers(text: pl.Series, decimal: Decimal) -> pl.Series:
    """Numbers [N] of texts with currency signs, thousands separators and the like; null for other texts."""
    thousands = f"{_BLANKS}'" + ("," if decimal == "." else ".")
    digits = rf"(?:[1-9]\d{{0,2}}(?:[{thousands}]\d{{3}})+|\d+)(?:[{decimal}]\d*)?|[{decimal}]\d+"
    sign, money, blank = "[+-]?", f"[{_CURRENCY}]?", f"[{_BLANKS}]?"
    pattern = rf"^{sign}{money}{blank}{sign}(?:{digits})(?:[eE][+-]?\d+)?{blank}{money}%?$"
    frame = text.alias("text").to_frame()
    value = pl.col("text")
    stripped = value.str.replace_all(f"[{thousands}{_CURRENCY}%]", "").str.replace(decimal, ".", literal=True)
    number = stripped.cast(pl.Float64, strict=False)
    lowercase = value.str.to_lowercase()
    return frame.select(
        pl.when(lowercase.is_in(["true", "false"]))
        .then((lowercase == "true").cast(pl.Float64))
        .when(~value.str.contains(pattern))
        .then(None)
        .when(value.str.ends_with("%"))
        .then(number / 100)
        .otherwise(number)
    ).to_series()


def parse_values(column: pl.Series, value_type: ValueType) -> pl.Series:
    """Canonical texts [N] of integers or flags for texts [N]; null for a missing one.

    Raises `InputError` with the first text that is neither missing nor of this type.

    >>> parse_values(pl.Series(["128.0", "7", "+7", ""]), "integer").to_list()
    ['128', '7', '7', None]
    >>> parse_values(pl.Series(["True", "f", "1.0"]), "boolean").to_list()
    ['true', 'false', 'true']
    """
    if value_type == "integer" and column.str.contains(_PLAIN_INTEGER).all():
        return column
    texts = column.to_frame().select(text_of_value(pl.col(column.name), value_type).alias(column.name)).to_series()
    is_blank = column.str.strip_chars(_AROUND).str.to_lowercase().is_in(["", "nan"]).fill_null(True)
    for row in (texts.is_null() & ~is_blank).arg_true().head(1):
        expected = "an integer that its form holds exactly" if value_type == "integer" else "true or false"
        remedy = "correct the value, or leave out `value_type:`"
        found = repr(column[row][:40])
        raise InputError(f"column {column.name!r}: expected {expected}", found=found, remedy=remedy, row=row)
    return texts


def text_of_value(text: pl.Expr, value_type: ValueType) -> pl.Expr:
    """Canonical text of an integer or a flag; null for a text that is missing or not of this type."""
    return _PARSERS[value_type](text.str.strip_chars(_AROUND))


def _integer(text: pl.Expr) -> pl.Expr:
    digits = text.str.extract(r"^[+-]?0*(\d+?)(?:\.0*)?$", 1)
    number = _number(text)
    # "9007199254740993.0" is a float's text: from 2^53 on, it may be a rounded neighbour.
    is_exact = number.abs() < FIRST_INEXACT_FLOAT64
    is_integer = digits.is_not_null() & (is_exact | ~text.str.contains(".", literal=True))
    sign = pl.when(text.str.starts_with("-") & (digits != "0")).then(pl.lit("-")).otherwise(pl.lit(""))
    return (
        pl.when(is_integer)
        .then(sign + digits)
        .when(is_exact & (number == number.round()))
        .then(pl.when(is_exact).then(number).cast(pl.Int64, strict=False).cast(pl.String))
        .otherwise(None)
    )


def _boolean(text: pl.Expr) -> pl.Expr:
    lowercase, number = text.str.to_lowercase(), _number(text)
    is_true = lowercase.is_in(TRUE_TEXTS) | (number == 1).fill_null(False)
    is_false = lowercase.is_in(FALSE_TEXTS) | (number == 0).fill_null(False)
    return pl.when(is_true).then(pl.lit("true")).when(is_false).then(pl.lit("false")).otherwise(None)


def _number(text: pl.Expr) -> pl.Expr:
    """Float64 of a text; true and false are 1 and 0."""
    lowercase = text.str.to_lowercase()
    flag = pl.when(lowercase == "true").then(1.0).when(lowercase == "false").then(0.0)
    return pl.coalesce(flag.otherwise(None), text.cast(pl.Float64, strict=False).fill_nan(None))


_PARSERS: dict[ValueType, Callable[[pl.Expr], pl.Expr]] = {"integer": _integer, "boolean": _boolean}
