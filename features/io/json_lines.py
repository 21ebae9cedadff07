"""Files of JSON, one object per line or one array of objects, to lazy frames."""

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
    """Lazy frame of a file, its columns in the order of the first object's keys, whichever line has a key first."""
    with open_packed(path) as file:
        start = file.read(65_536)
    if start.startswith(b"\xef\xbb\xbf"):
        raise InputError(f"{path}: expected ndjson", found="a byte order mark", remedy="save it without one")
    if start.lstrip()[:1] == b"[":
        with open_packed(path) as file:
            return pl.read_json(io.BytesIO(file.read()), infer_schema_length=None).lazy()
    source = glob.escape(str(path))  # polars takes a path for a pattern here, and has no switch for it
    # All lines are looked at: a key or a type may appear first in the last one.
    schema = pl.scan_ndjson(source, infer_schema_length=None).collect_schema()
    # polars lists the keys in another order each time.
    schema = {name: schema[name] for name in [*_first_keys(path), *sorted(schema)] if name in schema}
    return pl.scan_ndjson(source, schema=schema)


def open_packed(path: Path) -> BinaryIO:
    """A file's bytes, unpacked where gzip packed them."""
    with path.open("rb") as file:
        is_packed = file.read(2) == GZIP_MAGIC
    return cast(BinaryIO, gzip.open(path)) if is_packed else path.open("rb")


def _first_keys(path: Path) -> list[str]:
    """Keys of the first object, in its order."""
    with open_packed(path) as file:
        line = next((line for line in file if line.strip()), b"{}")
    try:
        first = json.loads(line)
    except ValueError:
        return []  # polars says what is wrong
    return list(first) if isinstance(first, dict) else []
