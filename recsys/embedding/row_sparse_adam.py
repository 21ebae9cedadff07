"""Dense Adam with coupled L2 for an embedding table at the cost of the rows that a batch reads; gradient clipping.

Shapes: ``M`` rows of the table, ``w`` their width, ``U`` distinct rows of a batch.

How the steps that a row missed are applied at once stands in ``recsys.embedding.catch_up``. On a CPU the loops over
rows are
compiled (``recsys.embedding.kernels``, ``recsys.embedding.catch_up_kernel``); for other devices the same is written
in torch.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from features.errors import InputError
from recsys.embedding import catch_up_kernel, kernels
from recsys.embedding.catch_up import Settings, adam_step, catch_up

_CHUNK_ROWS = 1 << 16
"""Rows that ``catch_up_all`` takes at a time, to bound memory."""


class RowState(NamedTuple):
    """Rows on their way through a step: taken out of the table, up to date, to be given to ``step`` with a gradient."""

    rows: Tensor
    """[U] int64."""
    w: Tensor
    """Their weights [U, w], as dense Adam would have them now."""
    m: Tensor
    """Their first moments [U, w]."""
    v: Tensor
    """Their second moments [U, w]."""
    num_steps: int
    """Steps before this one."""


class RowSparseAdam:
    """Adam with L2 on every row at every step (Adam, Kingma & Ba 2015, algorithm 1), paid for only where rows are read.

    Agrees with ``torch.optim.Adam(weight_decay=...)`` on the dense gradient: to rounding while no row misses more than
    ``EXACT_STEPS`` steps at a time; within 1.5 learning rates beyond, on average within 1.5% of the way that a row
    went in the first 100 steps and 0.4% later (``tests/recsys/embedding/test_row_sparse_adam.py``).

    Each step: ``gather_rows(rows)``, compute with ``loan.w``, ``step(loan, grad)``. The table itself is stale until
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
        ...     loan = optimizer.gather_rows(torch.tensor([0]))
        ...     optimizer.step(loan, torch.tensor([[1.0]]))
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
        self._settings = Settings(
            float(learning_rate), float(weight_decay), float(betas[0]), float(betas[1]), float(eps)
        )
        self._is_compiled = _is_on_cpu(table)
        self._memory = catch_up_kernel.memory_of(*betas) if self._is_compiled else None

    @property
    def learning_rate(self) -> float:
        """Step size of the steps to come. A new value runs ``catch_up_all`` first: set it by epoch rather than step."""
        return self._settings.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        _check_learning_rate(value)
        # An equal value must not flush: a resumed run assigns it again and has to stay bit-equal.
        if value != self.learning_rate:
            self.catch_up_all()  # each missed step at its own rate
            self._settings = self._settings._replace(learning_rate=float(value))

    @torch.no_grad()
    def gather_rows(self, rows: Tensor) -> RowState:
        """Copies of rows with the steps that they missed applied; the table stays as it is.

        Args:
            rows: [U] int64, no row twice, increasing where speed matters.
        """
        if self._is_compiled:
            block = torch.empty(3, len(rows), self.table.shape[1])
            kernel = catch_up_kernel.take_out(self.table.shape[1])
            kernels.in_pieces(
                kernel, len(rows), rows.numpy(), *self._arrays(), self.num_steps, *block.numpy(), *self._numbers()
            )
            return RowState(rows, block[0], block[1], block[2], self.num_steps)
        w, m, v = (values.index_select(0, rows) for values in (self.table, self.m, self.v))
        missed = self.num_steps - self.last_step.index_select(0, rows)
        catch_up((w, m, v), missed, self.num_steps, self._settings)
        return RowState(rows, w, m, v, self.num_steps)

    @torch.no_grad()
    def step(self, loan: RowState, grad: Tensor) -> None:
        """Take one global step; the loan's rows move by their gradient and decay, all others when they are read next.

        Args:
            loan: what ``gather_rows`` gave since the last step; used up.
            grad: [U, w] float32, the loss gradient summed over the reads of each row, without decay.

        Raises:
            AssertionError: the loan is from before another step.
        """
        assert loan.num_steps == self.num_steps, (
            f"expected a loan of step {self.num_steps}; found one of step {loan.num_steps}; borrow the rows again"
        )
        self.num_steps += 1
        adam = self._settings
        rate, floor = adam.step_size_at(self.num_steps)
        if self._is_compiled:
            numbers = (adam.weight_decay, 1 - adam.beta1, 1 - adam.beta2, rate, floor)
            arrays = [values.detach().numpy() for values in (grad.contiguous(), loan.w, loan.m, loan.v)]
            kernel = kernels.adam_step(self.table.shape[1])
            kernels.in_pieces(kernel, len(loan.rows), *arrays, *map(np.float32, numbers))
        else:
            grad = torch.add(grad, loan.w, alpha=adam.weight_decay)
            adam_step(loan.w, loan.m, loan.v, grad, rate, floor, adam)
        self._scatter_rows(loan)

    @torch.no_grad()
    def catch_up_all(self) -> None:
        """Bring every row up to date: before an evaluation, an export, or a table that others read."""
        for start in range(0, len(self.table), _CHUNK_ROWS):
            rows = torch.arange(start, min(start + _CHUNK_ROWS, len(self.table)), device=self.table.device)
            self._scatter_rows(self.gather_rows(rows))

    def _scatter_rows(self, loan: RowState) -> None:
        if self._is_compiled:
            block = [values.detach().numpy() for values in (loan.w, loan.m, loan.v)]
            kernel = kernels.put_back(self.table.shape[1])
            now = np.int32(self.num_steps)
            kernels.in_pieces(kernel, len(loan.rows), loan.rows.numpy(), now, *block, *self._arrays())
            return
        self.table.index_copy_(0, loan.rows, torch.hardshrink(loan.w, float(kernels.TINY_WEIGHT)))
        self.m.index_copy_(0, loan.rows, torch.hardshrink(loan.m, float(kernels.TINY_MOMENT)))
        self.v.index_copy_(0, loan.rows, loan.v)
        self.last_step.index_fill_(0, loan.rows, self.num_steps)

    def _arrays(self) -> list[Any]:
        return [tensor.numpy() for tensor in (self.table, self.m, self.v, self.last_step)]

    def _numbers(self) -> tuple[Any, ...]:
        adam, number = self._settings, np.float32
        betas = (number(adam.beta1), number(1 - adam.beta1), number(1 - adam.beta2))
        return self._memory, number(adam.learning_rate), number(adam.weight_decay), betas, number(adam.eps)

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
            "learning_rate": torch.tensor(self.learning_rate, dtype=torch.float64),
            "settings": torch.tensor(self._settings[1:], dtype=torch.float64),
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
        self._settings = self._settings._replace(learning_rate=float(state["learning_rate"]))


def _is_on_cpu(table: Tensor) -> bool:
    return table.device.type == "cpu"


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
