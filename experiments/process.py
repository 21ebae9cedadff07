"""Settings of a process that trains, which have to stand before torch is loaded."""

import contextlib
import ctypes
import os

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
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, 2**30)
        libc.mallopt(_MMAP_THRESHOLD, 2**25)  # the most that it accepts
