"""Raw files to frames, a chunk at a time: parquet, csv, csv.gz and ndjson; every fault names the file.

Delimited text has no types: its columns are read as text, and those that the caller declares numeric are parsed.
"""

import glob
import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from features.csv_check import check_fields
from features.encode import missing_column
from features.errors import InputError
from features.files import check_readable

CHUNK_ROWS = 262_144
SCHEMA_LINES = 100_000
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".ndjson", ".jsonl")


def expand(patterns: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files that the patterns name, sorted within each pattern; a directory stands for the files below it.

    Names that start with `_` or `.` are left out of a directory and of a glob, as batch jobs write their marks there.
    Raises `InputError` when a pattern names no file.
    """
    files: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str | Path) else patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.is_file() and _is_data(file, path))
        elif path.is_file():
            found = [path]
        else:
            matches = (Path(name) for name in glob.glob(str(pattern), recursive=True))  # noqa: PTH207 (absolute ones too)
            found = sorted(file for file in matches if file.is_file() and not file.name.startswith(("_", ".")))
        if not found:
            kinds = ", ".join(SUFFIXES)
            raise InputError(f"no file matches {str(pattern)!r}", remedy=f"name a file, directory or glob of {kinds}")
        files |= dict.fromkeys(found)
    return list(files)


def columns_of(path: Path) -> list[str]:
    """Names of a file's columns; raises `InputError` for a file that cannot be read or names a column twice."""
    with _faults(path):
        names = _scan(path).collect_schema().names()
    for name in names:
        # polars renames the second column of a name instead of refusing it.
        original = re.fullmatch(r"(.*)_duplicated_\d+", name)
        if original and original[1] in names:
            raise InputError(
                f"{path}: column names must be unique", found=f"{original[1]!r} twice", remedy="rename one of them"
            )
    return names


def read_chunks(
    path: Path, columns: Sequence[str] | None = None, *, numeric: Collection[str] = (), chunk_rows: int = CHUNK_ROWS
) -> Iterator[pl.DataFrame]:
    """Frames of `chunk_rows` rows (the last one: the rest) in file order, with the named columns alone where given.

    `numeric` names the columns to parse as numbers in a csv file. Raises `InputError` for a file that is not there,
    not readable, truncated or ragged, and for a column that it has not.
    """
    names = columns_of(path)
    wanted = list(names if columns is None else columns)
    absent = [name for name in wanted if name not in names]
    if absent:
        raise missing_column(absent[0], names).located(str(path))
    is_text = _kind(path).startswith("csv")
    # polars sees a csv row that is too long only when it reads all columns, and fills a short one with nulls.
    frame = _scan(path, numeric)
    if columns is not None and not is_text:
        frame = frame.select(wanted)
    is_checked = not is_text
    first_row = 0
    with _faults(path):
        for chunk in frame.collect_batches(chunk_size=chunk_rows, maintain_order=True):
            if not is_checked and chunk[names[-1]].null_count():
                check_fields(path, len(names))
                is_checked = True
            yield _parsed(chunk[wanted], numeric, path, first_row) if is_text else chunk
            first_row += chunk.height


def _parsed(chunk: pl.DataFrame, numeric: Collection[str], path: Path, first_row: int) -> pl.DataFrame:
    try:
        return chunk.with_columns([parse_numbers(chunk[name]) for name in chunk.columns if name in numeric])
    except InputError as error:
        raise error.located(str(path), first_row) from None


def parse_numbers(column: pl.Series) -> pl.Series:
    """Text [N] as float64 [N]; empty text is null; raises `InputError` with the first text that is no number."""
    text = column.cast(pl.String).str.strip_chars()
    text = text.set(text == "", None)
    numbers = text.cast(pl.Float64, strict=False)
    wrong = numbers.is_null() & text.is_not_null()
    if wrong.any():
        row = wrong.arg_max()
        assert row is not None
        remedy = "declare it `categorical`, or correct the file"
        found = repr(text[row][:40])
        raise InputError(f"column {column.name!r}: expected a number", found=found, remedy=remedy, row=row)
    return numbers


def _is_data(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(("_", ".")) for part in file.relative_to(root).parts)
    return not hidden and file.name.endswith(SUFFIXES)


def _kind(path: Path) -> str:
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return suffix[1:]
    raise InputError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}", remedy="convert or rename it")


def _scan(path: Path, numeric: Collection[str] = ()) -> pl.LazyFrame:
    kind = _kind(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file", remedy="check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: expected rows", found="an empty file", remedy="remove it from the input")
    if kind == "parquet":
        return pl.scan_parquet(path, glob=False, hive_partitioning=False)
    if kind.startswith("csv"):
        return pl.scan_csv(path, glob=False, infer_schema=False)
    return _scan_ndjson(path, numeric)


def _scan_ndjson(path: Path, numeric: Collection[str]) -> pl.LazyFrame:
    source = glob.escape(str(path))  # polars takes a path for a pattern here, and has no switch for it
    with path.open("rb") as file:
        if file.read(3) == b"\xef\xbb\xbf":
            raise InputError(f"{path}: expected ndjson", found="a byte order mark", remedy="save it without one")
    schema = pl.scan_ndjson(source, infer_schema_length=SCHEMA_LINES).collect_schema()
    if any(_is_undecided(dtype) for dtype in schema.values()):
        # Later values of a column without a type yet would be refused, or, inside lists, dropped without a word.
        schema = pl.scan_ndjson(source, infer_schema_length=None).collect_schema()
    # polars lists the keys in another order each time.
    schema = {name: schema[name] for name in [*_first_keys(path), *sorted(schema)] if name in schema}
    # A number column may be integers for long and then hold a fraction.
    types = {name: pl.Float64() if name in numeric and dtype.is_integer() else dtype for name, dtype in schema.items()}
    return pl.scan_ndjson(source, schema=types)


def _first_keys(path: Path) -> list[str]:
    """Keys of the first object, in its order."""
    with path.open("rb") as file:
        line = next((line for line in file if line.strip()), b"{}")
    try:
        first = json.loads(line)
    except ValueError:
        return []  # polars says what is wrong
    return list(first) if isinstance(first, dict) else []


def _is_undecided(dtype: pl.DataType) -> bool:
    inner = getattr(dtype, "inner", None)
    return dtype == pl.Null or (inner is not None and _is_undecided(inner))


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Turn what a reader raises over a bad file into one line that names the file."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        kind = _kind(path)
        check_readable(path)
        if kind.startswith("csv"):
            check_fields(path, None)  # says where, which polars does not
        remedy = "the file is damaged or of another format: write it again"
        if kind.endswith(("ndjson", "jsonl")):
            remedy = "write one object a line, with values of one type under each name"
        found = " ".join(str(error).split())[:160]
        if "utf-8" in found.lower():
            remedy = "save it as UTF-8"
        raise InputError(f"{path}: expected a readable {kind} file", found=found, remedy=remedy) from None
