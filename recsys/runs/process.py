"""A process that trains: the settings that have to stand before torch is loaded, and what it uses."""

import contextlib
import ctypes
import gc
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from features.errors import InputError
from features.files import take_lock

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for what it sets
_SPINS = "30000"


def prepare_for_training() -> None:
    """Keep freed memory, and let idle threads of OpenMP leave their core soon; of no effect where there is no glibc.

    A step frees as much as it takes. glibc gives that back to the system and fetches it again, page by page, which took
    a tenth of a step. And torch's threads wait for work in a loop of some milliseconds, in which the loops over table
    rows need the core: with shorter waits a step on 1e5 rows took 79 ms instead of 89. `GOMP_SPINCOUNT` may be set to
    something else in the environment.

    >>> prepare_for_training()
    >>> os.environ["GOMP_SPINCOUNT"].isdecimal()
    True
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    # Where the home cannot be written to it keeps its fonts for itself, and says so.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, 2**30)
        libc.mallopt(_MMAP_THRESHOLD, 2**25)  # the most that it accepts


@contextlib.contextmanager
def frozen_gc() -> Iterator[None]:
    """Keep the garbage collector from searching, again and again, what was there before the block.

    That is nearly a million objects of modules: of 1.7 s of searches in a run of 24 s they took 0.4 s.

    >>> with frozen_gc():
    ...     gc.get_freeze_count() > 0
    True
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def locked_directory(folder: Path, *, timeout_seconds: float = 0.0) -> Iterator[int]:
    """Hold a folder by a lock on the file `lock` in it; hands out its descriptor, which children may hold on to.

    Raises `InputError` where another process still holds it after `timeout_seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = take_lock(folder / "lock", patience=timeout_seconds)
    if descriptor is None:
        expected = f"{folder}: expected no other process at work"
        raise InputError(expected, found="one", remedy="wait for it, or work in another folder")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class ResourceMeter:
    """Cores and memory of this process, as MLflow's page of system metrics shows them.

    >>> sorted(ResourceMeter().used())
    ['system/cores_used', 'system/memory_mb']
    """

    def __init__(self) -> None:
        self._clocks = time.perf_counter(), time.process_time()

    def used(self) -> dict[str, float]:
        """Cores in the mean since the last call, and resident memory now."""
        before, self._clocks = self._clocks, (time.perf_counter(), time.process_time())
        wall, busy = (now - then for now, then in zip(self._clocks, before, strict=True))
        return {"system/cores_used": busy / max(wall, 1e-9), "system/memory_mb": _resident_mb()}


def _resident_mb() -> float:
    with contextlib.suppress(OSError, IndexError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return float("nan")  # where there is no such file; metrics that are not finite are left out
