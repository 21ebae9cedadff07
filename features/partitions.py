"""Columns that a file's path holds: a directory `key=value` above it (Hive's convention).

One rule for drafting, preparing and scoring: such a column is read like any other. Where the file has it too, both must
say the same.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from features.errors import InputError
from features.spec import canonical_text

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
    """A chunk [N] with the columns of its path; raises `InputError` where its own column of that name differs."""
    for name, value in partitions.items():
        if name in chunk.columns:
            _check_agreement(chunk[name], value, path)
    absent = [pl.lit(value, dtype=pl.String).alias(name) for name, value in partitions.items() if name not in chunk]
    return chunk.with_columns(absent)


def _check_agreement(column: pl.Series, value: str | None, path: Path) -> None:
    dtype = column.dtype
    if dtype.is_float() or isinstance(dtype, pl.Decimal):
        texts = column.cast(pl.String)
    else:
        texts = column.to_frame().select(canonical_text(pl.col(column.name), dtype)).to_series()
    differs = ~texts.eq_missing(pl.Series([value], dtype=pl.String))
    numbers, number = texts.cast(pl.Float64, strict=False), pl.Series([value]).cast(pl.Float64, strict=False)[0]
    if number is not None:  # day=01 beside 1
        differs &= ~(numbers == number).fill_null(False)
    if differs.any():
        row = differs.arg_max()
        assert row is not None
        expected = f"{path}: expected {column.name!r} to be {value!r}, as its path says"
        remedy = "correct the file or its path, or rename one of the two columns"
        raise InputError(expected, found=repr(texts[row]), remedy=remedy)
