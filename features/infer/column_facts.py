"""Facts of a raw column from a sample: its kind, its values, and how well it alone predicts the label."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import polars as pl

from features.arrays import Flags, Float64s
from features.infer.column_names import TIME_WORDS, words_of
from features.infer.moments import SURE_DIGITS, digits_of_moment, is_epoch, is_short_hour, is_written_moment
from features.infer.number_texts import NumberStyle, as_integers, read_texts
from features.registry import is_plain_name
from features.spec import TEXT_TYPES

ColumnKind = Literal["empty", "boolean", "integer", "number", "text", "list", "time", "other"]
MIN_LABELS_PER_CLASS = 10
MIN_MOMENTS = 0.95
MIN_DISTINCT_DATES = 8


@dataclass(frozen=True)
class ColumnFacts:
    """Sample [N] of a raw column; texts of a delimited file count as numbers if all of them are.

    >>> facts = ColumnFacts.of(pl.Series("price", ["3", "4.5", None]), is_delimited=True)
    >>> facts.kind, facts.num_values, round(facts.missing, 2)
    ('number', 2, 0.33)
    """

    name: str
    """Name of the column."""
    column: pl.Series
    """The sample [N]: numbers as numbers, flags as booleans, and floats as integers if all of them are."""
    kind: ColumnKind
    style: NumberStyle | None = None
    """Format of numbers that are texts, if it is not plain."""
    almost_numbers: str | None = None
    """Most common text that is not a number in a column that otherwise holds numbers."""
    is_delimited: bool = False
    """True for a file without types."""

    @staticmethod
    def of(column: pl.Series, *, is_delimited: bool) -> "ColumnFacts":
        """Facts of a raw column from a reader."""
        name, style, almost = column.name, None, None
        if not is_plain_name(name):
            column = column.alias("")  # polars would take the name for a pattern
        if column.dtype.is_float():
            column = as_integers(column.fill_nan(None))
        elif isinstance(column.dtype, pl.Decimal):
            column = column.cast(pl.Float64) if column.dtype.scale else column.cast(pl.Int128)
        elif column.dtype in TEXT_TYPES:
            column, style, almost = read_texts(column.cast(pl.String), is_delimited=is_delimited)
        return ColumnFacts(name, column, _kind(column), style, almost, is_delimited)

    @cached_property
    def values(self) -> pl.Series:
        """Values that are not missing [n <= N]."""
        return self.column.drop_nulls()

    @property
    def missing(self) -> float:
        """Share of missing values."""
        return self.column.null_count() / len(self.column)

    @cached_property
    def num_values(self) -> int:
        """Number of distinct values."""
        return self.values.n_unique() if self.kind not in ("list", "other") else 0

    @property
    def uniqueness(self) -> float:
        """Distinct values per value, from 0 to 1."""
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
        """Most common number, the smallest on a tie."""
        return self._number(self.values.mode().min())

    @cached_property
    def is_moment(self) -> bool:
        """True for dates and times in any notation."""
        if self.kind == "time":
            return True
        if self.kind not in ("text", "integer", "number") or self.style is not None:
            return False
        has_time_name = bool(TIME_WORDS & words_of(self.name))
        numbers = self.values.cast(pl.Float64, strict=False)
        may_be_epoch = has_time_name and not numbers.null_count()
        if may_be_epoch and is_epoch(self._number(numbers.min()), self._number(numbers.max())):
            return True
        min_digits = 8 if has_time_name or self.num_values >= MIN_DISTINCT_DATES else SURE_DIGITS
        forms = [is_written_moment, lambda text: digits_of_moment(text) >= min_digits] + [is_short_hour] * may_be_epoch
        texts = self.values.unique(maintain_order=True).head(200).cast(pl.String)
        return any(sum(map(form, texts)) >= max(1, MIN_MOMENTS * len(texts)) for form in forms)

    @staticmethod
    def _number(value: object) -> float:
        return float(value) if isinstance(value, int | float) else 0.0


def _kind(column: pl.Series) -> ColumnKind:
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


def label_auc(column: pl.Series, labels: Flags) -> float:
    """AUC [0.5, 1] of this column [N] as the only predictor: by the label rates of its values, or for numbers by order.

    The rates are computed on a random half of the rows and evaluated on the other, so rare values do not count.

    >>> label_auc(pl.Series([1, 5] * 200), np.array([False, True] * 200))
    1.0
    """
    codes = column.rank("dense").fill_null(0).to_numpy().astype(np.int64)
    is_learned = np.random.default_rng(0).random(len(codes)) < 0.5
    counts = np.bincount(codes[is_learned], minlength=codes.max() + 1)
    positives = np.bincount(codes[is_learned & labels], minlength=codes.max() + 1)
    rates = (positives + labels.mean()) / (counts + 1)
    best = _auc_if_enough(rates[codes[~is_learned]], labels[~is_learned])
    if column.dtype.is_numeric():
        present = column.is_not_null().to_numpy()
        by_order = _auc_if_enough(column.drop_nulls().cast(pl.Float64).to_numpy(), labels[present])
        best = max(best, by_order, 1 - by_order)
    return best


def _auc_if_enough(scores: Float64s, labels: Flags) -> float:
    return auc(scores, labels) if min(labels.sum(), (~labels).sum()) >= MIN_LABELS_PER_CLASS else 0.5


def auc(scores: Float64s, labels: Flags) -> float:
    """Probability that a positive has a higher score [N] than a negative; ties count half.

    >>> auc(np.array([0.2, 0.8, 0.5, 0.5]), np.array([False, True, False, True]))
    0.875
    """
    num_positive, num_negative = int(labels.sum()), int((~labels).sum())
    ranks = pl.Series(scores).rank("average").to_numpy()
    return float((ranks[labels].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
