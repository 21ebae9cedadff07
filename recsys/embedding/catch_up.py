"""Applies the steps that table rows missed under dense Adam with coupled L2, all at once, on any device.

U rows, w row width, n rows that catch up together.

Under Adam with coupled L2 (`gradient + weight_decay * w`) a row that no batch reads still moves at every step: its
momentum rolls out, then decay alone pulls it to zero by about `learning_rate` per step. The best published results
and the pruning of unread rows depend on that motion, but computing it at every step costs a pass over the whole table.
Here a row lags until a batch reads it, and then catches up. While it lags its gradient is `weight_decay * w`, so with
`a = rate / (sqrt(v) + eps)` held constant a step is linear::

    m' = b1 m + (1 - b1) weight_decay w          with u = a m and c = a (1 - b1) weight_decay:
    w' = w - a m'                                (w', u') = A (w, u),   A = [[1 - c, -b1], [c, b1]]

and s missed steps are a power of A, log2(s) multiplications away. Momentum roll-out, decay and the damped swing through
zero are all in A^s; only the drift of `a` within a stride of steps is approximated, by its value in the middle. The
first strides are single steps, which makes them exact Adam; later ones grow with the number of steps already taken.

`recsys.embedding.catch_up_kernel` is the same as a compiled loop for the CPU.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

EXACT_STEPS = 4
"""Missed steps that are taken one by one."""

GROWTH = 3
"""Each later stride multiplies the number of steps taken by this: strides of 8, 24, 72, ... steps."""

_BLOCK_VALUES = 1 << 16
"""Values that catch up together, so that a dozen temporaries of that size stay in the cache."""


class Settings(NamedTuple):
    """Settings of Adam."""

    learning_rate: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float

    def step_size_at(self, step: Any) -> tuple[Any, Any]:
        """(rate, floor) of one step or [n], bias corrections included: w moves by `rate * m / (sqrt(v) + floor)`."""
        root = bias_correction(self.beta2, step) ** 0.5
        return root * self.learning_rate / bias_correction(self.beta1, step), root * self.eps


_Block = tuple[Tensor, Tensor, Tensor]


class _LaggingRows(NamedTuple):
    """Rows by falling number of strides, so that those which need another stride always come first."""

    rows: Tensor  # [n] int64, positions in the block
    missed: Tensor  # [n] int32, steps
    num_active: list[int]  # entry k: rows that need more than k strides

    def blocks(self, size: int) -> Iterator["_LaggingRows"]:
        """The same in groups of at most so many rows."""
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            rows = self.rows[part]
            num_active = [min(count - start, len(rows)) for count in self.num_active if count > start]
            yield _LaggingRows(rows, self.missed[part], num_active)


def catch_up(block: tuple[Tensor, Tensor, Tensor], missed: Tensor, now: int, adam: Settings) -> None:
    """Apply in place the steps that rows missed before step `now + 1`.

    Args:
        block: w, m and v of the rows, [U, w] each.
        missed: [U] int32, steps that each row missed.
        now: number of steps so far.
        adam: the settings of the missed steps.

    >>> w, m, v = torch.tensor([[0.5]]), torch.zeros(1, 1), torch.zeros(1, 1)
    >>> catch_up((w, m, v), torch.tensor([2], dtype=torch.int32), 2, Settings(0.1, 0.01, 0.9, 0.999, 1e-8))
    >>> round(w.item(), 2)
    0.3
    """
    if missed.numel() == 0:
        return
    for lagging in _sort_by_strides(missed).blocks(max(1, _BLOCK_VALUES // block[0].shape[1])):
        advance = _strided_steps if len(lagging.num_active) > EXACT_STEPS else _exact_steps
        for values, caught_up in zip(block, advance(lagging, block, now, adam), strict=True):
            values.index_copy_(0, lagging.rows, caught_up)


def adam_step(w: Tensor, m: Tensor, v: Tensor, grad: Tensor, rate: Any, floor: Any, adam: Settings) -> None:
    """One exact Adam step in place; `grad` includes decay, `rate` and `floor` broadcast against it."""
    m.lerp_(grad, 1 - adam.beta1)
    v.mul_(adam.beta2).addcmul_(grad, grad, value=1 - adam.beta2)
    w.addcdiv_(m * rate, v.sqrt().add_(floor), value=-1)


def _exact_steps(lagging: _LaggingRows, block: _Block, now: int, adam: Settings) -> _Block:
    """Short gaps, step by step. All gaps end now, so all rows have the same bias correction in a step."""
    w, m, v = (values.index_select(0, lagging.rows) for values in block)
    for missed in range(len(lagging.num_active), 0, -1):
        part = slice(lagging.num_active[missed - 1])
        grad = w[part] * adam.weight_decay
        adam_step(w[part], m[part], v[part], grad, *adam.step_size_at(now - missed + 1), adam)
    return w, m, v


def _strided_steps(lagging: _LaggingRows, block: _Block, now: int, adam: Settings) -> _Block:
    """Long gaps: exact steps, then growing strides; the last stride ends now.

    Rows have different last steps, so bias corrections differ by row: in [w, n] such row vectors broadcast along the
    contiguous axis, which is five times as fast as [n, w].
    """
    w, m, v = (values.index_select(0, lagging.rows).t().contiguous() for values in block)  # [w, n]
    missed, last_step = lagging.missed, (now - lagging.missed).float()
    drift = -w
    for k, num_active in enumerate(lagging.num_active[:EXACT_STEPS]):
        part = slice(num_active)
        step_size = adam.step_size_at(last_step[part] + (k + 1))
        adam_step(w[:, part], m[:, part], v[:, part], w[:, part] * adam.weight_decay, *step_size, adam)
    # Strides take decay gradients and scaled momenta: then c is the only coefficient between the two.
    scale, advance = (adam.weight_decay, _stride) if adam.weight_decay else (1.0, _stride_no_decay)
    drift.add_(w).mul_(scale / EXACT_STEPS)
    w.mul_(scale)
    m.div_(1 - adam.beta1)
    done = EXACT_STEPS
    for num_active, num_continuing in pairwise([*lagging.num_active[EXACT_STEPS:], 0]):
        continuing, finishing = slice(0, num_continuing), slice(num_continuing, num_active)
        for part, length in ((continuing, done * (GROWTH - 1)), (finishing, missed[finishing] - done)):
            if part.stop > part.start:
                middle = last_step[part] + (done + (length + 1) / 2)
                advance(w[:, part], m[:, part], v[:, part], drift[:, part], middle, length, adam)
        done *= GROWTH
    return w.div_(scale).t(), m.mul_(1 - adam.beta1).t(), v.t()


def _stride(pull: Tensor, push: Tensor, v: Tensor, drift: Tensor, middle: Tensor, length: Any, adam: Settings) -> None:
    """`length` steps, a number or [n], around step `middle` [n], in place on [w, n] blocks.

    The blocks are `weight_decay * w`, `m / (1 - b1)`, v, and the recent change of the first per step.
    """
    share = 1 - adam.beta1
    square = pull * pull
    # v in the middle has accumulated squares on the way there. A shrinking value is extrapolated at its recent drift,
    # to zero at most; a growing one is driven by momentum that will fade, and is better assumed constant.
    halfway = (drift * ((length + 1) / 2)).add_(pull)
    halfway = torch.clamp(halfway, pull.clamp(max=0), pull.clamp(min=0))
    accumulated = torch.addcmul(square, halfway, pull + halfway).div_(3)
    v_middle = torch.lerp(v, accumulated, bias_correction(adam.beta2, (length + 1) / 2))
    rate, floor = adam.step_size_at(middle)
    coupling = (rate * (share * adam.weight_decay)).div(v_middle.sqrt_().add_(floor))
    # Beyond this the linear system would diverge; dense Adam flickers there, a fraction of its rate around zero.
    coupling.clamp_(max=(1 + math.sqrt(adam.beta1)) ** 2)
    gain, loss = _power(coupling, share, length)
    pushed = torch.add(pull, push, alpha=adam.beta1)  # push after one step
    shift = (loss * pull).addcmul_(coupling.mul_(gain), pushed, value=-1)
    pushed.sub_(push)
    push.addcmul_(loss, push).addcmul_(gain, pushed)
    # v accumulates the squares along a straight path from pull to pull + shift, each taken before its step.
    linear = (length - 1) / length
    slope = (pull * linear).add_(shift * (linear * (2 * length - 1) / (6 * length)))
    v.lerp_(square.addcmul_(slope, shift), bias_correction(adam.beta2, length))
    pull.add_(shift)
    torch.div(shift, length, out=drift)


def _stride_no_decay(
    w: Tensor, push: Tensor, v: Tensor, drift: Tensor, middle: Tensor, length: Any, adam: Settings
) -> None:
    """`_stride` without decay, on w itself: momentum rolls out, and nothing else moves the row."""
    spent, replaced = (bias_correction(beta, length) for beta in (adam.beta1, adam.beta2))
    mean_step = 1 / (1 - adam.beta1) - length * (1 - spent) / spent  # when momentum acts, on average
    rate, floor = adam.step_size_at(middle + (mean_step - (length + 1) / 2))
    root = (v * (1 - bias_correction(adam.beta2, mean_step))).sqrt_().add_(floor)
    w.addcdiv_(push * (rate * spent * adam.beta1), root, value=-1)
    push.mul_(1 - spent)
    v.mul_(1 - replaced)


def bias_correction(beta: float, steps: float | Tensor) -> Any:
    """`1 - beta^steps`, the share of an exponential average that `steps` replace; a tensor for a tensor."""
    log_beta = math.log(beta) if beta else -math.inf
    return 1 - torch.exp(steps * log_beta) if isinstance(steps, Tensor) else -math.expm1(steps * log_beta)


def _power(coupling: Tensor, share: float, length: Any) -> tuple[Tensor, Tensor]:
    """(gain P, loss Q) with `A^length = (1 + Q) I + P (A - I)`, for [w, n] couplings c and one length or [n].

    Binary powers by Cayley-Hamilton, `(A - I)^2 = -(c + 1 - b1)(A - I) - c I`. They are relative to the identity, as
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
    """The rows that missed any steps, ordered by the number of strides that `_strided_steps` takes for them."""
    num_strides = missed.clamp(max=EXACT_STEPS)
    if int(missed.max()) > EXACT_STEPS:  # ceil(log(missed / EXACT_STEPS, GROWTH)) more, half a step off the borders
        ratios = (missed.clamp(min=EXACT_STEPS).double() - 0.5) / EXACT_STEPS
        num_strides += ratios.log_().div_(math.log(GROWTH)).ceil_().int()
    counts = torch.bincount(num_strides).tolist()
    num_active = [sum(counts[k + 1 :]) for k in range(len(counts) - 1)]
    order = torch.argsort(num_strides, descending=True, stable=True)[: num_active[0] if num_active else 0]
    return _LaggingRows(order, missed[order], num_active)
