"""What a sample says of one raw column: its kind, its values, and how well it alone tells the label."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from features.spec import FIRST_INEXACT_INTEGER, TEXT_TYPES

Kind = Literal["empty", "boolean", "integer", "number", "text", "list", "time", "other"]
Labels = npt.NDArray[np.bool_]

MIN_LABELS_A_CLASS = 10
TIME_WORDS = frozenset({"time", "timestamp", "ts", "date", "datetime", "day", "dt", "hour", "epoch", "created", "at"})
EPOCHS = ((10**8, 2**32), (10**11, 2**42), (10**14, 2**52), (10**17, 2**62))  # s, ms, us, ns since 1970
DIGIT_DATES = {"%Y%m%d": 8, "%y%m%d%H": 8, "%Y%m%d%H": 10, "%Y%m%d%H%M%S": 14}  # form to digits
WRITTEN_DATES = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%Y/%m/%d")


@dataclass(frozen=True)
class ColumnFacts:
    """A raw column's sample [N]; text of a delimited file counts as numbers where all of it is.

    >>> facts = ColumnFacts.of(pl.Series("price", ["3", "4.5", None]), is_delimited=True)
    >>> facts.kind, facts.num_values, round(facts.missing, 2)
    ('number', 2, 0.33)
    """

    column: pl.Series
    """The sample [N], numbers as numbers."""
    kind: Kind
    almost_numbers: str | None = None
    """The commonest text that keeps a column of numbers from being one."""

    @staticmethod
    def of(column: pl.Series, *, is_delimited: bool) -> "ColumnFacts":
        """Facts of a raw column as a reader returns it."""
        almost = None
        if column.dtype.is_float():
            column = column.fill_nan(None)
        elif is_delimited and column.dtype == pl.String:
            column, almost = _parsed(column)
        elif isinstance(column.dtype, pl.Decimal):
            column = column.cast(pl.Float64) if column.dtype.scale else column.cast(pl.Int128)
        elif column.dtype in TEXT_TYPES:
            column = column.cast(pl.String)
        return ColumnFacts(column, _kind(column), almost)

    @property
    def name(self) -> str:
        """Name of the column."""
        return self.column.name

    @cached_property
    def values(self) -> pl.Series:
        """Values that are there [n <= N]."""
        return self.column.drop_nulls()

    @property
    def missing(self) -> float:
        """Share of rows without a value."""
        return self.column.null_count() / len(self.column)

    @cached_property
    def num_values(self) -> int:
        """Distinct values."""
        return self.values.n_unique() if self.kind not in ("list", "other") else 0

    @property
    def uniqueness(self) -> float:
        """Distinct values a value, from 0 to 1."""
        return self.num_values / len(self.values) if len(self.values) else 0.0

    @cached_property
    def low(self) -> float:
        """Smallest number."""
        return self._number(self.values.min())

    @cached_property
    def high(self) -> float:
        """Largest number."""
        return self._number(self.values.max())

    @cached_property
    def skew(self) -> float:
        """Third standardised moment; 0 for equal numbers."""
        return self._number(self.values.cast(pl.Float64).skew()) if self.high > self.low else 0.0

    @cached_property
    def mode(self) -> float:
        """Commonest number, the smallest of them on a tie."""
        return self._number(self.values.mode().min())

    @property
    def is_integral(self) -> bool:
        """True for integers, and for floats that all are."""
        if self.kind == "number":
            is_exact = self.values.abs() < FIRST_INEXACT_INTEGER[self.values.dtype]
            return bool(((self.values == self.values.round()) & is_exact).all())
        return self.kind == "integer"

    @cached_property
    def is_moment(self) -> bool:
        """True for dates and times, however written."""
        if self.kind == "time":
            return True
        if self.kind == "text":
            return self._all_match(lambda text: _is_written_date(text) or (self._has_time_name and _is_digits(text)))
        if self.kind != "integer" or not self._has_time_name:
            return False
        return any(low <= self.low and self.high < high for low, high in EPOCHS) or self._all_match(_is_digits)

    @property
    def _has_time_name(self) -> bool:
        return bool(TIME_WORDS & words_of(self.name))

    def _all_match(self, matches: Callable[[str], bool]) -> bool:
        texts = self.values.unique(maintain_order=True).head(200).cast(pl.String)
        return len(texts) > 0 and all(matches(text) for text in texts)

    @staticmethod
    def _number(value: object) -> float:
        return float(value) if isinstance(value, int | float) else 0.0


def words_of(name: str) -> set[str]:
    """Words of a column name in snake or camel case, lower case.

    >>> sorted(words_of("user_createdAt2"))
    ['at', 'created', 'user']
    """
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def _parsed(column: pl.Series) -> tuple[pl.Series, str | None]:
    """Numbers where all texts are; else the texts, and what stands in the way where nearly all are."""
    trimmed = column.str.strip_chars()
    trimmed = trimmed.set(trimmed == "", None)
    texts = trimmed.drop_nulls()
    # 007 is a name, and so is a number of 25 digits.
    if not len(texts) or texts.str.contains(r"^[-+]?(0\d|\d{20})").any():
        return column, None
    for dtype in (pl.Int64, pl.UInt64, pl.Float64):
        numbers = trimmed.cast(dtype, strict=False)
        if numbers.null_count() == trimmed.null_count():
            return numbers.fill_nan(None) if dtype == pl.Float64 else numbers, None
    others = texts.filter(texts.cast(pl.Float64, strict=False).is_null())
    is_close = len(others) < 0.5 * len(texts) and others.n_unique() <= 3
    return column, str(others.mode().min()) if is_close else None


def _kind(column: pl.Series) -> Kind:
    dtype = column.dtype
    if column.null_count() == len(column):
        return "empty"
    if isinstance(dtype, pl.List | pl.Array):
        inner: Any = dtype.inner
        is_plain = inner in (*TEXT_TYPES, pl.Boolean, pl.Null) or inner.is_integer() or inner.is_float()
        return "list" if is_plain else "other"
    if dtype == pl.Boolean:
        return "boolean"
    if dtype.is_integer():
        return "integer"
    if dtype.is_float():
        return "number"
    if dtype in (pl.Date, pl.Datetime):
        return "time"
    return "text" if dtype == pl.String else "other"


def _is_written_date(text: str) -> bool:
    if text.isdigit() or len(text) < 8:
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return any(_parses(text.split()[0] if text.split() else "", form) for form in WRITTEN_DATES)
    return True


def _is_digits(text: str) -> bool:
    return text.isdigit() and any(len(text) == length and _parses(text, form) for form, length in DIGIT_DATES.items())


def _parses(text: str, form: str) -> bool:
    try:
        datetime.strptime(text, form)
    except ValueError:
        return False
    return True


def label_auc(column: pl.Series, labels: Labels) -> float:
    """AUC [0.5, 1] of the label from this column [N] alone: by its values' label rates, or by its order for numbers.

    The rates come from a random half of the rows and are judged on the other, so that rare values prove nothing.

    >>> label_auc(pl.Series([1, 5] * 200), np.array([False, True] * 200))
    1.0
    """
    codes = column.rank("dense").fill_null(0).to_numpy().astype(np.int64)
    is_learned = np.random.default_rng(0).random(len(codes)) < 0.5
    counts = np.bincount(codes[is_learned], minlength=codes.max() + 1)
    positives = np.bincount(codes[is_learned & labels], minlength=codes.max() + 1)
    rates = (positives + labels.mean()) / (counts + 1)
    best = _auc(rates[codes[~is_learned]], labels[~is_learned])
    if column.dtype.is_numeric():
        present = column.is_not_null().to_numpy()
        by_order = _auc(column.drop_nulls().cast(pl.Float64).to_numpy(), labels[present])
        best = max(best, by_order, 1 - by_order)
    return best


def _auc(scores: npt.NDArray[np.float64], labels: Labels) -> float:
    """Probability that a positive is scored above a negative; ties count half."""
    num_positive, num_negative = int(labels.sum()), int((~labels).sum())
    if min(num_positive, num_negative) < MIN_LABELS_A_CLASS:
        return 0.5
    ranks = pl.Series(scores).rank("average").to_numpy()
    return float((ranks[labels].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
