"""The steps that rows of a table missed, as a compiled kernel: what `recsys.catch_up` does in torch, on a CPU.

U rows, w row width. `recsys.catch_up` has the mathematics and its words: exact steps, strides, pull, push, coupling.
"""

# pyright: reportMissingParameterType=false
# Inside the kernels types are numba's: arrays of float32, and integers.

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recsys.catch_up import EXACT_STEPS, GROWTH
from recsys.kernels import AHEAD, Kernel, compiled, copy, prefetch

_LANES = 64
"""Values that are caught up side by side: rows in groups, so that one does not wait for its own square roots."""
_AHEAD = 24
"""As `AHEAD`, for rows that are not read in their order."""


class Memory(NamedTuple):
    """What Adam's averages have forgotten after t steps: entry 2 t, and the last entry for all later."""

    forgotten2: npt.NDArray[np.float32]
    """1 - b2^t."""
    root: npt.NDArray[np.float32]
    """sqrt(1 - b2^t)."""
    ratio: npt.NDArray[np.float32]
    """sqrt(1 - b2^t) / (1 - b1^t)."""
    forgotten1: npt.NDArray[np.float32]
    """1 - b1^t."""


def memory_of(beta1: float, beta2: float) -> Memory:
    """Tables of two betas, as long as it takes until float32 sees no difference.

    >>> [round(float(value), 4) for value in memory_of(0.9, 0.999).forgotten1[:5]]
    [0.0, 0.0513, 0.1, 0.1462, 0.19]
    """
    longest = max(2, *(math.ceil(math.log(1e-9) / math.log(beta)) for beta in (beta1, beta2) if beta > 0))
    steps = np.arange(2 * longest + 1) / 2
    forgotten1, forgotten2 = (
        -np.expm1(steps * math.log(beta)) if beta else (steps > 0).astype(float) for beta in (beta1, beta2)
    )
    ratio = np.sqrt(forgotten2) / np.maximum(forgotten1, 1e-300)
    tables = (forgotten2, np.sqrt(forgotten2), ratio, forgotten1)
    return Memory(*(table.astype(np.float32) for table in tables))


@cache
def take_out(width: int) -> Kernel:
    """Kernel that reads rows [U] into `w_out, m_out, v_out` [U, w], and applies the steps that each one missed there.

    `RowSparseAdam` says what the steps and strides are. Rows that need the same number of them are taken in groups,
    side by side in a scratch of `lanes` values: a row alone would wait for its own square roots. Within a group rows
    differ in when they fell asleep, and in the length of their last stride alone.
    """
    group = max(1, _LANES // width)
    lanes = group * width
    pull, push, second, drift, coupling, gain, loss = (k * lanes for k in range(7))
    rates, floors, to_middle, to_end, steps = (k * lanes for k in range(7, 12))

    @compiled
    def between(entries, position):
        before = min(np.int64(position), len(entries) - 2)
        part = np.float32(min(position - before, 1.0))
        return entries[before] + part * (entries[before + 1] - entries[before])

    @compiled
    def spread(s, at, r, value):
        for j in range(r * width, (r + 1) * width):
            s[at + j] = value

    @compiled
    def exact(s, decay, take1, take2):
        for j in range(lanes):
            g = decay * s[pull + j]
            s[push + j] += take1 * (g - s[push + j])
            s[second + j] = (np.float32(1) - take2) * s[second + j] + take2 * (g * g)
            s[pull + j] -= s[rates + j] * s[push + j] / (math.sqrt(s[second + j]) + s[floors + j])

    @compiled
    def power(s, lengths, share):
        one, two, half = np.float32(1), np.float32(2), np.float32(0.5)
        longest = np.int32(0)
        for r in range(group):
            longest = max(longest, lengths[r * width])
        level = np.int32(0)
        while longest >> (level + np.int32(1)) > 0:
            level += np.int32(1)
        for j in range(lanes):
            s[gain + j] = np.float32((lengths[j] >> level) & np.int32(1))
            s[loss + j] = np.float32(0)
        while level > 0:
            level -= np.int32(1)
            for j in range(lanes):
                c, p, q = s[coupling + j], s[gain + j], s[loss + j]
                square = p * p
                p = two * (p + p * q) - (c + share) * square
                q = two * (q + half * q * q) - c * square
                odd = np.float32((lengths[j] >> level) & np.int32(1))
                q -= odd * (c * p)
                s[gain + j] = p + odd * (q - share * p + one)
                s[loss + j] = q

    @compiled
    def stride(s, lengths, share, beta1):
        zero, one, third, half = np.float32(0), np.float32(1), np.float32(1 / 3), np.float32(0.5)
        most = (one + math.sqrt(beta1)) * (one + math.sqrt(beta1))
        for j in range(lanes):
            x = s[pull + j]
            halfway = min(max(x + half * (s[steps + j] + one) * s[drift + j], min(x, zero)), max(x, zero))
            gathered = third * (x * x + halfway * (x + halfway))
            v_middle = s[second + j] + s[to_middle + j] * (gathered - s[second + j])
            s[coupling + j] = min(most, s[rates + j] / (math.sqrt(v_middle) + s[floors + j]))
        power(s, lengths, share)
        for j in range(lanes):
            x, y, p, q, n = s[pull + j], s[push + j], s[gain + j], s[loss + j], s[steps + j]
            pushed = x + beta1 * y
            shift = q * x - s[coupling + j] * p * pushed
            s[push + j] = y + q * y + p * (pushed - y)
            linear = (n - one) / n
            quadratic = linear * (n - half) / (np.float32(3) * n)
            square = x * x + (x * linear + shift * quadratic) * shift
            s[second + j] += s[to_end + j] * (square - s[second + j])
            s[pull + j] = x + shift
            s[drift + j] = shift / n

    @compiled
    def coast(s, beta1):
        one = np.float32(1)
        for j in range(lanes):  # here `gain` is the share of the momentum that is spent
            root = math.sqrt(s[second + j] * (one - s[to_middle + j])) + s[floors + j]
            s[pull + j] -= s[rates + j] * s[gain + j] * beta1 * s[push + j] / root
            s[push + j] *= one - s[gain + j]
            s[second + j] *= one - s[to_end + j]

    @compiled
    def walk(s, lengths, missed, now, memory, learning_rate, decay, beta1, take1, take2, eps):
        forgotten2, root, ratio, forgotten1 = memory
        last, one, share = len(root) - 1, np.float32(1), take1
        for j in range(lanes):
            s[drift + j] = -s[pull + j]
        for k in range(1, min(EXACT_STEPS, missed[0]) + 1):
            for r in range(group):
                at = min(2 * (now - missed[r] + k), last)
                spread(s, rates, r, learning_rate * ratio[at])
                spread(s, floors, r, eps * root[at])
            exact(s, decay, take1, take2)
        if missed[0] <= EXACT_STEPS:
            return
        # Strides take decay gradients and scaled momenta: then the coupling is the only coefficient between the two.
        scale = decay if decay > 0 else one
        for j in range(lanes):
            s[drift + j] = (s[drift + j] + s[pull + j]) * (scale / np.float32(EXACT_STEPS))
            s[pull + j] *= scale
            s[push + j] /= share
        walked = EXACT_STEPS
        while walked < missed[0]:
            for r in range(group):
                length = min(walked * (GROWTH - 1), missed[r] - walked)
                begun = 2 * (now - missed[r] + walked)
                spread(lengths, 0, r, np.int32(length))
                spread(s, steps, r, np.float32(length))
                spread(s, to_end, r, forgotten2[min(2 * length, last)])
                if decay > 0:
                    at = min(begun + length + 1, last)
                    spread(s, to_middle, r, forgotten2[min(length + 1, last)])
                    spread(s, rates, r, learning_rate * ratio[at] * (share * decay))
                    spread(s, floors, r, eps * root[at])
                else:  # the middle of what is left of the momentum, rather than that of the way
                    spent = forgotten1[min(2 * length, last)]
                    middle = 2 * (1 / share - length * (1 - spent) / spent)
                    spread(s, gain, r, spent)
                    spread(s, to_middle, r, between(forgotten2, middle))
                    spread(s, rates, r, learning_rate * between(ratio, begun + middle))
                    spread(s, floors, r, eps * between(root, begun + middle))
            if decay > 0:
                stride(s, lengths, share, beta1)
            else:
                coast(s, beta1)
            walked *= GROWTH
        for j in range(lanes):
            s[pull + j] /= scale
            s[push + j] *= share

    @compiled
    def sort_by_strides(start, stop, rows, last_step, now, is_idle_without_reads):
        """Order of the rows by the number of exact steps and strides that they missed; where each number ends."""
        numbers, missed = np.empty(stop - start, np.uint8), np.empty(stop - start, np.int64)
        ends = np.zeros(64, np.int64)
        for u in range(start, stop):
            if u + AHEAD < stop:
                prefetch(last_step, rows[u + AHEAD])
            fell_asleep = last_step[rows[u]]
            slept = 0 if is_idle_without_reads and fell_asleep == 0 else now - fell_asleep
            number, way = min(slept, EXACT_STEPS), EXACT_STEPS
            while way < slept:
                way *= GROWTH
                number += 1
            missed[u - start], numbers[u - start] = slept, number
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

    @compiled
    def kernel(start, stop, rows, table, m, v, last_step, now, w_out, m_out, v_out, memory, rate, decay, betas, eps):
        beta1, take1, take2 = betas
        order, slept, ends = sort_by_strides(start, stop, rows, last_step, now, decay == 0)
        s, lengths = np.ones(12 * lanes, np.float32), np.zeros(lanes, np.int32)
        missed, begin = np.zeros(group, np.int64), 0
        for number in range(len(ends)):
            for first in range(begin, ends[number], group):
                for r in range(group):
                    # The last group of a number is filled up with its last row.
                    u = order[min(first + r, ends[number] - 1)]
                    if first + r + _AHEAD < len(order):
                        ahead = rows[order[first + r + _AHEAD]]
                        prefetch(table, ahead)
                        prefetch(m, ahead)
                        prefetch(v, ahead)
                    row = rows[u]
                    missed[r] = slept[u - start]
                    copy(s, pull + r * width, table, row * width, width)
                    copy(s, push + r * width, m, row * width, width)
                    copy(s, second + r * width, v, row * width, width)
                if number > 0:
                    walk(s, lengths, missed, now, memory, rate, decay, beta1, take1, take2, eps)
                for r in range(min(group, ends[number] - first)):
                    u = order[first + r]
                    copy(w_out, u * width, s, pull + r * width, width)
                    copy(m_out, u * width, s, push + r * width, width)
                    copy(v_out, u * width, s, second + r * width, width)
            begin = ends[number]

    return kernel
