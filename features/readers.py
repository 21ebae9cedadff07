"""Raw files to frames, a chunk at a time: parquet, csv, csv.gz and ndjson; every fault names the file.

Delimited text has no types: its columns are read as text, and those that the caller declares numeric are parsed.
"""

import csv
import glob
import gzip
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import polars as pl

from features.encode import missing_column
from features.errors import InputError

CHUNK_ROWS = 262_144
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".ndjson", ".jsonl")


def expand(patterns: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files that the patterns name, sorted within each pattern; a directory stands for the files below it.

    Names that start with `_` or `.` are left out of a directory, as batch jobs write their marks there. Raises
    `InputError` when a pattern names no file.
    """
    files: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str | Path) else patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.is_file() and _is_data(file, path))
        else:
            matches = (Path(name) for name in glob.glob(str(pattern), recursive=True))  # noqa: PTH207 (absolute ones too)
            found = [path] if path.is_file() else sorted(file for file in matches if file.is_file())
        if not found:
            kinds = ", ".join(SUFFIXES)
            raise InputError(f"no file matches {str(pattern)!r}", remedy=f"name a file, directory or glob of {kinds}")
        files += [file for file in found if file not in files]
    return files


def columns_of(path: Path) -> list[str]:
    """Names of a file's columns; raises `InputError` for a file that cannot be read."""
    with _faults(path):
        return _scan(path).collect_schema().names()


def read_chunks(
    path: Path, columns: Sequence[str] | None = None, *, numeric: Collection[str] = (), chunk_rows: int = CHUNK_ROWS
) -> Iterator[pl.DataFrame]:
    """Frames of about `chunk_rows` rows in file order, with the named columns alone where given.

    `numeric` names the columns to parse as numbers in a csv file. Raises `InputError` for a file that is not there,
    not readable, truncated or ragged, and for a column that it has not.
    """
    names = columns_of(path)
    absent = [name for name in columns or () if name not in names]
    if absent:
        raise InputError(f"{path}: {missing_column(absent[0], names)}")
    is_text = _kind(path).startswith("csv")
    if is_text:
        _check_not_ragged(path, names)
    frame = _scan(path) if columns is None else _scan(path).select(list(columns))
    with _faults(path):
        for chunk in frame.collect_batches(chunk_size=chunk_rows, maintain_order=True):
            parsed = [name for name in chunk.columns if name in numeric and is_text]
            yield chunk.with_columns([parse_numbers(chunk[name]) for name in parsed]) if len(chunk) else chunk


def parse_numbers(column: pl.Series) -> pl.Series:
    """Text [N] as float64 [N]; empty text is null; raises `InputError` with the first text that is no number."""
    text = column.cast(pl.String).str.strip_chars()
    text = text.set(text == "", None)
    numbers = text.cast(pl.Float64, strict=False)
    wrong = text.filter(numbers.is_null() & text.is_not_null())
    if len(wrong):
        remedy = "declare it `categorical`, or correct the file"
        raise InputError(f"column {column.name!r}: expected a number", found=repr(wrong[0][:40]), remedy=remedy)
    return numbers


def _is_data(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(("_", ".")) for part in file.relative_to(root).parts)
    return not hidden and file.name.endswith(SUFFIXES)


def _kind(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return suffix[1:]
    raise InputError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}", remedy="convert or rename it")


def _scan(path: Path) -> pl.LazyFrame:
    kind = _kind(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file", remedy="check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: expected rows", found="an empty file", remedy="remove it from the input")
    if kind == "parquet":
        return pl.scan_parquet(path, glob=False, hive_partitioning=False)
    if kind.startswith("csv"):
        return pl.scan_csv(path, glob=False, infer_schema=False)
    return pl.scan_ndjson(path, infer_schema_length=100_000)


def _check_not_ragged(path: Path, names: Sequence[str]) -> None:
    """Refuse a csv row with fewer fields than the header, which polars would fill with nulls.

    Such a row always has a null in the last column; only then is the file read again, field by field.
    """
    with _faults(path):
        if not _scan(path).select(pl.col(names[-1]).is_null().any()).collect(engine="streaming").item():
            return
        opener = gzip.open if path.name.endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8", newline="") as lines:
            for number, fields in enumerate(csv.reader(lines), start=1):
                if fields and len(fields) != len(names):
                    found = f"{len(fields)} in record {number}"
                    raise InputError(f"{path}: expected {len(names)} fields a row", found=found, remedy="mend that row")


class _faults:  # noqa: N801 (reads as a word in `with`)
    """Turn what a reader raises over a bad file into one line that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pl.exceptions.PolarsError | OSError | EOFError | UnicodeDecodeError | csv.Error):
            line = " ".join(str(error).split())[:160]
            remedy = "the file is damaged or of another format: write it again"
            raise InputError(
                f"{self.path}: expected a readable {_kind(self.path)} file", found=line, remedy=remedy
            ) from None
