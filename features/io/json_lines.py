"""JSON files, one object per line or one array of objects, to lazy frames."""

import glob
import gzip
import io
import json
from pathlib import Path
from typing import BinaryIO, cast

import polars as pl

from features.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"


def scan_json(path: Path) -> pl.LazyFrame:
    """Lazy frame of a file; columns are in the order of the first object's keys, then the other keys."""
    with open_packed(path) as file:
        start = file.read(65_536)
    if start.startswith(b"\xef\xbb\xbf"):
        raise InputError(f"{path}: expected ndjson", found="a byte order mark", remedy="save it without one")
    if start.lstrip()[:1] == b"[":
        with open_packed(path) as file:
            return pl.read_json(io.BytesIO(file.read()), infer_schema_length=None).lazy()
    source = glob.escape(str(path))  # polars reads the path as a pattern, with no option against it
    # Reads all lines, as a key or a type may first appear in the last one.
    schema = pl.scan_ndjson(source, infer_schema_length=None).collect_schema()
    # The order of keys in polars varies.
    schema = {name: schema[name] for name in [*_first_keys(path), *sorted(schema)] if name in schema}
    return pl.scan_ndjson(source, schema=schema)


def open_packed(path: Path) -> BinaryIO:
    """A file's bytes, decompressed if it is a gzip file."""
    with path.open("rb") as file:
        is_packed = file.read(2) == GZIP_MAGIC
    return cast(BinaryIO, gzip.open(path)) if is_packed else path.open("rb")


def _first_keys(path: Path) -> list[str]:
    with open_packed(path) as file:
        line = next((line for line in file if line.strip()), b"{}")
    try:
        first = json.loads(line)
    except ValueError:
        return []  # polars reports it
    return list(first) if isinstance(first, dict) else []
