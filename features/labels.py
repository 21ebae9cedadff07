"""Columns of an example besides its features: the label, the weight and the group.

B examples.
"""

from typing import Self

import polars as pl
from pydantic import BaseModel, ConfigDict, model_validator

from features.edges import edges_of
from features.errors import InputError
from features.hashing import token_of_text
from features.parsing import FALSE_TEXTS, TRUE_TEXTS, parse_numbers
from features.spec import MAX_FLOAT32, TEXT_TYPES, Categorical, canonical_text

LABEL_REMEDY = "say in the registry what is positive: `label: {column: NAME, at_least: 4}`, or `positive: [VALUE]`"


class LabelRule(BaseModel):
    """Rule for the positive values of a label that is not written as 0 and 1, -1 and 1, or yes and no.

    >>> LabelRule(positive=("Canceled",)).outcomes(pl.Series(["Canceled", "Not_Canceled"])).to_list()
    [True, False]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_least: float | None = None
    """The smallest number that is positive, such as 4 for a rating of 1 to 5."""
    positive: tuple[str | bool | int | float, ...] = ()
    """The positive values; a number matches however it is written. All other values are negative."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.at_least is None) == (not self.positive):
            found = "neither" if self.at_least is None else "both"
            remedy = "give the smallest positive number, or a list of the positive values"
            raise InputError("a label's rule needs `at_least:` or `positive:`", found=found, remedy=remedy)
        return self

    def outcomes(self, column: pl.Series) -> pl.Series:
        """Flags [B] of the positive values of a column without nulls; raises `InputError` for unusable values."""
        _check_scalars(column, f"label {column.name!r}: expected texts, numbers or flags", "label")
        if self.at_least is not None:
            numbers = _numbers(column).fill_null(float("nan"))
            if (is_nan := numbers.is_nan()).any():
                expected, remedy = f"label {column.name!r}: expected a number", "drop those rows"
                raise InputError(expected, found="no number", remedy=remedy, row=is_nan.arg_max())
            threshold = edges_of((self.at_least,))  # float32 and float64 values of .7 are the same number
            return pl.Series(threshold.rounding(numbers.to_numpy()) >= threshold.values[0])
        texts = column.cast(pl.String).str.strip_chars()
        flags = [str(value).lower() for value in self.positive if isinstance(value, bool)]
        words = [value for value in self.positive if isinstance(value, str)]
        others = [value for value in self.positive if not isinstance(value, bool)]
        numbers = pl.Series(map(str, others), dtype=pl.String).cast(pl.Float64, strict=False).drop_nulls()
        is_number = texts.cast(pl.Float64, strict=False).is_in(numbers.implode()).fill_null(False)
        return texts.is_in(words) | texts.str.to_lowercase().is_in(flags) | is_number


class LabelReader:
    """Reads the labels of one set of rows chunk by chunk and checks that all chunks use the same form."""

    def __init__(self, name: str, rule: LabelRule | None = None) -> None:
        self.name, self.rule = name, rule
        self._expected = f"label {name!r}: expected 0 or 1"
        self._negatives: set[float] = set()

    def read(self, raw: pl.DataFrame) -> pl.Series:
        """Labels [B] as UInt8 0 or 1.

        Without a rule the column holds 0 and 1, -1 and 1, or flags such as true, yes or t. Raises `InputError` for
        anything else, null included.
        """
        column = raw[self.name]
        if column.null_count():
            raise self._error("null", "drop those rows", column.is_null().arg_max())
        if self.rule is not None:
            return self.rule.outcomes(column).cast(pl.UInt8).alias("label")
        numbers = self._numbers(column)
        wrong = ~numbers.is_in([-1.0, 0.0, 1.0])
        if wrong.any() or numbers.null_count():
            row = wrong.fill_null(True).arg_max()
            found = "an empty text" if row is None or numbers[row] is None else f"{numbers[row]:.12g}"
            raise self._error(found, LABEL_REMEDY, row)
        self._negatives |= set(numbers.filter(numbers < 1).unique())
        if len(self._negatives) > 1:
            raise self._error("-1 as well as 0", LABEL_REMEDY, (numbers == numbers.min()).arg_max())
        return (numbers == 1).cast(pl.UInt8).alias("label")

    def _numbers(self, column: pl.Series) -> pl.Series:
        _check_scalars(column, self._expected, "label")
        numbers = column
        if column.dtype in TEXT_TYPES:
            text = column.cast(pl.String).str.strip_chars().str.to_lowercase()
            flags = dict.fromkeys(TRUE_TEXTS, "1") | dict.fromkeys(FALSE_TEXTS, "0")
            numbers = text.replace_strict(flags, default=text)
        try:
            return _numbers(numbers)
        except InputError as error:
            raise self._error(repr(column[error.row or 0][:40]), LABEL_REMEDY, error.row) from None

    def _error(self, found: str, remedy: str, row: int | None = None) -> InputError:
        return InputError(self._expected, found=found, remedy=remedy, row=row)


def _check_scalars(column: pl.Series, expected: str, role: str) -> None:
    """Raise `InputError` for a column of another type than texts, numbers and flags."""
    if not (column.dtype.is_numeric() or column.dtype in (*TEXT_TYPES, pl.Boolean, pl.Null)):
        remedy = f"name the right column under `{role}:`"
        raise InputError(expected, found=str(column.dtype)[:60], remedy=remedy)


def _numbers(column: pl.Series) -> pl.Series:
    """A column [B] of scalars as Float64, null where a text is blank; raises `InputError` for other texts."""
    return parse_numbers(column) if column.dtype in TEXT_TYPES else column.cast(pl.Float64)


def weight_column(raw: pl.DataFrame, name: str) -> pl.Series:
    """Example weights [B] as Float32; raises `InputError` for negative, missing or infinite ones."""
    column = raw[name]
    expected = f"weight {name!r}: expected finite numbers from 0"
    _check_scalars(column, expected, "weight")
    weights = _numbers(column)
    wrong = ~((weights >= 0) & (weights <= MAX_FLOAT32)).fill_null(False)
    if wrong.any():
        row = wrong.arg_max()
        found = "null" if row is None or weights[row] is None else f"{weights[row]:.12g}"
        raise InputError(expected, found=found, remedy="correct or drop those rows", row=row)
    return weights.cast(pl.Float32).alias("weight")


def group_column(raw: pl.DataFrame, name: str) -> pl.Series:
    """Group tokens [B] as UInt64, hashed like those of a categorical feature."""
    Categorical(name=name).check(raw[name])
    return raw.select(token_of_text(canonical_text(pl.col(name), raw[name].dtype)).alias("group")).to_series()
