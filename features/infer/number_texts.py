"""Text columns that hold numbers, flags or weighted values: their values, their format, and the evidence for it."""

import re
from contextlib import suppress
from typing import NamedTuple

import polars as pl

from features.errors import InputError
from features.infer.column_names import GROUPED_CODE_WORDS, is_code, words_of
from features.parsing import MAY_BE_TWO, Decimal, parse_numbers
from features.spec import FIRST_INEXACT_INTEGER

# 007 and +49 are names, as is a number of 25 digits.
_NAMES = r"^[-+]?(0\d|\d{20})"
_GROUPED = r"^[-+]?[1-9]\d{0,2}([.,])\d{3}$"
_DECIMALS = r"^-|^0,|,0\d|[.$€£¥%]"  # signs of decimal commas, not of commas in lists
_PAIR = re.compile(r"[^:=\s][^:=]*[:=]\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
PAIR_SEPARATORS = ("|", ";", ",", " ")
MIN_PAIRED = 0.1


class NumberStyle(NamedTuple):
    """Format of a text column's numbers, if they are not just digits, a point and an exponent."""

    decimal: Decimal
    evidence: str
    """An example; or the reason for the decimal mark, if it might separate thousands."""
    has_to_be_said: bool
    """True if the registry needs `decimal:`: without it, texts would be read differently or refused."""


class Reading(NamedTuple):
    """A text column [N] as numbers or booleans if it holds those, otherwise unchanged."""

    column: pl.Series
    style: NumberStyle | None = None
    almost: str | None = None
    """The commonest text that keeps a column of numbers from being one."""


def read_texts(column: pl.Series, *, is_delimited: bool) -> Reading:
    """Numbers or flags if all texts [N] are; otherwise the texts, and the obstacle if nearly all are.

    In a file with types, texts of plain integers stay texts.

    >>> read_texts(pl.Series(["128.0", "7", ""]), is_delimited=True).column.to_list()
    [128, 7, None]
    >>> read_texts(pl.Series(["1.234,5", "7"]), is_delimited=True).style.decimal
    ','
    """
    trimmed = column.str.strip_chars()
    trimmed = trimmed.set(trimmed == "", None)
    texts = trimmed.drop_nulls()
    if not len(texts) or texts.str.contains(_NAMES).any():
        return Reading(column)
    lowercase = trimmed.str.to_lowercase()
    if lowercase.drop_nulls().is_in(["true", "false"]).all():
        return Reading(lowercase == "true")
    if not is_delimited and texts.str.contains(r"^-?\d+$").all():
        return Reading(column)
    numbers = _plain_numbers(trimmed)
    if numbers is not None and not _has_grouped_points(texts):
        is_name = numbers.dtype.is_integer() and texts.str.starts_with("+").any()
        is_name |= numbers.dtype.is_float() and texts.str.contains(r"^-?\d{16,}(\.0*)?$").any()
        return Reading(column if is_name else numbers)
    return _decorated(trimmed, texts) or Reading(column, almost=_obstacle(texts))


def _plain_numbers(trimmed: pl.Series) -> pl.Series | None:
    for dtype in (pl.Int64, pl.UInt64, pl.Float64):
        numbers = trimmed.cast(dtype, strict=False)
        if numbers.null_count() == trimmed.null_count():
            return as_integers(numbers.fill_nan(None)) if dtype == pl.Float64 else numbers
    return None


def as_integers(numbers: pl.Series) -> pl.Series:
    """Floats [N] without NaN as int64 if all are integers that their type holds exactly; else unchanged."""
    values = numbers.drop_nulls()
    is_exact = (values == values.round()) & (values.abs() < FIRST_INEXACT_INTEGER[numbers.dtype])
    return numbers.cast(pl.Int64) if len(values) and is_exact.all() else numbers


def _decorated(trimmed: pl.Series, texts: pl.Series) -> Reading | None:
    """Numbers with a currency sign, thousands, a percent sign or a decimal comma."""
    name = trimmed.name
    has_sign = texts.str.contains(r"[$€£¥%]").any()
    # "101,202" may be a list of two, 192.168.100.200 is an address, and 555 123 456 a phone number.
    if GROUPED_CODE_WORDS & words_of(name) or (is_code(name) and not has_sign):
        return None
    if texts.str.contains(r"^\d{1,3}(\.\d{1,3}){3}$").all():
        return None
    readings: dict[Decimal, pl.Series] = {}
    for decimal in (".", ","):
        with suppress(InputError):
            readings[decimal] = parse_numbers(trimmed, decimal)
    if not readings:
        return None
    decimal, evidence = next(iter(readings)), ""
    if len(readings) == 2 and (readings["."] - readings[","]).abs().max():
        decimal, evidence = _settled(texts)
    marked = texts.filter(texts.str.contains(r"[^-+\d.]"))
    evidence = evidence or f"written as {str((marked if len(marked) else texts)[0])[:20]!r}"
    if decimal == "," and not texts.str.contains(_DECIMALS).any():
        evidence += " (if these are lists: categorical_list)"
    has_to_be_said = decimal == "," or bool(trimmed.str.contains(MAY_BE_TWO).any())
    return Reading(readings[decimal].fill_nan(None), NumberStyle(decimal, evidence, has_to_be_said))


def _settled(texts: pl.Series) -> tuple[Decimal, str]:
    """Decimal mark of numbers such as 1,234 that are valid with either mark, and the reason."""
    texts = texts.str.replace_all(r"[$€£¥%\s]", "")
    grouped = texts.filter(texts.str.contains(_GROUPED))
    example = grouped[0] if len(grouped) else texts[0]
    mark: Decimal = "," if "," in example else "."
    other: Decimal = "." if mark == "," else ","
    ungrouped = texts.filter(texts.str.contains(r"^[-+]?\d{4,}$"))
    if len(ungrouped):
        return mark, f"{example!r} has a decimal mark, as {ungrouped[0]!r} has no separator"
    if mark == "," or _has_grouped_points(texts):
        return other, f"{example!r} has thousands: three digits follow each {mark!r}"
    return mark, f'{example!r} has a decimal point (if that separates thousands: `decimal: ","`)'


def _has_grouped_points(texts: pl.Series) -> bool:
    """True for points between thousands, as in 950 and 12.500, where decimals would keep or cut final zeros alike."""
    is_grouped = texts.str.contains(_GROUPED)
    if not is_grouped.any() or not texts.filter(~is_grouped).str.contains(r"^[-+]?\d{1,3}$").all():
        return False
    return texts.str.contains(r"\.\d*0$").any() and not is_grouped.all()


def _obstacle(texts: pl.Series) -> str | None:
    others = texts.filter(texts.str.replace_all(r"[$€£¥%,]", "").cast(pl.Float64, strict=False).is_null())
    is_close = 0 < len(others) < 0.5 * len(texts) and others.n_unique() <= 3
    return str(others.mode().min()) if is_close else None


def weighted_separator(texts: pl.Series) -> str | None:
    """Separator between pairs of value and weight, as in a:0.5|b:2.0, if all texts [n] hold such pairs.

    >>> weighted_separator(pl.Series(["a:0.5|b:2.0", "c:1"]))
    '|'
    """
    some = texts.unique(maintain_order=True).head(200).to_list()
    for separator in PAIR_SEPARATORS:
        pieces = [[piece.strip() for piece in text.split(separator) if piece.strip()] for text in some]
        flat = [piece for row in pieces for piece in row]
        if not flat or sum(len(row) > 1 for row in pieces) < MIN_PAIRED * len(pieces):
            continue
        # 09:30|10:15 are clock times.
        is_weighted = any("." in re.split("[:=]", piece)[-1] or not piece[0].isdigit() for piece in flat)
        if is_weighted and all(_PAIR.fullmatch(piece) for piece in flat):
            return separator
    return None
