"""Plan of a scoring job: each input file with its part in the output, and the columns to read."""

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from features.errors import InputError, missing_column
from features.io.csv_format import CsvFormat
from features.io.partitions import partition_run
from features.io.readers import columns_of, expand, read_chunks, suffix_of
from features.registry import FeatureRegistry


class Part(BaseModel):
    """One input file, and the part of the output for its rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Path of the part below the output directory, with the partition directories of the input before it."""
    file: Path
    columns: tuple[str, ...]
    """Columns to read from the file or its path; empty for a file without columns."""
    row_limit: int | None = None
    """Rows to score; None for all."""


def plan_parts(
    inputs: Sequence[str | Path], registry: FeatureRegistry, *, keep: Sequence[str], allow_missing: bool
) -> list[Part]:
    """One part per file of the inputs (files, directories, globs), in their order.

    The name of a part follows from the path of its input, so files that arrive later change no other name. Raises
    `InputError` for an input that does not exist, and for a file without a required column.
    """
    parts: dict[Path, Part] = {}
    for pattern in inputs:
        root = _root_of(pattern)
        for file in expand(pattern):
            if file in parts:
                continue
            _check_name(file)
            columns = _columns_to_read(file, registry, keep, allow_missing=allow_missing)
            below = partition_run(file.parent.relative_to(root).parts)
            name = "/".join([*below, _file_name(file)])
            parts[file] = Part(name=name, file=file, columns=columns)
    return list(parts.values())


def limit_parts(parts: Sequence[Part], limit: int, csv: CsvFormat | None) -> list[Part]:
    """The parts with the first `limit` rows, each with its own row limit."""
    limited: list[Part] = []
    for part in parts:
        if limit <= 0:
            break
        limited.append(part.model_copy(update={"row_limit": limit}))
        limit -= _count_rows(part, limit, csv)
    return limited


def _count_rows(part: Part, enough: int, csv: CsvFormat | None) -> int:
    """Rows of an input; stops counting at `enough`."""
    count = 0
    for frame in read_chunks(part.file, part.columns[:1], csv=csv):
        count += len(frame)
        if count >= enough:
            break
    return count


def _root_of(pattern: str | Path) -> Path:
    """The directory below which the output mirrors partitions: the given path up to its first wildcard."""
    path = Path(pattern)
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    return Path(*takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))


def _check_name(file: Path) -> None:
    """Raise `InputError` for a name that is not UTF-8, which neither JSON nor parquet's metadata can hold."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        found = str(os.fsencode(file))[1:]
        raise InputError("expected a file name in UTF-8", found=found, remedy="rename the file") from None


def _file_name(file: Path) -> str:
    """File name of an input's part, safe for all file systems and readers; the digits make equal names unique."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", file.name.removesuffix(suffix_of(file)))[:100]
    digits = hashlib.sha256(os.fsencode(file.absolute())).hexdigest()[:8]
    return f"part-{stem}-{digits}.parquet"


def _columns_to_read(
    file: Path, registry: FeatureRegistry, keep: Sequence[str], *, allow_missing: bool
) -> tuple[str, ...]:
    present = columns_of(file, registry.csv)
    if not present:
        return ()
    names = [feature.name for feature in registry.features]
    absent = [name for name in names if name not in present]
    if absent and (not allow_missing or len(absent) == len(names)):
        raise missing_column(absent[0], present).located(str(file))
    for name in keep:
        if name not in present:
            found = f"columns {', '.join(present[:12])}"
            raise InputError(f"{file}: expected a column {name!r} to keep", found=found, remedy="correct `keep`")
    return tuple(dict.fromkeys([*(name for name in names if name in present), *keep]))
