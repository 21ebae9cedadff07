"""Loops over table rows for which torch has no operation, compiled by numba: sort, sum, Adam step, scatter.

n lookups of a batch, U distinct rows among them, M table rows, w row width. One thread computes a row from beginning
to end, so that results do not depend on the number of threads. A small kernel is compiled for one width, so that a row
is a known number of vector registers; numba caches it next to this file, in the user's cache, or in muxrec's. The large
one, in `catch_up_kernel`, serves every width up to 64.
"""

# pyright: reportMissingParameterType=false
# Inside the kernels types are numba's: arrays of float32, and integers.

import itertools
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba.core import cgutils, config
from numba.extending import intrinsic

from features.errors import InputError
from features.files import made_in_cache

_RADIX_BITS = 11
AHEAD = 12
"""Rows between the prefetch of one and its use: random rows of a large table are never in the cache."""
_MIN_PIECE = 1024
"""Fewest rows that are worth a thread."""
_PIECES_PER_THREAD = 4
_INLINED = (*range(1, 17), *range(20, 65, 4))
"""Counts for which `copy` is a few instructions; for others it is a call."""

TINY_WEIGHT, TINY_MOMENT = np.float32(1e-15), np.float32(1e-30)
"""Smaller values become zero: rows that lag long end in denormals, on which an operation costs 100 times as much."""

Kernel = Callable[..., None]


def _can_cache() -> bool:
    """True if numba finds a folder for compiled code: its own choice, else muxrec's cache."""
    with suppress(RuntimeError):
        numba.njit(cache=True)(_can_cache)
        return True
    with suppress(RuntimeError, InputError):
        os.environ["NUMBA_CACHE_DIR"] = str(made_in_cache("numba"))
        config.reload_config()
        numba.njit(cache=True)(_can_cache)
        return True
    return False


# IEEE division: numba's check for zero would keep the loops from being vectorised.
compiled = numba.njit(cache=_can_cache(), nogil=True, error_model="numpy")
_pool = ThreadPoolExecutor(max_workers=64, thread_name_prefix="muxrec-rows")


def in_pieces(kernel: Kernel, num_rows: int, *arguments: Any) -> None:
    """Run `kernel(start, stop, *arguments)` over pieces of `range(num_rows)`, on as many threads as torch uses.

    Threads take piece after piece, as torch's threads spin for a while after their work and may hold the core of one.
    """
    num_threads = max(1, min(torch.get_num_threads(), num_rows // _MIN_PIECE))
    num_pieces = min(num_threads * _PIECES_PER_THREAD, max(1, num_rows // _MIN_PIECE)) if num_threads > 1 else 1
    bounds = [num_rows * piece // num_pieces for piece in range(num_pieces + 1)]
    pieces = iter(itertools.pairwise(bounds))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                piece = next(pieces, None)
            if piece is None:
                return
            kernel(*piece, *arguments)

    others = [_pool.submit(work) for _ in range(num_threads - 1)]
    work()
    for other in others:
        if not other.cancel():  # a thread that has not begun by now has nothing left to do
            other.result()


class SortedRows(NamedTuple):
    """The rows [n] that a batch looks up, sorted."""

    rows: npt.NDArray[np.int64]
    """Distinct rows [U], increasing."""
    inverse: npt.NDArray[np.int64]
    """Position of each lookup's row among them [n]."""
    order: npt.NDArray[np.int32]
    """Lookups [n] by row; those of one row in their own order."""
    starts: npt.NDArray[np.int64]
    """Position in `order` of the first lookup of each distinct row [U + 1]."""


def sort_rows(rows: npt.NDArray[np.int64], num_rows: int) -> SortedRows:
    """Radix sort of rows [n], all in [0, num_rows) with num_rows at most 2**31.

    >>> found = sort_rows(np.array([7, 3, 7]), 8)
    >>> found.rows.tolist(), found.inverse.tolist(), found.order.tolist(), found.starts.tolist()
    ([3, 7], [1, 0, 1], [1, 0, 2], [0, 1, 3])
    """
    return SortedRows(*_sort(rows, (num_rows - 1).bit_length()))


@compiled
def _sort(rows: Any, num_bits: int) -> Any:
    n = len(rows)
    keys, spare_keys = rows.astype(np.uint32), np.empty(n, np.uint32)
    order, spare_order = np.arange(n).astype(np.int32), np.empty(n, np.int32)
    counts = np.empty(1 << _RADIX_BITS, np.int64)
    mask = np.uint32((1 << _RADIX_BITS) - 1)
    shift = np.uint32(0)
    while shift < num_bits:
        counts[:] = 0
        for i in range(n):
            counts[(keys[i] >> shift) & mask] += 1
        total = 0
        for digit in range(len(counts)):
            total, counts[digit] = total + counts[digit], total
        for i in range(n):
            digit = (keys[i] >> shift) & mask
            place = counts[digit]
            counts[digit] = place + 1
            spare_keys[place] = keys[i]
            spare_order[place] = order[i]
        keys, spare_keys = spare_keys, keys
        order, spare_order = spare_order, order
        shift += np.uint32(_RADIX_BITS)
    distinct, starts, inverse = np.empty(n, np.int64), np.empty(n + 1, np.int64), np.empty(n, np.int64)
    num_distinct = 0
    for i in range(n):
        if i == 0 or keys[i] != keys[i - 1]:
            distinct[num_distinct] = keys[i]
            starts[num_distinct] = i
            num_distinct += 1
        inverse[order[i]] = num_distinct - 1
    starts[num_distinct] = n
    return distinct[:num_distinct], inverse, order, starts[: num_distinct + 1]


@cache
def sum_gradients(width: int) -> Kernel:
    """Kernel `(grad [n, w], order, starts, into [U, w])` that sums gradients over the lookups of each distinct row."""

    @compiled
    def kernel(start, stop, grad, order, starts, into):
        for u in range(start, stop):
            first = order[starts[u]]
            for j in range(width):
                into[u, j] = grad[first, j]
            for k in range(starts[u] + 1, starts[u + 1]):
                lookup = order[k]
                for j in range(width):
                    into[u, j] += grad[lookup, j]

    return kernel


@cache
def scatter_rows(width: int) -> Kernel:
    """Kernel `(rows [U], now, w, m, v [U, w], table, m, v [M, w], last_step [M])` that writes rows into the table.

    Values below `TINY_WEIGHT` and `TINY_MOMENT` become zero, in the inputs as well.
    """

    @compiled
    def kernel(start, stop, rows, now, w_in, m_in, v_in, table, m, v, last_step):
        zero = np.float32(0)
        for u in range(start, stop):
            if u + AHEAD < stop:
                ahead = rows[u + AHEAD]
                prefetch(table, ahead)
                prefetch(m, ahead)
                prefetch(v, ahead)
                prefetch(last_step, ahead)
            row = rows[u]
            last_step[row] = now
            for j in range(width):
                w_in[u, j] = w_in[u, j] if abs(w_in[u, j]) > TINY_WEIGHT else zero
            for j in range(width):
                m_in[u, j] = m_in[u, j] if abs(m_in[u, j]) > TINY_MOMENT else zero
            copy(table, row * width, w_in, u * width, width)
            copy(m, row * width, m_in, u * width, width)
            copy(v, row * width, v_in, u * width, width)

    return kernel


@cache
def adam_step(width: int) -> Kernel:
    """Kernel `(grad, w, m, v [U, w], ...)` that takes one exact Adam step in place; `grad` is without decay."""

    @compiled
    def kernel(start, stop, grad, w, m, v, decay, take1, take2, rate, floor):
        one = np.float32(1)
        for u in range(start, stop):
            for j in range(width):
                g = grad[u, j] + decay * w[u, j]
                m_j = m[u, j] + take1 * (g - m[u, j])
                v_j = (one - take2) * v[u, j] + take2 * (g * g)
                w[u, j] -= rate * m_j / (math.sqrt(v_j) + floor)
                m[u, j] = m_j
                v[u, j] = v_j

    return kernel


def _prefetch(context: Any, array: Any, row: Any) -> Any:
    signature = numba.types.void(array, row)

    def generate(target: Any, builder: Any, types: Any, values: Any) -> Any:
        made = target.make_array(types.args[0])(target, builder, values[0])
        stride = cgutils.unpack_tuple(builder, made.strides, types.args[0].ndim)[0]
        address = builder.add(builder.ptrtoint(made.data, ir.IntType(64)), builder.mul(values[1], stride))
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        # for reading (0), to be kept in every cache (3), as data (1)
        builder.call(
            function, [builder.inttoptr(address, pointer), *(ir.Constant(number, value) for value in (0, 3, 1))]
        )

    return signature, generate


def _copy(context: Any, into: Any, at: Any, source: Any, place: Any, count: Any) -> Any:
    signature = numba.types.void(into, at, source, place, count)

    def generate(target: Any, builder: Any, types: Any, values: Any) -> Any:
        arrays = [target.make_array(types.args[k])(target, builder, values[k]).data for k in (0, 2)]
        target_pointer, source_pointer = builder.gep(arrays[0], [values[1]]), builder.gep(arrays[1], [values[3]])
        size = types.args[0].dtype.bitwidth // 8
        for count in _counts(builder, values[4]):
            cgutils.raw_memcpy(builder, target_pointer, source_pointer, count, size)

    return signature, generate


def _fill(context: Any, into: Any, at: Any, count: Any, value: Any) -> Any:
    signature = numba.types.void(into, at, count, into.dtype)

    def generate(target: Any, builder: Any, types: Any, values: Any) -> Any:
        pointer = builder.gep(target.make_array(types.args[0])(target, builder, values[0]).data, [values[1]])
        for count in _counts(builder, values[2]):
            if isinstance(count, ir.Constant):
                vector = ir.VectorType(values[3].type, count.constant)
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), values[3], ir.IntType(32)(0))
                zeros = ir.Constant(ir.VectorType(ir.IntType(32), count.constant), None)
                splat = builder.shuffle_vector(one, one, zeros)
                builder.store(splat, builder.bitcast(pointer, vector.as_pointer()), align=4)
            else:
                with cgutils.for_range(builder, count) as loop:
                    builder.store(values[3], builder.gep(pointer, [loop.index]))

    return signature, generate


def _counts(builder: Any, count: Any) -> Any:
    """Generates code once for each count of `_INLINED`, where it is a constant, and once for all other counts."""
    others, end = builder.append_basic_block(), builder.append_basic_block()
    cases = builder.switch(count, others)
    for constant in (ir.Constant(count.type, one) for one in _INLINED):
        block = builder.append_basic_block()
        cases.add_case(constant, block)
        with builder.goto_block(block):
            yield constant
            builder.branch(end)
    with builder.goto_block(others):
        yield count
        builder.branch(end)
    builder.position_at_end(end)


# Why there is LLVM here: gathering and scattering the 106,000 random rows of a batch in a table of 4 million rows takes
# 1.5 times as long without the prefetch at a width of 4 and 1.15 times at 16; with a loop over flat views instead of
# `copy` it takes 2.5 and 2.7 times as long (fastest of 11 interleaved rounds, one thread).
prefetch: Any = intrinsic(_prefetch)
"""Inside a kernel, `prefetch(table, row)` asks the memory for the beginning of a row."""
copy: Any = intrinsic(_copy)
"""Inside a kernel, `copy(into, at, source, place, count)` copies values of contiguous arrays, by flat positions."""
fill: Any = intrinsic(_fill)
"""Inside a kernel, `fill(into, at, count, value)` sets values of a contiguous array, by flat position."""
