"""Files that appear whole or not at all, and their checksums."""

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import InputError


def cache_directory() -> Path:
    """Where things are kept that can be made again: `MUXREC_CACHE`, or `muxrec` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MUXREC_CACHE") or Path(base) / "muxrec")


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def temporary_directory_beside(path: Path) -> Iterator[Path]:
    """A hidden new directory beside (on the disk of) `path`, gone afterwards whatever happens.

    Raises `InputError` when the place cannot be written to.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        yield temporary
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file under a temporary name, flush it to the disk and rename it into place."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes under a temporary name, flush them to the disk and rename them into place."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from None


def write_parquet(frame: pl.DataFrame, path: Path, **options: Any) -> None:
    """`frame.write_parquet`; a full disk raises `OSError`, as it does everywhere else."""
    try:
        frame.write_parquet(path, **options)
    except pl.exceptions.PolarsError as error:
        # polars wraps what the system said: "... No space left on device (os error 28)".
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None


def cannot_write(path: Path, error: OSError) -> InputError:
    """The error for a full disk, a read-only place or a missing permission."""
    reason = error.strerror or str(error)
    return InputError(f"cannot write {path}", found=reason, remedy="free space, or choose another output")
