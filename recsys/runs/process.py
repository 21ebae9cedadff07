"""The training process: settings that must precede the import of torch, its lock, and its resource use."""

import contextlib
import ctypes
import gc
import importlib.util
import logging
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from features.errors import InputError
from features.files import take_lock

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for what it sets
_SPINS = "30000"
GC_THRESHOLDS = 700, 10, 10
"""Python's own."""


def require_training(*packages: str) -> None:
    """Raise `InputError`, with the remedy, where packages that training needs (by default all) are not installed."""
    absent = [one for one in packages or ("torch", "torchrec", "mlflow") if importlib.util.find_spec(one) is None]
    if absent:
        raise InputError("training needs its packages", found=f"no {absent[0]}", remedy="make env")


def require_finished(run: Path) -> None:
    """Raise `InputError` for a run directory whose training has not ended."""
    if not (run / "metrics.json").is_file():
        remedy = "give the same `muxrec train` command again: it resumes"
        raise InputError(f"{run}: expected a finished run", found="no metrics.json", remedy=remedy)


def prepare_for_training() -> None:
    """Keep freed memory, and make idle OpenMP threads release their core soon; has no effect without glibc.

    A step frees as much memory as it takes. By default glibc returns it to the system and gets it back page by page,
    which took a tenth of a step. Torch's idle threads spin for some milliseconds on cores that the loops over table
    rows need: with shorter waits a step on 1e5 rows took 79 ms instead of 89. The environment's `GOMP_SPINCOUNT` wins.

    >>> prepare_for_training()
    >>> os.environ["GOMP_SPINCOUNT"].isdecimal()
    True
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    # Without a writable home it warns about its font cache.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, 2**30)
        libc.mallopt(_MMAP_THRESHOLD, 2**25)  # the most that it accepts


@contextlib.contextmanager
def frozen_gc() -> Iterator[None]:
    """Exclude the objects that exist before the block from garbage collection inside it.

    Modules hold nearly a million objects, which took 0.4 s of 1.7 s of collections in a run of 24 s.

    >>> with frozen_gc():
    ...     gc.get_freeze_count() > 0
    True
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def rarely_collect() -> None:
    """Make full garbage collections rare until `frozen_gc`: imports make a million objects, and no garbage.

    Importing torch, torchrec and MLflow took 3.4 s of processor time with Python's thresholds, 2.4 s with these.
    """
    gc.set_threshold(*GC_THRESHOLDS[:2], 1000)


@contextlib.contextmanager
def locked_directory(folder: Path, *, timeout_seconds: float = 0.0) -> Iterator[int]:
    """Lock a folder by its file `lock`; yields the descriptor, through which child processes can hold the lock too.

    Raises `InputError` if another process still holds it after `timeout_seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = take_lock(folder / "lock", timeout_seconds=timeout_seconds)
    if descriptor is None:
        expected = f"{folder}: expected no other process at work"
        raise InputError(expected, found="one", remedy="wait for it, or work in another folder")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class ResourceMeter:
    """Cores and memory used by this process, for MLflow's page of system metrics.

    >>> sorted(ResourceMeter().used())
    ['system/cores_used', 'system/memory_mb']
    """

    def __init__(self) -> None:
        self._clocks = time.perf_counter(), time.process_time()

    def used(self) -> dict[str, float]:
        """Mean cores since the last call, and resident memory now."""
        before, self._clocks = self._clocks, (time.perf_counter(), time.process_time())
        wall, busy = (now - then for now, then in zip(self._clocks, before, strict=True))
        return {"system/cores_used": busy / max(wall, 1e-9), "system/memory_mb": _resident_mb()}


def _resident_mb() -> float:
    with contextlib.suppress(OSError, IndexError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return float("nan")  # no such file; the tracker leaves out metrics that are not finite


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        # getrusage also counts the memory of the process that started this one.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="ignore").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
