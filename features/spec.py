"""Feature types: each knows which columns it accepts and how it lowers to tokens or to floats.

There are two lowered forms only: a bag of 64-bit tokens (one token for a scalar, any number for a list) and one
float32 column. A new type is a class here and one line in `FEATURE_TYPES`.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from features.errors import InputError
from features.hashing import token_of_text

MAX_EXACT_FLOAT = 2**53

Floats = npt.NDArray[np.float64]


class FeatureSpec(BaseModel):
    """What all feature types share; abstract."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Column of the raw data; unique in a registry."""
    key: str | None = None
    """Name that the salts are made of; set it to the old name when a column is renamed, so that its rows stay."""

    @property
    def stable_key(self) -> str:
        """What salts are made of: `key`, or the name."""
        return self.name if self.key is None else self.key

    @property
    def has_tokens(self) -> bool:
        """True where the lowered form is a bag of tokens, False where it is a float column."""
        return True

    @property
    def is_list(self) -> bool:
        """True where an example may hold any number of tokens."""
        return False

    @property
    def encoded_dtype(self) -> pl.DataType:
        """Data type of the lowered column."""
        return pl.UInt64() if self.has_tokens else pl.Float32()

    def check(self, column: pl.Series) -> None:
        """Raise `InputError` unless `lower` can take every value of the raw column [N]."""
        raise NotImplementedError

    def lower(self, dtype: pl.DataType) -> pl.Expr:
        """Expression from a raw column of this (checked) data type to the lowered column."""
        raise NotImplementedError

    def reject(self, expected: str, found: str, remedy: str) -> InputError:
        """The error that says what this column should have been."""
        return InputError(f"column {self.name!r}: expected {expected}", found=found, remedy=remedy)


Probes = Annotated[int, Field(ge=1, le=64)]


class Categorical(FeatureSpec):
    """One value an example; text, integers, booleans, or floats that are integers.

    >>> Categorical(name="user").lower(pl.Int64()).meta.output_name()
    'user'
    """

    type: Literal["categorical"] = "categorical"
    probes: Probes | None = None
    """Table rows read (and concatenated) per value; the experiment's `embedding.probes` where not set."""

    def check(self, column: pl.Series) -> None:
        if isinstance(column.dtype, pl.List | pl.Array):
            remedy = "declare it `categorical_list`"
            raise self.reject("one value a row", f"a list ({column.dtype})", remedy)
        check_text(self, column)

    def lower(self, dtype: pl.DataType) -> pl.Expr:
        return token_of_text(canonical_text(pl.col(self.name), dtype)).alias(self.name)


class CategoricalList(FeatureSpec):
    """Any number of values an example, pooled: a native list column, or text that holds a separator.

    A null list is one missing token; an empty list, or an empty text, has no token and pools to zeros.
    """

    type: Literal["categorical_list"] = "categorical_list"
    probes: Probes | None = None
    """Table rows read (and concatenated) per value; the experiment's `embedding.probes` where not set."""
    separator: str | None = Field(default=None, min_length=1)
    """Text that stands between two values of a text column; leave out for native lists."""
    pooling: Literal["mean", "sum"] = "mean"
    """How the values' embeddings become one vector."""

    @property
    def is_list(self) -> bool:
        return True

    @property
    def encoded_dtype(self) -> pl.DataType:
        return pl.List(pl.UInt64())

    def check(self, column: pl.Series) -> None:
        if isinstance(column.dtype, pl.List | pl.Array):
            check_text(self, column.explode())
        elif column.dtype == pl.String and self.separator is None:
            remedy = "set `separator:`, or declare it `categorical`"
            raise self.reject("a list column", "text and no separator declared", remedy)
        elif column.dtype not in (pl.String, pl.Null):
            remedy = "declare it `categorical`, or make it a list"
            raise self.reject("a list column", f"one value a row ({column.dtype})", remedy)

    def lower(self, dtype: pl.DataType) -> pl.Expr:
        missing = pl.lit([None], dtype=pl.List(pl.String))
        if isinstance(dtype, pl.List | pl.Array):
            inner: Any = dtype.inner
            values = pl.col(self.name).cast(pl.List(inner))
            texts = values.list.eval(canonical_text(pl.element(), inner))
        elif dtype == pl.Null:
            texts = missing
        else:
            assert self.separator is not None
            text = pl.col(self.name)
            texts = (
                pl.when(text == "").then(pl.lit([], dtype=pl.List(pl.String))).otherwise(text.str.split(self.separator))
            )
        return texts.fill_null(missing).list.eval(token_of_text(pl.element())).alias(self.name)


class NumericFit(BaseModel):
    """What `prepare` learned about a numeric column from the training rows alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    """Mean of the values present."""
    std: float = Field(ge=0)
    """Standard deviation of the values present; 0 where the column is constant."""
    boundaries: tuple[float, ...] = ()
    """Increasing inner edges of the buckets; empty unless the transform is `bucketize`."""


class Numeric(FeatureSpec):
    """A number; it becomes one float column, or a token for the transforms `bucketize` and `log_square`.

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
    """As for a categorical feature; used by the two transforms that make tokens."""
    fitted: NumericFit | None = None
    """Filled by `prepare`; leave out in a registry file."""

    @property
    def has_tokens(self) -> bool:
        return self.transform in ("bucketize", "log_square")

    @property
    def needs_fit(self) -> bool:
        """True where the transform reads statistics of the training rows that are not there yet."""
        return self.transform in ("standardize", "bucketize") and self.fitted is None

    def check(self, column: pl.Series) -> None:
        dtype = column.dtype
        if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
            remedy = "declare it `categorical`, or cast it before"
            raise self.reject("a number", _describe(column), remedy)
        if dtype.is_float() and column.is_infinite().any():
            raise self.reject("finite numbers", "an infinite one", "make it null, or clip it before")

    def lower(self, dtype: pl.DataType) -> pl.Expr:
        value = pl.col(self.name).cast(pl.Float64).fill_nan(None)
        if self.transform == "none":
            number = value
        elif self.transform == "log1p":
            number = value.sign() * value.abs().log1p()
        elif self.transform == "standardize":
            fitted = self._fitted()
            number = (value - fitted.mean) / (fitted.std or 1.0)
        elif self.transform == "bucketize":
            boundaries = np.asarray(self._fitted().boundaries, dtype=np.float64)
            return self._tokens(value, lambda numbers: np.searchsorted(boundaries, numbers, side="right"))
        else:
            return self._tokens(value, _log_square)
        return number.cast(pl.Float32).fill_null(0.0).alias(self.name)

    def _fitted(self) -> NumericFit:
        assert self.fitted is not None, f"{self.name}: {self.transform} before prepare fitted it"
        return self.fitted

    def _tokens(self, value: pl.Expr, bucket: Callable[[Floats], npt.NDArray[Any]]) -> pl.Expr:
        def buckets(values: pl.Series) -> pl.Series:
            numbers = bucket(values.fill_null(0.0).to_numpy())
            return pl.Series(values.name, numbers, dtype=pl.Int64).set(values.is_null(), None)

        text = value.map_batches(buckets, return_dtype=pl.Int64, is_elementwise=True).cast(pl.String)
        return token_of_text(text).alias(self.name)


def _log_square(numbers: Floats) -> npt.NDArray[np.int64]:
    logs = np.log(np.maximum(numbers, 1.0))
    return np.where(numbers > 2, np.floor(logs * logs), np.trunc(numbers)).astype(np.int64)


def canonical_text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The one text form of a categorical value: 7, 7.0 and "7" agree; true and false; strings as they are.

    >>> pl.select(canonical_text(pl.lit(7.0), pl.Float64())).item()
    '7'
    """
    if dtype.is_float():
        return column.fill_nan(None).cast(pl.Int64).cast(pl.String)
    if isinstance(dtype, pl.Decimal):
        return column.cast(pl.Int128).cast(pl.String)
    return column.cast(pl.String)


def check_text(spec: FeatureSpec, column: pl.Series) -> None:
    """Raise `InputError` unless every value of the column [N] has a canonical text."""
    dtype = column.dtype
    if dtype.is_float():
        wrong = column.filter(column.is_infinite() | (column.fill_nan(None) != column.round()))
        if len(wrong):
            remedy = "declare it `numeric` (transform: bucketize keeps it in the table), or round it before"
            raise spec.reject("categories: text, integers or booleans", f"the number {wrong[0]}", remedy)
        if (column.abs() > MAX_EXACT_FLOAT).any():
            remedy = "store the column as integers or text: a float cannot tell such identifiers apart"
            raise spec.reject("integers below 2^53 in a float column", f"{column.abs().max()}", remedy)
    elif isinstance(dtype, pl.Decimal) and dtype.scale:
        raise spec.reject("categories", f"decimals ({dtype})", "cast the column to text or integers before")
    elif not (dtype.is_integer() or dtype in (pl.String, pl.Boolean, pl.Null, pl.Categorical, pl.Enum, pl.Decimal)):
        remedy = "cast it to text, or derive parts such as the hour and the weekday"
        raise spec.reject("categories: text, integers or booleans", f"{dtype}", remedy)


def _describe(column: pl.Series) -> str:
    if isinstance(column.dtype, pl.List | pl.Array):
        return f"a list ({column.dtype})"
    first = column.drop_nulls().head(1).to_list()
    return f"{column.dtype}" + (f", such as {str(first[0])[:40]!r}" if first else "")


FEATURE_TYPES: dict[str, type[FeatureSpec]] = {
    "categorical": Categorical,
    "categorical_list": CategoricalList,
    "numeric": Numeric,
}
AnyFeature = Annotated[Categorical | CategoricalList | Numeric, Field(discriminator="type")]
