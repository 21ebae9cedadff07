"""Rows as callers have them (mappings, pandas, Arrow, polars) to a raw polars frame; pandas is never imported.

B rows. Python values of several types in one column (7, "a", None) keep the meaning that they have one by one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from features.errors import InputError
from features.registry import FeatureRegistry
from features.spec import AnyFeature, CategoricalList, Numeric, canonical_text, check_text

ACCEPTED = "a polars or pandas frame, an Arrow table, or a list of mappings from feature to value"


def to_frame(rows: Any, registry: FeatureRegistry) -> pl.DataFrame:
    """Raw frame [B] of the rows; of mappings and pandas frames, only the registry's columns.

    Raises `InputError` for other types, and for a value that cannot be the value of its feature.

    >>> registry = FeatureRegistry.of(features={"user": "categorical", "tags": "categorical_list"})
    >>> to_frame([{"user": 7, "tags": ["a"]}, {"user": "x"}], registry).rows()
    [('7', ['a']), ('x', None)]
    """
    if isinstance(rows, pl.DataFrame):
        return rows
    if _is_pandas(rows):
        return _from_pandas(rows, registry)
    if hasattr(rows, "__arrow_c_stream__"):
        return pl.DataFrame(rows)
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        wrong = [type(row).__name__ for row in rows if not isinstance(row, Mapping)]
        if wrong:
            raise InputError(f"expected {ACCEPTED}", found=f"a list that holds {wrong[0]}")
        return pl.DataFrame(
            [column_of(feature, [row.get(feature.name) for row in rows]) for feature in registry.features]
        )
    remedy = "put it in a list" if isinstance(rows, Mapping) else "convert it to one of these"
    raise InputError(f"expected {ACCEPTED}", found=type(rows).__name__, remedy=remedy)


def column_of(feature: AnyFeature, values: Sequence[Any]) -> pl.Series:
    """Raw column [B] of Python values; raises `InputError` for a value that the feature cannot take.

    >>> from features.spec import Categorical
    >>> column_of(Categorical(name="user"), [7, "a", True, None]).to_list()
    ['7', 'a', 'true', None]
    """
    convert, dtype = _number, pl.Float64()
    if isinstance(feature, CategoricalList):
        convert, dtype = _list, pl.List(pl.String())
    elif not isinstance(feature, Numeric):
        convert, dtype = _text, pl.String()
    converted: list[Any] = []
    for row, value in enumerate(values):
        try:
            converted.append(convert(feature, value))
        except InputError as error:
            raise InputError(error.expected, found=error.found, remedy=error.remedy, row=row) from None
    try:
        return pl.Series(feature.name, converted, dtype=dtype)
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can write and UTF-8 cannot
        raise feature.reject("text", f"{error.object[:40]!r}", "send valid Unicode") from None


def _number(feature: AnyFeature, value: Any) -> float | None:
    """A number as float64, which every transform starts from."""
    if value is None:
        return None
    if not isinstance(value, bool | int | float | np.bool_ | np.number):
        raise feature.reject("a number", _shown(value), "declare it `categorical`, or send a number")
    try:
        return float(value)
    except OverflowError:
        raise feature.reject("finite numbers", "an integer above 1e308", "make it null, or clip it before") from None


def _text(feature: AnyFeature, value: Any) -> str | None:
    """The canonical text of one value: a column of mixed types has no type of its own to go by."""
    if value is None or type(value) is str:
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    # Floats, decimals and whatever else: one value as a column, under the rules and messages of columns.
    try:
        column = pl.Series(feature.name, [value])
    except (TypeError, ValueError, OverflowError):
        column = pl.Series(feature.name, [value], dtype=pl.Object)
    if feature.is_list:
        check_text(feature, column)
    else:
        feature.check(column)
    return column.to_frame().select(canonical_text(pl.col(feature.name), column.dtype)).item()


def _list(feature: AnyFeature, value: Any) -> list[str | None] | None:
    separator = getattr(feature, "separator", None)
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, str) and separator is not None:
        return [*value.split(separator)] if value else []
    if isinstance(value, list | tuple | np.ndarray | pl.Series):
        return [_text(feature, one) for one in value]
    remedy = "send a list, or set `separator:`" if isinstance(value, str) else "send a list"
    raise feature.reject("a list", _shown(value), remedy)


def _shown(value: Any) -> str:
    return f"{type(value).__name__}, such as {str(value)[:40]!r}"


def _is_pandas(rows: object) -> bool:
    return type(rows).__module__.partition(".")[0] == "pandas" and hasattr(rows, "columns")


def _from_pandas(rows: Any, registry: FeatureRegistry) -> pl.DataFrame:
    """Column by column through numpy: pandas' own Arrow stream needs pyarrow, and refuses mixed object columns."""
    columns: list[pl.Series] = []
    for feature in registry.features:
        if feature.name not in rows.columns:
            continue
        column = rows[feature.name]
        if column.ndim != 1:
            raise feature.reject("one column of that name", f"{column.shape[1]}", "rename the others")
        values = column.to_numpy()
        if values.dtype.kind in "iuf":
            columns.append(pl.Series(feature.name, values))
        else:
            pairs = zip(values, column.isna(), strict=True)
            columns.append(column_of(feature, [None if is_missing else value for value, is_missing in pairs]))
    # Without any column a frame has no rows: keep their number with one that no feature reads.
    return pl.DataFrame(columns) if columns else pl.DataFrame({"_": np.zeros(len(rows), dtype=np.bool_)})
