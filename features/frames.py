"""Frames as callers have them (pandas, Arrow, polars) to polars; pandas is never imported.

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
    """True for what `frame_of` takes: a polars or pandas frame, or anything with an Arrow C stream of columns."""
    return isinstance(value, pl.DataFrame) or is_pandas(value) or hasattr(value, "__arrow_c_stream__")


def is_pandas(value: Any) -> bool:
    """True for a frame of pandas."""
    return type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "columns")


def frame_of(frame: Any, features: Sequence[AnyFeature], others: Collection[str] | None = ()) -> pl.DataFrame:
    """The frame [N] in polars; of pandas, the columns of the features and `others` (None: all) that are there.

    Raises `InputError` for a value of an object column that cannot be the value of its feature, or fits no type.

    >>> frame_of(pl.DataFrame({"user": [7]}), ()).columns
    ['user']
    """
    if isinstance(frame, pl.DataFrame):
        return frame
    if not is_pandas(frame):
        return pl.DataFrame(frame)
    by_name = {feature.name: feature for feature in features}
    names = [name for name in frame.columns if name in by_name or others is None or name in others]
    columns = [_from_pandas(frame[name], str(name), by_name.get(name)) for name in dict.fromkeys(names)]
    # Without any column a frame has no rows: keep their number with one that no feature reads.
    return pl.DataFrame(columns) if columns else pl.DataFrame({"_": np.zeros(len(frame), dtype=np.bool_)})


def _from_pandas(column: Any, name: str, feature: AnyFeature | None) -> pl.Series:
    """Through numpy: pandas' own Arrow stream needs pyarrow, and refuses object columns of mixed types."""
    if column.ndim != 1:
        raise InputError(
            f"column {name!r}: expected one column of that name", found=f"{column.shape[1]}", remedy="rename the others"
        )
    values = column.to_numpy()
    if values.dtype.kind in "iuf":
        return pl.Series(name, values)
    present = [None if is_missing else value for value, is_missing in zip(values, column.isna(), strict=True)]
    if feature is not None:
        return column_of(feature, present)
    try:
        return pl.Series(name, present, strict=False)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        found, remedy = " ".join(str(error).split())[:160], "give the column one type before"
        raise InputError(f"column {name!r}: expected values of one type", found=found, remedy=remedy) from None
