"""Compiled kernel that gathers table rows and applies the steps that they missed: `catch_up` for a CPU.

U rows, w row width. `recsys.embedding.catch_up` has the mathematics and the terms: exact steps, strides, pull, push,
coupling.
"""

# pyright: reportMissingParameterType=false
# Inside the kernels types are numba's: arrays of float32, and integers.

import math
from functools import cache
from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from recsys.embedding.catch_up import EXACT_STEPS, GROWTH
from recsys.embedding.kernels import AHEAD, Kernel, compiled, copy, fill, prefetch

_LANES = 64
"""Values that catch up side by side: rows in groups, so that none waits for its own square roots."""
_AHEAD = 24
"""As `AHEAD`, for rows that are not read in increasing order."""

# Inlined into the kernel, so that offsets are constants there: only then are the loops vectorised. A kernel that closes
# over other compiled functions would be compiled again in every process.
_inlined = numba.njit(inline="always", nogil=True, error_model="numpy")


class BiasCorrections(NamedTuple):
    """Bias corrections of Adam after t steps: entry 2 t, and the last entry for all later steps."""

    second: npt.NDArray[np.float32]
    """1 - b2^t."""
    root: npt.NDArray[np.float32]
    """sqrt(1 - b2^t)."""
    ratio: npt.NDArray[np.float32]
    """sqrt(1 - b2^t) / (1 - b1^t)."""
    first: npt.NDArray[np.float32]
    """1 - b1^t."""


def bias_corrections(beta1: float, beta2: float) -> BiasCorrections:
    """Tables for two betas, up to the step from which float32 sees no difference.

    >>> [round(float(value), 4) for value in bias_corrections(0.9, 0.999).first[:5]]
    [0.0, 0.0513, 0.1, 0.1462, 0.19]
    """
    longest = max(2, *(math.ceil(math.log(1e-9) / math.log(beta)) for beta in (beta1, beta2) if beta > 0))
    steps = np.arange(2 * longest + 1) / 2
    first, second = (
        -np.expm1(steps * math.log(beta)) if beta else (steps > 0).astype(float) for beta in (beta1, beta2)
    )
    ratio = np.sqrt(second) / np.maximum(first, 1e-300)
    tables = (second, np.sqrt(second), ratio, first)
    return BiasCorrections(*(table.astype(np.float32) for table in tables))


class _Offsets(NamedTuple):
    """Offsets of the values of a group in its scratch array; `push` is also the number of values of each kind."""

    pull: int
    push: int
    second: int
    drift: int
    coupling: int
    gain: int
    loss: int
    rates: int
    floors: int
    to_middle: int
    to_end: int
    steps: int


@_inlined
def _between(entries, position):
    before = min(np.int64(position), len(entries) - 2)
    part = np.float32(min(position - before, 1.0))
    return entries[before] + part * (entries[before + 1] - entries[before])


@_inlined
def _exact(s, at, decay, take1, take2):
    for j in range(at.push):
        g = decay * s[at.pull + j]
        s[at.push + j] += take1 * (g - s[at.push + j])
        s[at.second + j] = (np.float32(1) - take2) * s[at.second + j] + take2 * (g * g)
        s[at.pull + j] -= s[at.rates + j] * s[at.push + j] / (math.sqrt(s[at.second + j]) + s[at.floors + j])


@_inlined
def _power(s, lengths, at, share):
    one, two, half = np.float32(1), np.float32(2), np.float32(0.5)
    longest = np.int32(0)
    for j in range(at.push):
        longest = max(longest, lengths[j])
    level = np.int32(0)
    while longest >> (level + np.int32(1)) > 0:
        level += np.int32(1)
    for j in range(at.push):
        s[at.gain + j] = np.float32((lengths[j] >> level) & np.int32(1))
        s[at.loss + j] = np.float32(0)
    while level > 0:
        level -= np.int32(1)
        for j in range(at.push):
            c, p, q = s[at.coupling + j], s[at.gain + j], s[at.loss + j]
            square = p * p
            p = two * (p + p * q) - (c + share) * square
            q = two * (q + half * q * q) - c * square
            odd = np.float32((lengths[j] >> level) & np.int32(1))
            q -= odd * (c * p)
            s[at.gain + j] = p + odd * (q - share * p + one)
            s[at.loss + j] = q


@_inlined
def _stride(s, lengths, at, share, beta1):
    zero, one, third, half = np.float32(0), np.float32(1), np.float32(1 / 3), np.float32(0.5)
    most = (one + math.sqrt(beta1)) * (one + math.sqrt(beta1))
    for j in range(at.push):
        x = s[at.pull + j]
        halfway = min(max(x + half * (s[at.steps + j] + one) * s[at.drift + j], min(x, zero)), max(x, zero))
        accumulated = third * (x * x + halfway * (x + halfway))
        v_middle = s[at.second + j] + s[at.to_middle + j] * (accumulated - s[at.second + j])
        s[at.coupling + j] = min(most, s[at.rates + j] / (math.sqrt(v_middle) + s[at.floors + j]))
    _power(s, lengths, at, share)
    for j in range(at.push):
        x, y, p, q, n = s[at.pull + j], s[at.push + j], s[at.gain + j], s[at.loss + j], s[at.steps + j]
        pushed = x + beta1 * y
        shift = q * x - s[at.coupling + j] * p * pushed
        s[at.push + j] = y + q * y + p * (pushed - y)
        linear = (n - one) / n
        quadratic = linear * (n - half) / (np.float32(3) * n)
        square = x * x + (x * linear + shift * quadratic) * shift
        s[at.second + j] += s[at.to_end + j] * (square - s[at.second + j])
        s[at.pull + j] = x + shift
        s[at.drift + j] = shift / n


@_inlined
def _stride_no_decay(s, at, beta1):
    one = np.float32(1)
    for j in range(at.push):  # here `gain` is the share of the momentum that is spent
        root = math.sqrt(s[at.second + j] * (one - s[at.to_middle + j])) + s[at.floors + j]
        s[at.pull + j] -= s[at.rates + j] * s[at.gain + j] * beta1 * s[at.push + j] / root
        s[at.push + j] *= one - s[at.gain + j]
        s[at.second + j] *= one - s[at.to_end + j]


@_inlined
def _strided_steps(s, lengths, at, width, missed, now, corrections, learning_rate, decay, betas, eps):
    beta1, take1, take2 = betas
    second, root, ratio, first = corrections
    last, one, share = len(root) - 1, np.float32(1), take1
    for j in range(at.push):
        s[at.drift + j] = -s[at.pull + j]
    for k in range(1, min(EXACT_STEPS, missed[0]) + 1):
        for r in range(len(missed)):
            when = min(2 * (now - missed[r] + k), last)
            fill(s, at.rates + r * width, width, learning_rate * ratio[when])
            fill(s, at.floors + r * width, width, eps * root[when])
        _exact(s, at, decay, take1, take2)
    if missed[0] <= EXACT_STEPS:
        return
    # Strides take decay gradients and scaled momenta: then the coupling is the only coefficient between the two.
    scale = decay if decay > 0 else one
    for j in range(at.push):
        s[at.drift + j] = (s[at.drift + j] + s[at.pull + j]) * (scale / np.float32(EXACT_STEPS))
        s[at.pull + j] *= scale
        s[at.push + j] /= share
    done = EXACT_STEPS
    while done < missed[0]:
        for r in range(len(missed)):
            length = min(done * (GROWTH - 1), missed[r] - done)
            begin = 2 * (now - missed[r] + done)
            fill(lengths, r * width, width, np.int32(length))
            fill(s, at.steps + r * width, width, np.float32(length))
            fill(s, at.to_end + r * width, width, second[min(2 * length, last)])
            if decay > 0:
                when = min(begin + length + 1, last)
                fill(s, at.to_middle + r * width, width, second[min(length + 1, last)])
                fill(s, at.rates + r * width, width, learning_rate * ratio[when] * (share * decay))
                fill(s, at.floors + r * width, width, eps * root[when])
            else:  # the middle of the remaining momentum rather than of the stride
                spent = first[min(2 * length, last)]
                middle = 2 * (1 / share - length * (1 - spent) / spent)
                fill(s, at.gain + r * width, width, spent)
                fill(s, at.to_middle + r * width, width, _between(second, middle))
                fill(s, at.rates + r * width, width, learning_rate * _between(ratio, begin + middle))
                fill(s, at.floors + r * width, width, eps * _between(root, begin + middle))
        if decay > 0:
            _stride(s, lengths, at, share, beta1)
        else:
            _stride_no_decay(s, at, beta1)
        done *= GROWTH
    for j in range(at.push):
        s[at.pull + j] /= scale
        s[at.push + j] *= share


@_inlined
def _sort_by_strides(start, stop, rows, last_step, now, keeps_unread):
    """The rows ordered by their number of exact steps and strides; the steps they missed; where each number ends."""
    numbers, missed = np.empty(stop - start, np.uint8), np.empty(stop - start, np.int64)
    ends = np.zeros(64, np.int64)
    for u in range(start, stop):
        if u + AHEAD < stop:
            prefetch(last_step, rows[u + AHEAD])
        last = last_step[rows[u]]
        gap = 0 if keeps_unread and last == 0 else now - last
        number, done = min(gap, EXACT_STEPS), EXACT_STEPS
        while done < gap:
            done *= GROWTH
            number += 1
        missed[u - start], numbers[u - start] = gap, number
        ends[number] += 1
    total = 0
    for number in range(len(ends)):
        total, ends[number] = total + ends[number], total
    order = np.empty(stop - start, np.int64)
    for u in range(start, stop):
        number = numbers[u - start]
        order[ends[number]] = u
        ends[number] += 1
    return order, missed, ends


def gather_rows(width: int) -> Kernel:
    """Kernel that gathers rows [U] into `w_out, m_out, v_out` [U, w] and applies there the steps that each missed.

    Rows with the same number of exact steps and strides catch up in groups, side by side in a scratch of `lanes`
    values: a row alone would wait for its own square roots. Rows of a group differ only in their last step and in the
    length of their last stride.
    """
    return _gather_rows(max(_LANES, width))


@cache
def _gather_rows(lanes: int) -> Kernel:
    """The kernel for rows of at most `lanes` values: it takes four seconds to compile, so widths share it."""
    at = _Offsets(*(k * lanes for k in range(12)))

    @compiled
    def kernel(
        start, stop, rows, table, m, v, last_step, now, w_out, m_out, v_out, corrections, rate, decay, betas, eps
    ):
        width = table.shape[1]
        group = max(1, lanes // width)
        order, gaps, ends = _sort_by_strides(start, stop, rows, last_step, now, decay == 0)
        s, lengths = np.ones(12 * at.push, np.float32), np.zeros(at.push, np.int32)
        missed, begin = np.zeros(group, np.int64), 0
        for number in range(len(ends)):
            for first in range(begin, ends[number], group):
                for r in range(group):
                    # The last group of a number is padded with its last row.
                    u = order[min(first + r, ends[number] - 1)]
                    if first + r + _AHEAD < len(order):
                        ahead = rows[order[first + r + _AHEAD]]
                        prefetch(table, ahead)
                        prefetch(m, ahead)
                        prefetch(v, ahead)
                    row = rows[u]
                    missed[r] = gaps[u - start]
                    copy(s, at.pull + r * width, table, row * width, width)
                    copy(s, at.push + r * width, m, row * width, width)
                    copy(s, at.second + r * width, v, row * width, width)
                if number > 0:
                    for j in range(group * width, at.push):  # lanes without a row: ordinary numbers, quick to compute
                        s[at.pull + j] = s[at.push + j] = s[at.second + j] = np.float32(1)
                    _strided_steps(s, lengths, at, width, missed, now, corrections, rate, decay, betas, eps)
                for r in range(min(group, ends[number] - first)):
                    u = order[first + r]
                    copy(w_out, u * width, s, at.pull + r * width, width)
                    copy(m_out, u * width, s, at.push + r * width, width)
                    copy(v_out, u * width, s, at.second + r * width, width)
            begin = ends[number]

    return kernel
