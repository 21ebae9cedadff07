"""The steps that rows of a table missed under dense Adam with coupled L2, applied at once.

Shapes: ``U`` rows, ``w`` their width, ``n`` rows that are being caught up.

Under Adam with coupled L2 (``gradient + weight_decay * w``) a row that nobody reads still moves at every step: its
momentum rolls out, then decay alone pulls it to zero by about ``learning_rate`` a step. The best published results and
the pruning of unread rows live on that motion, but densely it costs the whole table a step. Here a row sleeps until it
is read, and then the steps that it missed are applied at once. Asleep its gradient is ``weight_decay * w``, so with
``a = rate / (sqrt(v) + eps)`` held still a step is linear::

    m' = b1 m + (1 - b1) weight_decay w          with u = a m and c = a (1 - b1) weight_decay:
    w' = w - a m'                                (w', u') = A (w, u),   A = [[1 - c, -b1], [c, b1]]

and s missed steps are a power of A, log2(s) multiplications away. Momentum roll-out, decay and the damped swing through
zero are all in A^s; only the drift of ``a`` inside a stride is approximated, by its value in the stride's middle. The
first strides are single steps, which makes them Adam itself; later ones grow with the distance already walked.

This is the form for any device; ``recsys.embedding.catch_up_kernel`` is the same as a compiled loop for the CPU.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

EXACT_STEPS = 4
"""Missed steps that are replayed one by one."""

GROWTH = 3
"""Each later stride makes the way walked so many times as long: strides of 8, 24, 72, ... steps."""

_BLOCK_VALUES = 1 << 16
"""Values that are caught up together, so that a dozen temporaries of that size stay in the cache."""


class Settings(NamedTuple):
    """The numbers of an Adam."""

    learning_rate: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float

    def step_size_at(self, step: Any) -> tuple[Any, Any]:
        """(rate, floor) of one step or [n], bias corrections folded in: w moves by ``rate * m / (sqrt(v) + floor)``."""
        root = bias_correction(self.beta2, step) ** 0.5
        return root * self.learning_rate / bias_correction(self.beta1, step), root * self.eps


_Block = tuple[Tensor, Tensor, Tensor]


class _LaggingRows(NamedTuple):
    """Rows in order of falling number of strides, so that those still walking are always the first ones."""

    rows: Tensor  # [n] int64, which of the block
    missed: Tensor  # [n] int32, steps
    num_active: list[int]  # walking[k] = how many rows need more than k strides

    def blocks(self, size: int) -> Iterator["_LaggingRows"]:
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            rows = self.rows[part]
            num_active = [min(num_walking - start, len(rows)) for num_walking in self.num_active if num_walking > start]
            yield _LaggingRows(rows, self.missed[part], num_active)


def catch_up(block: tuple[Tensor, Tensor, Tensor], missed: Tensor, now: int, adam: Settings) -> None:
    """Apply the steps before step ``now + 1`` that rows missed, in place.

    Args:
        block: w, m and v of the rows, [U, w] each.
        missed: [U] int32, steps that each row missed.
        now: steps so far.
        adam: under which settings they were missed.

    >>> w, m, v = torch.tensor([[0.5]]), torch.zeros(1, 1), torch.zeros(1, 1)
    >>> catch_up((w, m, v), torch.tensor([2], dtype=torch.int32), 2, Settings(0.1, 0.01, 0.9, 0.999, 1e-8))
    >>> round(w.item(), 2)
    0.3
    """
    if missed.numel() == 0:
        return
    for sleepers in _sort_by_strides(missed).blocks(max(1, _BLOCK_VALUES // block[0].shape[1])):
        advance = _strided_steps if len(sleepers.num_active) > EXACT_STEPS else _replay
        for values, caught_up in zip(block, advance(sleepers, block, now, adam), strict=True):
            values.index_copy_(0, sleepers.rows, caught_up)


def adam_step(w: Tensor, m: Tensor, v: Tensor, grad: Tensor, rate: Any, floor: Any, adam: Settings) -> None:
    """One exact Adam step in place; ``grad`` includes decay, ``rate`` and ``floor`` broadcast against it."""
    m.lerp_(grad, 1 - adam.beta1)
    v.mul_(adam.beta2).addcmul_(grad, grad, value=1 - adam.beta2)
    w.addcdiv_(m * rate, v.sqrt().add_(floor), value=-1)


def _replay(sleepers: _LaggingRows, block: _Block, now: int, adam: Settings) -> _Block:
    """Short gaps, step by step. All gaps end now, so one step has one bias correction whatever the row."""
    w, m, v = (values.index_select(0, sleepers.rows) for values in block)
    for missed in range(len(sleepers.num_active), 0, -1):
        part = slice(sleepers.num_active[missed - 1])
        grad = w[part] * adam.weight_decay
        adam_step(w[part], m[part], v[part], grad, *adam.step_size_at(now - missed + 1), adam)
    return w, m, v


def _strided_steps(sleepers: _LaggingRows, block: _Block, now: int, adam: Settings) -> _Block:
    """Long gaps: exact steps, then growing strides, the last one as long as it takes to arrive now.

    Rows fell asleep at different steps, so corrections differ by row; in [w, n] such row vectors broadcast along
    the contiguous axis, which is five times as fast as [n, w].
    """
    w, m, v = (values.index_select(0, sleepers.rows).t().contiguous() for values in block)
    missed, asleep_since = sleepers.missed, (now - sleepers.missed).float()
    drift = -w
    for done, num_walking in enumerate(sleepers.num_active[:EXACT_STEPS]):
        part = slice(num_walking)
        paces = adam.step_size_at(asleep_since[part] + (done + 1))
        adam_step(w[:, part], m[:, part], v[:, part], w[:, part] * adam.weight_decay, *paces, adam)
    # Strides take decay gradients and scaled momenta: then c is the only coefficient between the two.
    scale, advance = (adam.weight_decay, _stride) if adam.weight_decay else (1.0, _strided_steps_no_decay)
    drift.add_(w).mul_(scale / EXACT_STEPS)
    w.mul_(scale)
    m.div_(1 - adam.beta1)
    walked = EXACT_STEPS
    for num_walking, num_going_on in pairwise([*sleepers.num_active[EXACT_STEPS:], 0]):
        going_on, arriving = slice(0, num_going_on), slice(num_going_on, num_walking)
        for part, length in ((going_on, walked * (GROWTH - 1)), (arriving, missed[arriving] - walked)):
            if part.stop > part.start:
                middle = asleep_since[part] + (walked + (length + 1) / 2)
                advance(w[:, part], m[:, part], v[:, part], drift[:, part], middle, length, adam)
        walked *= GROWTH
    return w.div_(scale).t(), m.mul_(1 - adam.beta1).t(), v.t()


def _stride(pull: Tensor, push: Tensor, v: Tensor, drift: Tensor, middle: Tensor, length: Any, adam: Settings) -> None:
    """``length`` steps, a number or [n], round step ``middle`` [n], in place on [w, n] blocks.

    The blocks are ``weight_decay * w``, ``m / (1 - b1)``, v, and what the first lately changed by in a step.
    """
    share = 1 - adam.beta1
    square = pull * pull
    # v in the middle has gathered squares on the way there. A shrinking value is followed at its recent drift, to
    # zero at most; what grows is driven by momentum that will fade, and is better taken to stand still.
    halfway = (drift * ((length + 1) / 2)).add_(pull)
    halfway = torch.clamp(halfway, pull.clamp(max=0), pull.clamp(min=0))
    gathered = torch.addcmul(square, halfway, pull + halfway).div_(3)
    v_middle = torch.lerp(v, gathered, bias_correction(adam.beta2, (length + 1) / 2))
    rate, floor = adam.step_size_at(middle)
    coupling = (rate * (share * adam.weight_decay)).div(v_middle.sqrt_().add_(floor))
    # Beyond this the frozen system would diverge; dense Adam flickers there, a fraction of its rate round zero.
    coupling.clamp_(max=(1 + math.sqrt(adam.beta1)) ** 2)
    gain, loss = _power(coupling, share, length)
    pushed = torch.add(pull, push, alpha=adam.beta1)  # push after one step
    shift = (loss * pull).addcmul_(coupling.mul_(gain), pushed, value=-1)
    pushed.sub_(push)
    push.addcmul_(loss, push).addcmul_(gain, pushed)
    # v gathers the squares along a straight path from pull to pull + shift, each read before its step moves it.
    linear = (length - 1) / length
    slope = (pull * linear).add_(shift * (linear * (2 * length - 1) / (6 * length)))
    v.lerp_(square.addcmul_(slope, shift), bias_correction(adam.beta2, length))
    pull.add_(shift)
    torch.div(shift, length, out=drift)


def _strided_steps_no_decay(
    w: Tensor, push: Tensor, v: Tensor, drift: Tensor, middle: Tensor, length: Any, adam: Settings
) -> None:
    """``_stride`` without decay, on w itself: momentum rolls out and nothing else moves."""
    spent, forgotten = (bias_correction(beta, length) for beta in (adam.beta1, adam.beta2))
    mean_step = 1 / (1 - adam.beta1) - length * (1 - spent) / spent  # when momentum acts, on average
    rate, floor = adam.step_size_at(middle + (mean_step - (length + 1) / 2))
    root = (v * (1 - bias_correction(adam.beta2, mean_step))).sqrt_().add_(floor)
    w.addcdiv_(push * (rate * spent * adam.beta1), root, value=-1)
    push.mul_(1 - spent)
    v.mul_(1 - forgotten)


def bias_correction(beta: float, steps: float | Tensor) -> Any:
    """Share of an exponential average that ``steps`` replace, ``1 - beta^steps``: a number or a tensor, as they are."""
    log_beta = math.log(beta) if beta else -math.inf
    return 1 - torch.exp(steps * log_beta) if isinstance(steps, Tensor) else -math.expm1(steps * log_beta)


def _power(coupling: Tensor, share: float, length: Any) -> tuple[Tensor, Tensor]:
    """(gain P, loss Q) with ``A^length = (1 + Q) I + P (A - I)``, for [w, n] couplings c and one length or [n].

    Binary powers by Cayley-Hamilton, ``(A - I)^2 = -(c + 1 - b1)(A - I) - c I``. Kept relative to the identity because
    A is nearly I where decay is weak, and squaring A itself would double the rounding error of 1 each time.
    """
    trace = coupling + share
    top = int(length.max() if isinstance(length, Tensor) else length).bit_length() - 1
    gain, loss = torch.ones_like(coupling).mul_((length >> top) & 1), torch.zeros_like(coupling)
    for level in reversed(range(top)):
        square = gain * gain
        gain.addcmul_(gain, loss).mul_(2).addcmul_(trace, square, value=-1)
        loss.addcmul_(loss, loss, value=0.5).mul_(2).addcmul_(coupling, square, value=-1)
        odd = (length >> level) & 1
        if isinstance(odd, Tensor) or odd:
            loss.sub_((coupling * gain).mul_(odd))
            gain.add_(torch.sub(loss, gain, alpha=share).add_(1).mul_(odd))
    return gain, loss


def _sort_by_strides(missed: Tensor) -> _LaggingRows:
    """Drop the rows that missed nothing and put the others in order; see ``_strided_steps`` for the strides that are
    counted."""
    num_strides = missed.clamp(max=EXACT_STEPS)
    if int(missed.max()) > EXACT_STEPS:  # ceil(log(missed / EXACT_STEPS, GROWTH)) more, half a step off the borders
        ways = (missed.clamp(min=EXACT_STEPS).double() - 0.5) / EXACT_STEPS
        num_strides += ways.log_().div_(math.log(GROWTH)).ceil_().int()
    counts = torch.bincount(num_strides).tolist()
    num_active = [sum(counts[k + 1 :]) for k in range(len(counts) - 1)]
    order = torch.argsort(num_strides, descending=True, stable=True)[: num_active[0] if num_active else 0]
    return _LaggingRows(order, missed[order], num_active)
