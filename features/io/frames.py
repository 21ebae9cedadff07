"""Frames of pandas, Arrow and polars to polars; pandas is never imported.

N rows.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import polars as pl

from features.errors import InputError
from features.spec import AnyFeature
from features.values import column_of


def is_frame(value: Any) -> bool:
    """True for arguments of `frame_of`: a polars or pandas frame, or anything with an Arrow C stream of columns."""
    return isinstance(value, pl.DataFrame) or is_pandas(value) or hasattr(value, "__arrow_c_stream__")


def is_pandas(value: Any) -> bool:
    """True for a pandas frame."""
    return type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "columns")


def columns_of_frame(frame: Any) -> list[str]:
    """Names of a frame's columns; in pandas also the named levels of the index, as in its parquet file."""
    if isinstance(frame, pl.DataFrame):
        return frame.columns
    if is_pandas(frame):
        return [*_index_levels(frame), *map(str, frame.columns)]
    return pl.DataFrame(frame).columns


def frame_of(frame: Any, features: Sequence[AnyFeature], others: Collection[str] | None = ()) -> pl.DataFrame:
    """The frame [N] in polars; of a pandas frame, only the columns of `features` and `others` (None: all).

    Raises `InputError` for a value of an object column that its feature cannot take or that fits no type.

    >>> frame_of(pl.DataFrame({"user": [7]}), ()).columns
    ['user']
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    if not is_pandas(frame):
        try:
            return pl.DataFrame(frame)
        except _NOT_CONVERTED as error:
            found, remedy = " ".join(str(error).split())[:160], "give a polars or pandas frame, or an Arrow table"
            raise InputError("the frame: expected columns that polars can read", found=found, remedy=remedy) from None
    by_name = {feature.name: feature for feature in features}
    sources = _index_levels(frame) | {str(name): frame[name] for name in dict.fromkeys(frame.columns)}
    asked = [name for name in sources if others is None or name in by_name or name in others]
    columns = [_from_pandas(sources[name], name, by_name.get(name)) for name in asked]
    # A frame without columns has no rows: an unused column keeps their number.
    return pl.DataFrame(columns) if columns else pl.DataFrame({"_": np.zeros(len(frame), dtype=np.bool_)})


# polars raises PanicException, a BaseException, for some unknown types.
_NOT_CONVERTED = (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError, pl.exceptions.PanicException)


def _index_levels(frame: Any) -> dict[str, Any]:
    """Named levels of an index as columns, except those with a column of the same name."""
    names = {name for name in frame.index.names if name is not None and name not in frame.columns}
    level_of = frame.index.get_level_values
    return {str(name): level_of(name).to_series(index=frame.index) for name in sorted(names, key=str)}


def _from_pandas(column: Any, name: str, feature: AnyFeature | None) -> pl.Series:
    """A column [N] with the type of its parquet file; values of mixed types are converted separately."""
    if column.ndim != 1:
        found, remedy = str(column.shape[1]), "rename the others"
        raise InputError(f"column {name!r}: expected one column of that name", found=found, remedy=remedy)
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufb":
        return pl.Series(name, column.to_numpy())
    if (series := _through_arrow(column)) is not None:
        return series.alias(name)
    present = [None if is_missing else value for value, is_missing in zip(column, column.isna(), strict=True)]
    if feature is not None:
        return column_of(feature, present)
    try:
        return pl.Series(name, present, strict=False)
    except _NOT_CONVERTED:
        return pl.Series(name, present, dtype=pl.Object)


def _through_arrow(column: Any) -> pl.Series | None:
    """The column [N] converted by pyarrow; None if that is not installed or has no type for the values."""
    try:
        import pyarrow
    except ImportError:
        return None
    if getattr(column.dtype, "tz", None) is not None:  # pyarrow's own conversion makes pandas warn
        column = column.dt.tz_convert(None)
    try:
        table = pyarrow.Table.from_pandas(column.to_frame("column"), preserve_index=False)
        return pl.DataFrame(table).to_series()
    except (*_NOT_CONVERTED, pyarrow.ArrowException):
        return None
