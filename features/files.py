"""Files and directories that appear complete or not at all, checksums, locks, and errors of the file system."""

import errno
import hashlib
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import InputError

_SET_CACHE = "set MUXREC_CACHE or XDG_CACHE_HOME to a folder that can be written to"


def cache_directory() -> Path:
    """Directory of files that can be recreated: `MUXREC_CACHE`, or `muxrec` in the user's cache directory.

    Raises `InputError` for a user without a home, such as a numeric user of a container.
    """
    if chosen := os.environ.get("MUXREC_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "muxrec"
    try:
        return Path.home() / ".cache" / "muxrec"
    except RuntimeError:
        raise InputError("expected a home directory", found="none", remedy=_SET_CACHE) from None


def made_in_cache(name: str) -> Path:
    """A folder of the cache, created if needed; raises `InputError` with a remedy if it is not writable."""
    folder = cache_directory() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{uuid.uuid4().hex[:8]}.tmp"
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(f"cannot keep files in {folder}", found=found, remedy=_SET_CACHE) from None
    return folder


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def take_lock(path: Path, *, timeout_seconds: float = math.inf) -> int | None:
    """Take a lock file and return its open descriptor; None if another process holds it for `timeout_seconds`.

    The lock is free when the last process that has the descriptor closes it or ends. The holder may delete the file.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such locks
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    last = time.monotonic() + timeout_seconds
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have deleted the file that we opened: then a newer file is the lock.
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BlockingIOError:
            if time.monotonic() >= last:
                os.close(descriptor)
                return None
            time.sleep(0.05)
        os.close(descriptor)


@contextmanager
def temporary_directory_beside(path: Path) -> Iterator[Path]:
    """A new hidden directory next to `path`, so on the same disk; it is deleted when the block ends.

    Raises `InputError` for an `OSError` there or in the block.
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


def replace_directory(new: Path, path: Path) -> None:
    """Move a finished directory to `path`; an older one there is deleted afterwards, or restored on failure.

    Raises `OSError`, also if another process puts a directory there at the same time.
    """
    old = new.with_suffix(".old")
    with suppress(FileNotFoundError):
        path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


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
        with suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error) from None


def write_parquet(frame: pl.DataFrame, path: Path, **options: Any) -> None:
    """`frame.write_parquet` that raises `OSError` for a full disk, as other writers do."""
    try:
        frame.write_parquet(path, **options)
    except pl.exceptions.PolarsError as error:
        raise system_error(error, path) or error from None


def system_error(error: pl.exceptions.PolarsError, path: Path) -> OSError | None:
    """The system's error that polars wraps, "... No space left on device (os error 28)"; None for other errors.

    >>> system_error(pl.exceptions.ComputeError("full (os error 28)"), Path("part")).errno
    28
    """
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1])), str(path)) if code else None


def flush(path: Path) -> None:
    """Flush a file's bytes, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_OF_OUTPUTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EEXIST, errno.ENOTEMPTY)
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "permit it"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTEMPTY), "move what is there"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR), "check the path"),
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the machine's limit of open files (fs.file-max)",
}


def cannot_write(path: Path, error: OSError) -> InputError:
    """The error for an output that the system refuses, or for an unreadable input of it."""
    named = _named(error) or path
    if error.errno in (errno.EACCES, errno.EPERM) and _is_unreadable(named):
        return _refused(f"cannot read {named}", error)
    return _refused(f"cannot write {path}", error, "choose another output")


def check_readable(path: Path) -> None:
    """Raise `InputError` for a file that this process may not read; its reader would report it as damaged.

    Missing files and directories pass: the reader reports them.
    """
    try:
        path.open("rb").close()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return
    except OSError as error:
        raise _refused(f"cannot read {path}", error) from None


def system_fault(error: OSError) -> InputError | None:
    """The error for a system error of unknown origin; None if it is not about a file."""
    if error.errno not in _REMEDIES:
        return None
    named = _named(error)
    if error.errno in (*_OF_OUTPUTS, errno.EACCES, errno.EPERM):
        return cannot_write(named, error) if named else _refused("cannot write", error)
    return _refused(f"cannot open {named or 'a file'}", error)


def _named(error: OSError) -> Path | None:
    return Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None


def _refused(expected: str, error: OSError, other: str | None = None) -> InputError:
    remedies = [remedy for remedy in (_REMEDIES.get(error.errno or 0), other) if remedy]
    return InputError(expected, found=error.strerror or str(error), remedy=", or ".join(remedies) or "check the disk")


def _is_unreadable(path: Path) -> bool:
    """True for an existing file that this process may not read, or may not even look up."""
    try:
        return path.exists() and not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)
    except PermissionError:
        return True
