"""Partition columns in a file's path: directories `key=value` above it (Hive's convention).

Drafting, preparing and scoring read such a column like any other. If the file has the column too, both must agree.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from features.errors import InputError

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # how Hive and Spark write null into a path
_PARTITION = re.compile(r"[^=]+=[^=]*")


def partition_run(directories: Sequence[str]) -> list[str]:
    """The directories `key=value` directly above a file."""
    return [*takewhile(_PARTITION.fullmatch, reversed(directories))][::-1]


def partitions_of(directories: Sequence[str]) -> dict[str, str | None]:
    """Partition columns of a file, their values as text without escapes.

    >>> partitions_of(("logs", "day=2026-11-22", "place=a%2Fb"))
    {'day': '2026-11-22', 'place': 'a/b'}
    """
    pairs = [directory.split("=") for directory in partition_run(directories)]
    return {unquote(key): None if value == NO_VALUE else unquote(value) for key, value in pairs}


def with_partitions(chunk: pl.DataFrame, partitions: Mapping[str, str | None], path: Path) -> pl.DataFrame:
    """A chunk [N] with the columns of its path, as text; raises `InputError` if its own column differs.

    The path's text is the value, so that files with and without the column have the same token.
    """
    for name, value in partitions.items():
        if name in chunk.columns and (differs := ~_agrees(chunk[name], value)).any():
            expected = f"{path}: expected {name!r} to be {value!r}, as its path says"
            remedy = "correct the file or its path, or rename one of the two columns"
            raise InputError(expected, found=repr(chunk[name].filter(differs)[0]), remedy=remedy)
    return chunk.with_columns([pl.lit(value, dtype=pl.String).alias(name) for name, value in partitions.items()])


def _agrees(column: pl.Series, value: str | None) -> pl.Series:
    """Flags [N] of values that equal the text of a path: as text, as a number, or in the column's own type."""
    given = pl.Series([value], dtype=pl.String)
    if value is None:
        return column.is_null()
    agrees = pl.repeat(False, len(column), dtype=pl.Boolean, eager=True)
    for dtype in (pl.String(), pl.Float64(), column.dtype):
        try:
            mine = column.cast(dtype, strict=False)
            theirs = given.str.to_lowercase() if dtype == pl.String and column.dtype == pl.Boolean else given
            agrees |= (mine == theirs.cast(dtype, strict=False)).fill_null(False)
        except pl.exceptions.PolarsError:  # the type has no such values
            continue
    return agrees
