"""Raw files to frames, chunk by chunk: parquet, delimited text and JSON; every error names the file.

Delimited text has no types: its columns are read as text, which features parse. Paths may hold columns, too.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import polars as pl

from features.errors import InputError, missing_column
from features.files import check_readable
from features.io.csv_check import check_fields, num_blank_lines
from features.io.csv_format import CsvFormat
from features.io.json_lines import open_packed, scan_json
from features.io.partitions import partitions_of, with_partitions

CHUNK_ROWS = 262_144
FileFormat = Literal["parquet", "csv", "tsv", "ndjson"]
FORMATS: dict[str, FileFormat] = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv"}
FORMATS |= {".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson"}
"""Format by suffix, in any case; all but parquet may be followed by `.gz`."""
NOT_DATA = (".md", ".rst", ".html", ".pdf", ".png", ".svg", ".yaml", ".yml", ".py", ".sh", ".sql", ".crc", ".log")
NOT_DATA += (".md5", ".sha256")
SUFFIXES = ", ".join(FORMATS)
BOM = b"\xef\xbb\xbf"
_SUFFIX = re.compile(r"(\.[a-z]+)(\.gz)?$")


def format_of(path: Path) -> FileFormat | None:
    """Format of a file by its name; None if it is not supported.

    >>> format_of(Path("log.CSV.gz")), format_of(Path("log.xlsx"))
    ('csv', None)
    """
    suffix = _SUFFIX.search(path.name.lower())
    kind = FORMATS.get(suffix[1]) if suffix else None
    return None if suffix is None or (kind == "parquet" and suffix[2]) else kind


def suffix_of(path: Path) -> str:
    """Suffix of a file's name that gives its format; empty if it has none."""
    found = _SUFFIX.search(path.name.lower())
    return path.name[found.start() :] if found and format_of(path) else ""


def is_text(path: Path) -> bool:
    """True for files whose columns have no types."""
    return format_of(path) in ("csv", "tsv")


def expand(patterns: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files that the patterns match, sorted within each pattern; a directory matches the files below it.

    Directories and globs skip names that start with `_` or `.`, such as the marker files of batch jobs. Raises
    `InputError` if a pattern matches no file, and for a file in a directory that may be data in an unsupported format.
    """
    files: dict[Path, Path] = {}
    for pattern in [patterns] if isinstance(patterns, str | Path) else patterns:
        path = Path(pattern)
        if path.is_dir():
            found = _files_below(path)
        elif path.is_file():
            found = [path]
        else:
            matches = (Path(name) for name in glob.glob(str(pattern), recursive=True))  # noqa: PTH207 (absolute ones too)
            named = [match for match in matches if not match.name.startswith(("_", "."))]
            found = sorted({file for one in named for file in (_files_below(one) if one.is_dir() else [one])})
        if not found:
            remedy = f"name a file, directory or glob of {SUFFIXES}"
            raise InputError(f"no file matches {str(pattern)!r}", remedy=remedy)
        for file in found:  # a link to a matched file has the same rows
            files.setdefault(file.resolve(), file)
    return list(files.values())


def check_out_of_inputs(out: Path, patterns: Iterable[str | Path]) -> None:
    """Raise `InputError` if a later run would read what this one writes to the directory `out`."""
    # Below `out`, parts mirror the partition directories of their inputs.
    target = out.resolve()
    written = [target.joinpath(*["key=value"] * depth, "part-0.parquet") for depth in range(4)]
    places = {place for file in written for place in (file, *file.parents)}
    for pattern in map(str, patterns):
        folders = [Path(pattern)] if not glob.has_magic(pattern) else map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207
        is_read = any(_holds(folder, target) for folder in folders if folder.is_dir())
        if not is_read and glob.has_magic(pattern):
            parts = Path(os.path.abspath(pattern)).parts  # noqa: PTH100 (keeps links among the wildcards)
            fixed = next(k for k, part in enumerate(parts) if glob.has_magic(part))
            rooted = (*Path(*parts[:fixed]).resolve().parts, *parts[fixed:])
            is_read = any(_is_found(place.parts, rooted) for place in places)
        if is_read:
            found, remedy = f"{pattern!r}, which names it", "choose an output that no input names"
            raise InputError(f"{out}: expected an output that is not an input too", found=found, remedy=remedy)


def _holds(folder: Path, target: Path) -> bool:
    root = folder.resolve()
    return target.is_relative_to(root) and not any(name[0] in "_." for name in target.parts[len(root.parts) :])


def _is_found(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """True if a glob with these parts matches a path with these parts."""
    if not patterns or not names:
        return not patterns and not names
    if patterns[0] == "**":
        return _is_found(names, patterns[1:]) or _is_found(names[1:], patterns)
    return fnmatchcase(names[0], patterns[0]) and _is_found(names[1:], patterns[1:])


def _files_below(root: Path) -> list[Path]:
    """Files of data below a directory, links followed once."""
    found: list[Path] = []
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        seen.add(os.path.realpath(folder))
        folders[:] = [name for name in folders if name[0] not in "_."]
        folders[:] = [name for name in folders if os.path.realpath(Path(folder) / name) not in seen]
        found += [Path(folder) / name for name in names if name[0] not in "_."]
    unsupported = sorted(file for file in found if format_of(file) is None)
    others = [file for file in unsupported if not file.name.lower().endswith(NOT_DATA)]
    others = [file for file in others if not file.name.upper().startswith(("README", "LICENSE", "COPYING"))]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        remedy = "convert or move it, rename it to begin with `_`, or give a glob of what to read"
        expected = f"{root}: expected files of {SUFFIXES} alone"
        raise InputError(expected, found=f"{others[0].relative_to(root)}{more}", remedy=remedy)
    return sorted(file for file in found if format_of(file) is not None)


def schema_of(path: Path, csv: CsvFormat | None = None) -> dict[str, pl.DataType]:
    """Names and types of a file's columns, then of those only in its path; empty for an empty file.

    Raises `InputError` for a file that cannot be read or has two columns of the same name.
    """
    _, schema = _open(path, csv)
    return schema | {name: pl.String() for name in partitions_of(path.parent.parts) if schema and name not in schema}


def columns_of(path: Path, csv: CsvFormat | None = None) -> list[str]:
    """Names of `schema_of`."""
    return [*schema_of(path, csv)]


def _open(path: Path, csv: CsvFormat | None) -> tuple[pl.LazyFrame, dict[str, pl.DataType]]:
    """Lazy frame of a file, and its schema; together, as JSON has to be read for its schema."""
    if _is_empty(path):
        return pl.LazyFrame(), {}
    with _faults(path):
        frame = _scan(path, csv)
        schema = dict(frame.collect_schema())
    if not schema and format_of(path) == "ndjson":
        found, remedy = "objects without a key", "write the names of the columns as keys"
        raise InputError(f"{path}: expected columns", found=found, remedy=remedy)
    for name in schema:
        # polars renames a second column of the same name instead of refusing it.
        original = re.fullmatch(r"(.*)_duplicated_\d+", name)
        if original and original[1] in schema:
            found, remedy = f"{original[1]!r} twice", "rename one of them"
            raise InputError(f"{path}: column names must be unique", found=found, remedy=remedy)
    return frame, schema


def read_chunks(
    path: Path, columns: Sequence[str] | None = None, *, csv: CsvFormat | None = None, chunk_rows: int = CHUNK_ROWS
) -> Iterator[pl.DataFrame]:
    """Frames of `chunk_rows` rows (the last one: the rest) in file order, with only the named columns if given.

    `csv` is the format of delimited text. Raises `InputError` for a file that is missing, unreadable, truncated or
    ragged, for a missing column, and for a column that differs from the path.
    """
    frame, schema = _open(path, csv)
    in_file = [*schema]
    if not in_file:
        return
    in_path = partitions_of(path.parent.parts)
    wanted = list(dict.fromkeys([*in_file, *in_path]) if columns is None else columns)
    absent = [name for name in wanted if name not in in_file and name not in in_path]
    if absent:
        raise missing_column(absent[0], [*dict.fromkeys([*in_file, *in_path])]).located(str(path))
    partitions = {name: value for name, value in in_path.items() if name in wanted}
    to_read = [name for name in wanted if name in in_file] or in_file[:1]  # a frame without columns has no rows
    if to_read != in_file and not is_text(path):  # polars notices a too long csv row only if it reads all columns
        frame = frame.select(to_read)
    with _faults(path):
        chunks = frame.collect_batches(chunk_size=chunk_rows, maintain_order=True)
        for chunk in _without_short_rows(chunks, path, csv, len(in_file)) if is_text(path) else chunks:
            yield with_partitions(chunk, partitions, path)[wanted]


def _without_short_rows(
    chunks: Iterator[pl.DataFrame], path: Path, csv: CsvFormat | None, num_fields: int
) -> Iterator[pl.DataFrame]:
    """Chunks of delimited text; raises `InputError` for a row that is too short, which polars fills with nulls."""
    is_checked = False
    # In a file with one column, a blank line is a missing value.
    for chunk in chunks if num_fields == 1 else _without_blank_lines(chunks, path):
        if not is_checked and chunk[:, -1].null_count():
            check_fields(path, num_fields, _format(path, csv).separator)
            is_checked = True
        yield chunk


def _without_blank_lines(chunks: Iterable[pl.DataFrame], path: Path) -> Iterator[pl.DataFrame]:
    """The chunks without the rows that polars reads from blank lines at the end of a file."""
    held: pl.DataFrame | None = None  # rows without a value, which may be the last ones
    for chunk in chunks:
        whole = chunk if held is None else pl.concat([held, chunk])
        is_blank = whole.select(pl.all_horizontal(pl.all().is_null())).to_series()
        num_kept = 0 if is_blank.all() else len(whole) - int(is_blank.reverse().arg_min() or 0)
        held = whole[num_kept:] if num_kept < len(whole) else None
        if num_kept:
            yield whole[:num_kept]
    if held is not None and (num_kept := len(held) - num_blank_lines(path)) > 0:
        yield held[:num_kept]


def _is_empty(path: Path) -> bool:
    """True for a file without data; raises `InputError` for an unsupported format and a missing file."""
    if format_of(path) is None:
        raise InputError(f"{path}: expected a file that ends in {SUFFIXES}", remedy="convert or rename it")
    if not path.is_file():
        raise InputError(f"{path}: no such file", remedy="check the path")
    if path.stat().st_size == 0:
        return True
    if format_of(path) == "parquet":
        return False
    with _faults(path), open_packed(path) as file:
        while block := file.read(65_536):
            if block.removeprefix(BOM).strip():
                return False
    return True


def _format(path: Path, csv: CsvFormat | None) -> CsvFormat:
    csv = csv or CsvFormat()
    return csv.model_copy(update={"separator": "\t"}) if format_of(path) == "tsv" else csv


def _scan(path: Path, csv: CsvFormat | None) -> pl.LazyFrame:
    if format_of(path) == "parquet":
        return pl.scan_parquet(path, glob=False, hive_partitioning=False)
    if not is_text(path):
        return scan_json(path)
    written = _format(path, csv)
    nulls = [*written.null_values] or None
    return pl.scan_csv(path, glob=False, infer_schema=False, separator=written.separator, null_values=nulls)


# polars raises PanicException for some bytes.
_OF_BAD_FILES = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, EOFError, UnicodeDecodeError)


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Turn a reader's error about a bad file into an `InputError` that names the file."""
    try:
        yield
    except _OF_BAD_FILES as error:
        kind = suffix_of(path)[1:]
        check_readable(path)
        if is_text(path):
            check_fields(path)  # raises with the line, which polars does not give
        remedy = "the file is damaged or of another format: write it again"
        if format_of(path) == "ndjson":
            remedy = "write one object per line, with values of one type under each name"
        found = " ".join(str(error).split())[:160]
        if "utf-8" in found.lower():
            remedy = "save it as UTF-8"
        raise InputError(f"{path}: expected a readable {kind} file", found=found, remedy=remedy) from None
