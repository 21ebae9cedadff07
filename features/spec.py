"""Feature types: the columns that each accepts, and their encoding as tokens or floats.

There are two encoded forms: a bag of 64-bit tokens (one for a scalar, any number for a list) and a float32 column. A
new type is a class here and a name in `AnyFeature`.
"""

from typing import Annotated, Any, Literal, get_args

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from features.arrays import AnyFloats, Flags, Float32s, Float64s, Int64s
from features.edges import FIRST_INEXACT_FLOAT32, as_float32, edges_of
from features.errors import InputError
from features.hashing import token_of_text
from features.parsing import FIRST_INEXACT_FLOAT64, Decimal, ValueType, parse_numbers, parse_values, text_of_value

# From here on, a float column no longer distinguishes all neighbouring integers.
FIRST_INEXACT_INTEGER = {pl.Float16(): 2**11, pl.Float32(): FIRST_INEXACT_FLOAT32, pl.Float64(): FIRST_INEXACT_FLOAT64}
MAX_FLOAT32 = np.float64(np.finfo(np.float32).max)

TEXT_TYPES = (pl.String, pl.Categorical, pl.Enum)


def later_setting() -> Any:
    """Field that is newer than the first format: it is written only where set, so older fingerprints stay."""
    return Field(default=None, exclude_if=lambda value: value is None)


class FeatureSpec(BaseModel):
    """Base of the feature types."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Column of the raw data; unique in a registry."""
    key: str | None = None
    """Name in the salts; set it to the old name when a column is renamed, so that it keeps its rows."""

    @property
    def stable_key(self) -> str:
        """Name in the salts: `key`, or the column's name."""
        return self.name if self.key is None else self.key

    @property
    def has_tokens(self) -> bool:
        """True if the encoded form is a bag of tokens, False if it is a float column."""
        return True

    @property
    def is_list(self) -> bool:
        """True if an example may hold any number of tokens."""
        return False

    def parse(self, column: pl.Series) -> pl.Series:
        """The raw column [N] with its texts parsed; a parsed column is returned unchanged.

        Raises `InputError` for a text that is not a value of the feature.
        """
        return column

    def check(self, column: pl.Series) -> None:
        """Raise `InputError` unless `encode` can take every value of the parsed column [N]."""
        raise NotImplementedError

    def normalize(self, column: pl.Series) -> pl.Series:
        """The checked column [N] as `encode` expects it: numbers as buckets or floats, other values unchanged."""
        return column

    def encode(self, dtype: pl.DataType) -> pl.Expr:
        """Expression that encodes a normalized column of this data type."""
        raise NotImplementedError

    def reject(self, expected: str, found: str, remedy: str, row: int | None = None) -> InputError:
        """The error for a column that is not as expected; `row` is a position in the checked column."""
        return InputError(f"column {self.name!r}: expected {expected}", found=found, remedy=remedy, row=row)


Probes = Annotated[int, Field(ge=1, le=64)]


class Categorical(FeatureSpec):
    """One value per example: text, integers, booleans, or floats that are integers.

    >>> Categorical(name="user").encode(pl.Int64()).meta.output_name()
    'user'
    """

    type: Literal["categorical"] = "categorical"
    probes: Probes | None = None
    """Table rows read (and concatenated) per value; the experiment's `embedding.probes` where not set."""
    value_type: ValueType | None = later_setting()
    """Type of every value, however it is stored or written: `integer` (7, 7.0, "7.0") or `boolean` (true, "True", 1).
    Without it, texts are compared letter by letter: "7.0" and "7" are different values."""

    def parse(self, column: pl.Series) -> pl.Series:
        return _parsed_values(self, column, self.value_type)

    def check(self, column: pl.Series) -> None:
        if isinstance(column.dtype, pl.List | pl.Array):
            remedy = "declare it `categorical_list`"
            raise self.reject("one value per row", f"a list ({_type(column)})", remedy)
        check_text(self, column)

    def encode(self, dtype: pl.DataType) -> pl.Expr:
        return token_of_text(canonical_text(pl.col(self.name), dtype)).alias(self.name)


class CategoricalList(FeatureSpec):
    """Any number of values per example, pooled: a native list column, or text with a separator.

    A null list is one missing token; an empty list or an empty text has no token and pools to zeros.
    """

    type: Literal["categorical_list"] = "categorical_list"
    probes: Probes | None = None
    """Table rows read (and concatenated) per value; the experiment's `embedding.probes` where not set."""
    separator: str | None = Field(default=None, min_length=1)
    """Text between two values of a text column; leave out for native lists."""
    pooling: Literal["mean", "sum"] = "mean"
    """Operation that reduces the values' embeddings to one vector."""
    value_type: ValueType | None = later_setting()
    """Type of every value, as for a categorical feature."""

    @property
    def is_list(self) -> bool:
        return True

    def parse(self, column: pl.Series) -> pl.Series:
        is_nan = column.is_nan() if column.dtype.is_float() else column.is_null()
        if is_nan.fill_null(True).all() and not isinstance(column.dtype, pl.List | pl.Array):  # pandas: lists of none
            return pl.repeat(None, len(column), dtype=pl.Null, eager=True).alias(column.name)
        if self.value_type is None:
            return column
        if column.dtype in TEXT_TYPES and self.separator is not None:
            column = pl.DataFrame(column).select(self._split(column.dtype)).to_series()
        if not isinstance(column.dtype, pl.List | pl.Array):
            return column
        self._check_values(column)
        inner: Any = column.dtype.inner
        if inner == pl.Null or (inner.is_integer() and self.value_type == "integer"):
            return column
        texts = column.cast(pl.List(inner)).cast(pl.List(pl.String))
        parsed = texts.to_frame().select(
            pl.col(column.name).list.eval(text_of_value(pl.element(), self.value_type)).alias(column.name)
        )
        return parsed.to_series()

    def check(self, column: pl.Series) -> None:
        if isinstance(column.dtype, pl.List | pl.Array):
            self._check_values(column)
        elif column.dtype in TEXT_TYPES and self.separator is None:
            remedy = "set `separator:`, or declare it `categorical`"
            raise self.reject("a list column", "text and no separator declared", remedy)
        elif column.dtype not in (*TEXT_TYPES, pl.Null):
            remedy = "declare it `categorical`, or make it a list"
            raise self.reject("a list column", f"one value per row ({_type(column)})", remedy)

    def _check_values(self, column: pl.Series) -> None:
        values = column.explode()
        try:
            check_text(self, _parsed_values(self, values, self.value_type))
        except InputError as error:
            if error.row is None:
                raise
            # An empty or null list is one null among the values.
            lengths = column.cast(pl.List(values.dtype)).list.len().fill_null(0).clip(lower_bound=1)
            row = int((lengths.cum_sum() <= error.row).sum())
            raise InputError(error.expected, found=error.found, remedy=error.remedy, row=row) from None

    def encode(self, dtype: pl.DataType) -> pl.Expr:
        texts_type = pl.List(pl.String)
        if isinstance(dtype, pl.List | pl.Array):
            inner: Any = dtype.inner
            values = pl.col(self.name).cast(pl.List(inner))
            texts = values.list.eval(canonical_text(pl.element(), inner))
        elif dtype == pl.Null:
            texts = pl.col(self.name).cast(texts_type)
        else:
            texts = self._split(dtype)
        missing = pl.lit([None], dtype=texts_type)
        return texts.fill_null(missing).list.eval(token_of_text(pl.element())).alias(self.name)

    def _split(self, dtype: pl.DataType) -> pl.Expr:
        assert self.separator is not None
        assert dtype in TEXT_TYPES
        text = pl.col(self.name).cast(pl.String)
        none = pl.lit([], dtype=pl.List(pl.String))
        return pl.when(text == "").then(none).otherwise(text.str.split(self.separator)).alias(self.name)


class NumericFit(BaseModel):
    """Statistics of a numeric column over the training rows, fitted by `prepare`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    """Mean of the values present."""
    std: float = Field(ge=0)
    """Standard deviation of the values present; 0 if the column is constant."""
    boundaries: tuple[float, ...] = ()
    """Increasing inner edges of the buckets; empty unless the transform is `bucketize`."""


class Numeric(FeatureSpec):
    """A number, encoded as a float column, or as a token by the transforms `bucketize` and `log_square`.

    A missing value (null, NaN) becomes 0 in a float column, which is the training mean under `standardize`, and the
    missing token in a token column.
    """

    type: Literal["numeric"] = "numeric"
    transform: Literal["standardize", "log1p", "none", "bucketize", "log_square"] = "standardize"
    """`standardize`: (x - mean) / std. `log1p`: sign(x) ln(1 + |x|). `bucketize`: quantile bucket. `log_square`:
    floor(ln(x)^2) above 2, else the integer part (the Criteo_x4 rule of BARS)."""
    num_buckets: int = Field(default=64, ge=2, le=65536)
    """Buckets of `bucketize`; equal-frequency on the training rows."""
    probes: Probes | None = None
    """As for a categorical feature; read by the two transforms that make tokens."""
    decimal: Decimal | None = later_setting()
    """Decimal mark of numbers that are texts; without it, the ambiguous `1,234` is refused."""
    fitted: NumericFit | None = None
    """Filled by `prepare`; leave out in a registry file."""

    @property
    def has_tokens(self) -> bool:
        return self.transform in ("bucketize", "log_square")

    @property
    def needs_fit(self) -> bool:
        """True if the transform needs statistics of the training rows that are not fitted yet."""
        return self.transform in ("standardize", "bucketize") and self.fitted is None

    def parse(self, column: pl.Series) -> pl.Series:
        return parse_numbers(column, self.decimal) if column.dtype in TEXT_TYPES else column

    def check(self, column: pl.Series) -> None:
        dtype = column.dtype
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
            remedy = "declare it `categorical`, or cast it before"
            raise self.reject("a number", _describe(column), remedy)
        if dtype.is_float():
            self.check_numbers(column.to_numpy())

    def check_numbers(self, numbers: AnyFloats) -> None:
        """Raise `InputError` unless float32 can hold every number [N]; NaN is a missing one."""
        row = _first(np.abs(numbers) > MAX_FLOAT32)
        if row is not None:
            remedy = "make it null, or clip it before"
            raise self.reject("finite numbers in float32's range", f"{numbers[row]:.12g}", remedy, row)

    def normalize(self, column: pl.Series) -> pl.Series:
        numbers = column.cast(pl.Float64).to_numpy()  # null becomes NaN
        if not self.has_tokens:
            return pl.Series(self.name, self.floats(numbers))
        buckets, is_missing = pl.Series(self.name, self.buckets(numbers)), np.isnan(numbers)
        return buckets.set(pl.Series(is_missing), None) if is_missing.any() else buckets

    def encode(self, dtype: pl.DataType) -> pl.Expr:
        column = pl.col(self.name)
        return token_of_text(canonical_text(column, dtype)).alias(self.name) if self.has_tokens else column

    def floats(self, numbers: Float64s) -> Float32s:
        """Float column [N] of numbers [N]; NaN, a missing value, becomes 0."""
        if self.transform == "log1p":
            numbers = np.copysign(np.log1p(np.abs(numbers)), numbers)
        elif self.transform == "standardize":
            fitted = self._fitted()
            with np.errstate(over="ignore"):  # with a tiny deviation, a new extreme may exceed float32
                numbers = (numbers - fitted.mean) / (fitted.std or 1.0)
            numbers = np.clip(numbers, -MAX_FLOAT32, MAX_FLOAT32)
        return np.where(np.isnan(numbers), 0.0, numbers).astype(np.float32)

    def buckets(self, numbers: Float64s) -> Int64s:
        """Bucket [N] of each number [N]; undefined for NaN."""
        present = np.where(np.isnan(numbers), 0.0, numbers)
        if self.transform == "bucketize":
            edges = edges_of(self._fitted().boundaries)
            return np.searchsorted(edges.values, edges.rounding(present), side="right")
        present = as_float32(present)  # one bucket for .1, however it is stored
        logs = np.log(np.maximum(present, 1.0))
        small = np.maximum(np.trunc(present), float(np.iinfo(np.int64).min))  # below, a cast has no defined result
        return np.where(present > 2, np.floor(logs * logs), small).astype(np.int64)

    def _fitted(self) -> NumericFit:
        assert self.fitted is not None, f"{self.name}: {self.transform} before prepare fitted it"
        return self.fitted


def canonical_text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Canonical text of a categorical value: 7, 7.0 and "7" agree; true and false; strings unchanged.

    >>> pl.select(canonical_text(pl.lit(7.0), pl.Float64())).item()
    '7'
    """
    if dtype.is_float():
        return column.fill_nan(None).cast(pl.Int64).cast(pl.String)
    if isinstance(dtype, pl.Decimal):
        return column.cast(pl.Int128).cast(pl.String)
    return column.cast(pl.String)


def _parsed_values(spec: FeatureSpec, column: pl.Series, value_type: ValueType | None) -> pl.Series:
    """A raw column [N] as texts of integers or flags if its type may hold them; unchanged without a `value_type`."""
    dtype = column.dtype
    if value_type is None or dtype == pl.Null or (dtype.is_integer() and value_type == "integer"):
        return column
    if isinstance(dtype, pl.Decimal):
        column = column.cast(pl.String)
    elif not (dtype.is_numeric() or dtype in (*TEXT_TYPES, pl.Boolean)):
        return column
    check_text(spec, column)
    texts = pl.DataFrame(column).select(canonical_text(pl.col(column.name), column.dtype)).to_series()
    return parse_values(texts, value_type)


def check_text(spec: FeatureSpec, column: pl.Series) -> None:
    """Raise `InputError` unless every value of the column [N] has a canonical text."""
    dtype = column.dtype
    if dtype.is_float():
        _check_integral(spec, column)
    elif isinstance(dtype, pl.Decimal) and dtype.scale:
        raise spec.reject("categories", f"decimals ({dtype})", "cast the column to text or integers before")
    elif not (dtype.is_integer() or dtype in (*TEXT_TYPES, pl.Boolean, pl.Null, pl.Decimal)):
        remedy = "cast it to text, or derive parts such as the hour and the weekday"
        raise spec.reject("categories: text, integers or booleans", _type(column), remedy)


def _check_integral(spec: FeatureSpec, column: pl.Series) -> None:
    numbers = column.to_numpy()  # numpy: a polars operation takes 30 us, and online requests have one row
    row = _first(np.isinf(numbers) | ((numbers != np.rint(numbers)) & ~np.isnan(numbers)))
    if row is not None:
        remedy = "declare it `numeric` (transform: bucketize keeps it in the table), or round it before"
        raise spec.reject("categories: text, integers or booleans", f"the number {column[row]:.12g}", remedy, row)
    limit = FIRST_INEXACT_INTEGER[column.dtype]
    row = _first(np.abs(numbers) >= limit)
    if row is not None:
        expected = f"integers below 2^{limit.bit_length() - 1} in a {column.dtype} column"
        remedy = "store the column as integers or text: such a float cannot tell identifiers apart"
        raise spec.reject(expected, f"{column[row]:.0f}", remedy, row)


def _first(mask: Flags) -> int | None:
    return int(mask.argmax()) if mask.any() else None


def _type(column: pl.Series) -> str:
    return str(column.dtype)[:60]


def _describe(column: pl.Series) -> str:
    if isinstance(column.dtype, pl.List | pl.Array):
        return f"a list ({_type(column)})"
    first = column.drop_nulls().head(1).to_list()
    return _type(column) + (f", such as {str(first[0])[:40]!r}" if first else "")


AnyFeature = Annotated[Categorical | CategoricalList | Numeric, Field(discriminator="type")]
FEATURE_TYPES: dict[str, type[FeatureSpec]] = {
    kind.model_fields["type"].default: kind for kind in get_args(get_args(AnyFeature)[0])
}
