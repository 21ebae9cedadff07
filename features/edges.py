"""Edges of buckets, and the precision in which N numbers are compared with them."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from features.arrays import Float64s

FIRST_INEXACT_FLOAT32 = 2**24
"""From here on, float32 no longer distinguishes all neighbouring integers."""


class Edges(NamedTuple):
    """Edges of buckets, and the rounding of values that are compared with them."""

    values: Float64s
    """Rounded edges."""
    rounding: Callable[[Float64s], Float64s]


@lru_cache(maxsize=1024)
def edges_of(boundaries: tuple[float, ...]) -> Edges:
    """Edges of buckets in the precision of the comparison.

    That is float32, so that .1 is in the same bucket in a float32 column, a float64 column and a text. If float32 would
    merge two edges or change an edge that is an integer, integers from 2^24 on are compared exactly, or else all
    numbers; no float32 column has such edges.

    >>> edges_of((0.1, 0.7)).rounding(np.array([0.7])) == edges_of((0.1, 0.7)).values[1]
    array([ True])
    >>> edges_of((0.1, 20170101.0, 20170102.0)).values.tolist()
    [0.10000000149011612, 20170101.0, 20170102.0]
    """
    exact = np.asarray(boundaries, dtype=np.float64)
    for rounding in (as_float32, _but_large_integers):
        edges = rounding(exact)
        is_changed_integer = (edges != exact) & (exact == np.rint(exact))
        if not is_changed_integer.any() and (np.diff(edges) > 0).all():
            return Edges(edges, rounding)
    return Edges(exact, np.asarray)


def as_float32(numbers: Float64s) -> Float64s:
    """Numbers [N] rounded to float32."""
    return numbers.astype(np.float32).astype(np.float64)


def _but_large_integers(numbers: Float64s) -> Float64s:
    is_kept = (np.abs(numbers) >= FIRST_INEXACT_FLOAT32) & (numbers == np.rint(numbers))
    return np.where(is_kept, numbers, as_float32(numbers))
