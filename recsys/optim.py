"""Dense Adam with coupled L2 for an embedding table at the cost of the rows that a batch reads; gradient clipping.

Shapes: ``M`` rows of the table, ``w`` their width, ``U`` distinct rows of a batch, ``n`` rows that are being caught up.

Under Adam with coupled L2 (``gradient + weight_decay * w``) a row that nobody reads still moves at every step: its
momentum rolls out, then decay alone pulls it to zero by about ``learning_rate`` a step. The best published results and
the pruning of unread rows live on that motion, but densely it costs O(M) a step. Here a row sleeps until it is read,
and then the steps that it missed are applied at once. Asleep its gradient is ``weight_decay * w``, so with
``a = rate / (sqrt(v) + eps)`` held still a step is linear::

    m' = b1 m + (1 - b1) weight_decay w          with u = a m and c = a (1 - b1) weight_decay:
    w' = w - a m'                                (w', u') = A (w, u),   A = [[1 - c, -b1], [c, b1]]

and s missed steps are a power of A, log2(s) multiplications away. Momentum roll-out, decay and the damped swing through
zero are all in A^s; only the drift of ``a`` inside a stride is approximated, by its value in the stride's middle. The
first strides are single steps, which makes them Adam itself; later ones grow with the distance already walked.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from features.errors import InputError

EXACT_STEPS = 4
"""Missed steps that are replayed one by one."""

_GROWTH = 3
"""Each later stride makes the way walked so many times as long: strides of 8, 24, 72, ... steps."""

_BLOCK_VALUES = 1 << 16
"""Table values that are caught up together, so that a dozen temporaries of that size stay in the cache."""

_CHUNK_ROWS = 1 << 16
"""Rows that ``catch_up_all`` takes at a time, to bound memory."""

_TINY_WEIGHT, _TINY_MOMENT = 1e-15, 1e-30
"""Written as zero below this: long sleep ends in denormals, at 100 times the cost of an operation."""


class _Sleepers(NamedTuple):
    """Rows in order of falling number of strides, so that those still walking are always the first ones."""

    rows: Tensor  # [n] int64
    missed: Tensor  # [n] int32, steps
    walking: list[int]  # walking[k] = how many rows need more than k strides

    def blocks(self, size: int) -> Iterator["_Sleepers"]:
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            rows = self.rows[part]
            walking = [min(num_walking - start, len(rows)) for num_walking in self.walking if num_walking > start]
            yield _Sleepers(rows, self.missed[part], walking)


class RowSparseAdam:
    """Adam with L2 on every row at every step (Adam, Kingma & Ba 2015, algorithm 1), paid for only where rows are read.

    Agrees with ``torch.optim.Adam(weight_decay=...)`` on the dense gradient: to rounding while no row misses more than
    ``EXACT_STEPS`` steps at a time; within 1.5 learning rates beyond, on average within 1.5% of the way that a row
    went in the first 100 steps and 0.4% later (``tests/recsys/test_optim.py``).

    Each step: ``catch_up(rows)``, read the rows, compute, ``step(rows, grad)``. Unread rows are stale until
    ``catch_up_all()``, which evaluation and export need first. ``rows`` must not repeat a row; that is not checked,
    as the check costs as much as the step. Strides suit a second beta near 0.999: they outgrow a shorter memory.

    Args:
        table: [M, w] float32 on any device, detached, updated in place.
        learning_rate: step size, at least 0.
        weight_decay: L2 coefficient added to the gradient as ``weight_decay * w``, 0 or at least 1e-12.
        betas: decay a step of the first and the second moment, each in [0, 1).
        eps: added to the root of the second moment, above 0.

    Raises:
        InputError: a table that is not a detached [M, w] float32 tensor, or a setting outside its range.

    Example:
        >>> table = torch.tensor([[1.0], [0.5]])
        >>> optimizer = RowSparseAdam(table, learning_rate=0.1, weight_decay=0.01)
        >>> for _ in range(2):
        ...     optimizer.catch_up(torch.tensor([0]))
        ...     optimizer.step(torch.tensor([0]), torch.tensor([[1.0]]))
        >>> [round(value, 2) for value in table.flatten().tolist()]  # row 1 sleeps,
        [0.8, 0.5]
        >>> optimizer.catch_up_all()
        >>> [round(value, 2) for value in table.flatten().tolist()]  # and has shrunk by 0.1 a step meanwhile
        [0.8, 0.3]
    """

    def __init__(
        self,
        table: Tensor,
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        _check_settings(table, weight_decay, betas, eps)
        _check_learning_rate(learning_rate)
        self.table = table
        self.m = torch.zeros_like(table)
        self.v = torch.zeros_like(table)
        self.last_step = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        self.num_steps = 0
        self._learning_rate = float(learning_rate)
        self._weight_decay = float(weight_decay)
        self._beta1, self._beta2 = map(float, betas)
        self._log_betas = tuple(math.log(beta) if beta else -math.inf for beta in betas)
        self._eps = float(eps)

    @property
    def learning_rate(self) -> float:
        """Step size of the steps to come. A new value runs ``catch_up_all`` first: set it by epoch rather than step."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        _check_learning_rate(value)
        # An equal value must not flush: a resumed run assigns it again and has to stay bit-equal.
        if value != self._learning_rate:
            self.catch_up_all()  # each missed step at its own rate
            self._learning_rate = float(value)

    @torch.no_grad()
    def catch_up(self, rows: Tensor) -> None:
        """Apply the steps that ``rows`` missed, so that they read as dense Adam would have them now.

        Args:
            rows: [U] int64, no row twice.
        """
        if rows.numel() == 0:
            return
        sleepers = _sort_by_strides(rows, self.num_steps - self.last_step.index_select(0, rows))
        for block in sleepers.blocks(max(1, _BLOCK_VALUES // self.table.shape[1])):
            (self._walk if len(block.walking) > EXACT_STEPS else self._replay)(block)
        self.last_step.index_fill_(0, sleepers.rows, self.num_steps)

    @torch.no_grad()
    def step(self, rows: Tensor, grad: Tensor) -> None:
        """Take one global step; ``rows`` move by their gradient and decay now, all others when they are next caught up.

        Args:
            rows: [U] int64, no row twice, caught up.
            grad: [U, w] float32, the loss gradient summed over the reads of each row, without decay.

        Raises:
            AssertionError: ``rows`` were not caught up.
        """
        assert bool((self.last_step.index_select(0, rows) == self.num_steps).all()), (
            "rows must be caught up before step; found rows that missed steps; call catch_up(rows) first"
        )
        self.num_steps += 1
        w, m, v = self._gather(rows)
        if self._weight_decay:
            grad = torch.add(grad, w, alpha=self._weight_decay)
        self._adam(w, m, v, grad, *self._pace_at(self.num_steps))
        self._scatter(rows, w, m, v)
        self.last_step.index_fill_(0, rows, self.num_steps)

    @torch.no_grad()
    def catch_up_all(self) -> None:
        """Bring every row up to date: before an evaluation, an export, or a table that others read."""
        for start in range(0, len(self.table), _CHUNK_ROWS):
            self.catch_up(torch.arange(start, min(start + _CHUNK_ROWS, len(self.table)), device=self.table.device))

    def state_dict(self) -> dict[str, Tensor]:
        """The state beside the table, as it is: sleeping rows stay asleep. The large tensors are not copied.

        Returns:
            ``m`` and ``v`` [M, w] float32, ``last_step`` [M] int32, ``num_steps`` int64, ``learning_rate`` float64, and
            ``settings`` [4] float64: weight decay, both betas, eps.
        """
        return {
            "m": self.m,
            "v": self.v,
            "last_step": self.last_step,
            "num_steps": torch.tensor(self.num_steps, dtype=torch.int64),
            "learning_rate": torch.tensor(self._learning_rate, dtype=torch.float64),
            "settings": torch.tensor([self._weight_decay, self._beta1, self._beta2, self._eps], dtype=torch.float64),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where ``state_dict`` was taken, bit for bit, if the table holds that moment's values too.

        Raises:
            InputError: other entries or shapes, or other settings (sleeping rows are owed steps under the saved ones).
        """
        own = self.state_dict()
        shapes, found = ({name: list(tensor.shape) for name, tensor in entries.items()} for entries in (own, state))
        if shapes != found:
            raise InputError(
                f"optimizer state must have shapes {shapes}", found=str(found), remedy="load its own state"
            )
        if not torch.equal(state["settings"].cpu(), own["settings"]):
            expected = f"weight decay, betas and eps must be the saved {state['settings'].tolist()}"
            raise InputError(expected, found=str(own["settings"].tolist()), remedy="build RowSparseAdam with those")
        for name in ("m", "v", "last_step"):
            own[name].copy_(state[name])
        self.num_steps = int(state["num_steps"])
        self._learning_rate = float(state["learning_rate"])

    def _gather(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.table.index_select(0, rows), self.m.index_select(0, rows), self.v.index_select(0, rows)

    def _scatter(self, rows: Tensor, w: Tensor, m: Tensor, v: Tensor) -> None:
        self.table.index_copy_(0, rows, torch.hardshrink(w, _TINY_WEIGHT))
        self.m.index_copy_(0, rows, torch.hardshrink(m, _TINY_MOMENT))
        self.v.index_copy_(0, rows, v)

    def _pace_at(self, step: int | Tensor) -> tuple[Any, Any]:
        """(rate, floor) of one step or [n], bias corrections folded in: w moves by ``rate * m / (sqrt(v) + floor)``."""
        root = _forgotten(self._log_betas[1], step) ** 0.5
        return root * self._learning_rate / _forgotten(self._log_betas[0], step), root * self._eps

    def _adam(self, w: Tensor, m: Tensor, v: Tensor, grad: Tensor, rate: float | Tensor, floor: float | Tensor) -> None:
        """One exact Adam step in place; ``grad`` includes decay, ``rate`` and ``floor`` broadcast against it."""
        m.lerp_(grad, 1 - self._beta1)
        v.mul_(self._beta2).addcmul_(grad, grad, value=1 - self._beta2)
        w.addcdiv_(m * rate, v.sqrt().add_(floor), value=-1)

    def _replay(self, sleepers: _Sleepers) -> None:
        """Short gaps, step by step. All gaps end now, so one step has one bias correction whatever the row."""
        w, m, v = self._gather(sleepers.rows)
        for missed in range(len(sleepers.walking), 0, -1):
            part = slice(sleepers.walking[missed - 1])
            grad = w[part] * self._weight_decay
            self._adam(w[part], m[part], v[part], grad, *self._pace_at(self.num_steps - missed + 1))
        self._scatter(sleepers.rows, w, m, v)

    def _walk(self, sleepers: _Sleepers) -> None:
        """Long gaps: exact steps, then growing strides, the last one as long as it takes to arrive now.

        Rows fell asleep at different steps, so corrections differ by row; in [w, n] such row vectors broadcast along
        the contiguous axis, which is five times as fast as [n, w].
        """
        w, m, v = (values.t().contiguous() for values in self._gather(sleepers.rows))
        missed, asleep_since = sleepers.missed, (self.num_steps - sleepers.missed).float()
        drift = -w
        for done, num_walking in enumerate(sleepers.walking[:EXACT_STEPS]):
            part = slice(num_walking)
            paces = self._pace_at(asleep_since[part] + (done + 1))
            self._adam(w[:, part], m[:, part], v[:, part], w[:, part] * self._weight_decay, *paces)
        # Strides take decay gradients and scaled momenta: then c is the only coefficient between the two.
        scale, advance = (self._weight_decay, self._stride) if self._weight_decay else (1.0, self._coast)
        drift.add_(w).mul_(scale / EXACT_STEPS)
        w.mul_(scale)
        m.div_(1 - self._beta1)
        walked = EXACT_STEPS
        for num_walking, num_going_on in pairwise([*sleepers.walking[EXACT_STEPS:], 0]):
            going_on, arriving = slice(0, num_going_on), slice(num_going_on, num_walking)
            for part, length in ((going_on, walked * (_GROWTH - 1)), (arriving, missed[arriving] - walked)):
                if part.stop > part.start:
                    middle = asleep_since[part] + (walked + (length + 1) / 2)
                    advance(w[:, part], m[:, part], v[:, part], drift[:, part], middle, length)
            walked *= _GROWTH
        self._scatter(sleepers.rows, w.div_(scale).t(), m.mul_(1 - self._beta1).t(), v.t())

    def _stride(self, pull: Tensor, push: Tensor, v: Tensor, drift: Tensor, middle: Tensor, length: Any) -> None:
        """``length`` steps, a number or [n], round step ``middle`` [n], in place on [w, n] blocks.

        The blocks are ``weight_decay * w``, ``m / (1 - b1)``, v, and what the first lately changed by in a step.
        """
        share = 1 - self._beta1
        square = pull * pull
        # v in the middle has gathered squares on the way there. A shrinking value is followed at its recent drift, to
        # zero at most; what grows is driven by momentum that will fade, and is better taken to stand still.
        halfway = (drift * ((length + 1) / 2)).add_(pull)
        halfway = torch.clamp(halfway, pull.clamp(max=0), pull.clamp(min=0))
        gathered = torch.addcmul(square, halfway, pull + halfway).div_(3)
        v_middle = torch.lerp(v, gathered, _forgotten(self._log_betas[1], (length + 1) / 2))
        rate, floor = self._pace_at(middle)
        coupling = (rate * (share * self._weight_decay)).div(v_middle.sqrt_().add_(floor))
        # Beyond this the frozen system would diverge; dense Adam flickers there, a fraction of its rate round zero.
        coupling.clamp_(max=(1 + math.sqrt(self._beta1)) ** 2)
        gain, loss = _power(coupling, share, length)
        pushed = torch.add(pull, push, alpha=self._beta1)  # push after one step
        shift = (loss * pull).addcmul_(coupling.mul_(gain), pushed, value=-1)
        pushed.sub_(push)
        push.addcmul_(loss, push).addcmul_(gain, pushed)
        # v gathers the squares along a straight path from pull to pull + shift, each read before its step moves it.
        linear = (length - 1) / length
        slope = (pull * linear).add_(shift * (linear * (2 * length - 1) / (6 * length)))
        v.lerp_(square.addcmul_(slope, shift), _forgotten(self._log_betas[1], length))
        pull.add_(shift)
        torch.div(shift, length, out=drift)

    def _coast(self, w: Tensor, push: Tensor, v: Tensor, drift: Tensor, middle: Tensor, length: Any) -> None:
        """``_stride`` without decay, on w itself: momentum rolls out and nothing else moves."""
        spent, forgotten = (_forgotten(log_beta, length) for log_beta in self._log_betas)
        mean_step = 1 / (1 - self._beta1) - length * (1 - spent) / spent  # when momentum acts, on average
        rate, floor = self._pace_at(middle + (mean_step - (length + 1) / 2))
        root = (v * (1 - _forgotten(self._log_betas[1], mean_step))).sqrt_().add_(floor)
        w.addcdiv_(push * (rate * spent * self._beta1), root, value=-1)
        push.mul_(1 - spent)
        v.mul_(1 - forgotten)


def _forgotten(log_beta: float, steps: float | Tensor) -> Any:
    """Share of an exponential average that ``steps`` replace, ``1 - beta^steps``: a number or a tensor, as they are."""
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


def _sort_by_strides(rows: Tensor, missed: Tensor) -> _Sleepers:
    """Drop the rows that missed nothing and put the others in order; see ``_walk`` for the strides that are counted."""
    num_strides = missed.clamp(max=EXACT_STEPS)
    if int(missed.max()) > EXACT_STEPS:  # ceil(log(missed / EXACT_STEPS, _GROWTH)) more, half a step off the borders
        ways = (missed.clamp(min=EXACT_STEPS).double() - 0.5) / EXACT_STEPS
        num_strides += ways.log_().div_(math.log(_GROWTH)).ceil_().int()
    counts = torch.bincount(num_strides).tolist()
    walking = [sum(counts[k + 1 :]) for k in range(len(counts) - 1)]
    if not walking:
        return _Sleepers(rows[:0], missed[:0], walking)
    if walking[-1] < len(rows):
        order = _argsort_falling(num_strides)[: walking[0]]
        rows, missed = rows[order], missed[order]
    return _Sleepers(rows, missed, walking)


def _argsort_falling(keys: Tensor) -> Tensor:
    """Order of [n] small non-negative integers, largest first."""
    if keys.device.type != "cpu":
        return torch.argsort(keys, descending=True)
    # numpy sorts bytes by radix, seven times as fast as torch does.
    return torch.from_numpy(np.argsort(np.uint8(255) - keys.numpy().astype(np.uint8), kind="stable"))


@torch.no_grad()
def clip_global_norm(grads: list[Tensor], max_norm: float) -> float:
    """Scale gradients by one factor to a joint L2 norm of at most ``max_norm`` (Pascanu et al. 2013, algorithm 1).

    Args:
        grads: gradients of any shapes, the network's and the table block's together; scaled in place.
        max_norm: above 0.

    Returns:
        The joint norm before scaling. If it is not finite nothing is scaled, so that the caller can skip the step.

    Raises:
        InputError: ``max_norm`` not above 0.

    Example:
        >>> grads = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]
        >>> clip_global_norm(grads, 1.0)
        5.0
        >>> grads[0]
        tensor([0.6000])
    """
    if not max_norm > 0:
        raise InputError("max_norm must be above 0", found=repr(max_norm), remedy="leave clipping out to switch it off")
    norm = math.hypot(*(float(torch.linalg.vector_norm(grad)) for grad in grads))
    if max_norm < norm < math.inf:
        for grad in grads:
            grad.mul_(max_norm / norm)
    return norm


def _check_learning_rate(value: float) -> None:
    if not 0 <= value < math.inf:
        raise InputError("learning_rate must be a finite number, at least 0", found=repr(value), remedy="try 1e-3")


def _check_settings(table: Tensor, weight_decay: float, betas: tuple[float, float], eps: float) -> None:
    if table.ndim != 2 or table.dtype != torch.float32 or table.requires_grad:
        found = f"{table.dtype} of shape {list(table.shape)}, requires_grad={table.requires_grad}"
        raise InputError("table must be a detached float32 [M, w] tensor", found=found, remedy="pass weight.detach()")
    if not (weight_decay == 0 or 1e-12 <= weight_decay < math.inf):  # less would underflow in ``weight_decay * w``
        raise InputError("weight_decay must be 0 or at least 1e-12", found=repr(weight_decay), remedy="try 1e-5")
    if not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
        raise InputError("betas must be two numbers in [0, 1)", found=repr(betas), remedy="try (0.9, 0.999)")
    if not 0 < eps < math.inf:
        raise InputError("eps must be a finite number above 0", found=repr(eps), remedy="try 1e-8")
