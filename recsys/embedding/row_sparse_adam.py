"""Dense Adam with coupled L2 for an embedding table, at the cost of the rows that a batch reads.

M table rows, w row width, U distinct rows of a batch. `recsys.embedding.catch_up` explains how a row makes up for the
steps that it missed. On a CPU the loops over rows are compiled (`recsys.embedding.kernels`, `catch_up_kernel`); on
other devices they are torch operations.
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
"""Rows that `catch_up_all` gathers at a time, to bound memory."""


class RowState(NamedTuple):
    """Weights and moments of some rows, copied from the table and up to date; `step_rows` writes them back."""

    rows: Tensor
    """[U] int64."""
    w: Tensor
    """Weights [U, w], as dense Adam would have them now."""
    m: Tensor
    """First moments [U, w]."""
    v: Tensor
    """Second moments [U, w]."""
    num_steps: int
    """Steps taken before."""


class RowSparseAdam:
    """Adam with L2 on every row at every step (Kingma & Ba 2015, algorithm 1), computed only for rows that are read.

    Agrees with `torch.optim.Adam(weight_decay=...)` on the dense gradient: up to rounding if no row misses more than
    `EXACT_STEPS` steps at a time. With longer gaps it is within 1.5 learning rates, on average within 1.5% of the
    distance that a row moved in the first 100 steps and 0.4% later (`tests/recsys/embedding/test_row_sparse_adam.py`).
    Longer gaps need a second beta near 0.999: strides outgrow a shorter memory.

    Each step: `state = gather_rows(rows)`, compute with `state.w`, `step_rows(state, grad)`. Other rows of the table
    lag until `catch_up_all()`, so call it before evaluation and export. `rows` must not repeat a row; that is not
    checked, because the check would cost as much as the step.

    Args:
        table: [M, w] float32 on any device, detached, updated in place.
        learning_rate: step size, at least 0.
        weight_decay: L2 coefficient: `weight_decay * w` is added to the gradient; 0 or at least 1e-12.
        betas: decay of the first and the second moment per step, each in [0, 1).
        eps: added to the root of the second moment, above 0.

    Raises `InputError` for another kind of table, or a setting outside its range.

    >>> table = torch.tensor([[1.0], [0.5]])
    >>> optimizer = RowSparseAdam(table, learning_rate=0.1, weight_decay=0.01)
    >>> for _ in range(2):
    ...     state = optimizer.gather_rows(torch.tensor([0]))
    ...     optimizer.step_rows(state, torch.tensor([[1.0]]))
    >>> [round(value, 2) for value in table.flatten().tolist()]  # row 1 lags
    [0.8, 0.5]
    >>> optimizer.catch_up_all()
    >>> [round(value, 2) for value in table.flatten().tolist()]  # decay has moved it by 0.1 per step
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
        self._corrections = catch_up_kernel.bias_corrections(*betas) if self._is_compiled else None

    @property
    def learning_rate(self) -> float:
        """Rate of the next steps. A new value runs `catch_up_all` first, so set it once per epoch, not per step."""
        return self._settings.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        _check_learning_rate(value)
        # An equal value must not catch up: a resumed run sets it again, and must stay bit-equal.
        if value != self.learning_rate:
            self.catch_up_all()  # each missed step at its own rate
            self._settings = self._settings._replace(learning_rate=float(value))

    @torch.no_grad()
    def gather_rows(self, rows: Tensor) -> RowState:
        """Copies of rows [U] int64 with the steps that they missed applied; the table is not changed.

        `rows` must not repeat a row; sorted rows are fastest.
        """
        if self._is_compiled:
            block = torch.empty(3, len(rows), self.table.shape[1])
            kernel = catch_up_kernel.gather_rows(self.table.shape[1])
            kernels.in_pieces(
                kernel, len(rows), rows.numpy(), *self._arrays(), self.num_steps, *block.numpy(), *self._numbers()
            )
            return RowState(rows, block[0], block[1], block[2], self.num_steps)
        w, m, v = (values.index_select(0, rows) for values in (self.table, self.m, self.v))
        missed = self.num_steps - self.last_step.index_select(0, rows)
        catch_up((w, m, v), missed, self.num_steps, self._settings)
        return RowState(rows, w, m, v, self.num_steps)

    @torch.no_grad()
    def step_rows(self, state: RowState, grad: Tensor) -> None:
        """Take one global step; the rows of `state` move by gradient and decay now, all others when they catch up.

        Args:
            state: what `gather_rows` returned since the last step; updated in place.
            grad: [U, w] float32, the loss gradient summed over the lookups of each row, without decay.
        """
        assert state.num_steps == self.num_steps, (
            f"expected rows of step {self.num_steps}; found rows of step {state.num_steps}; gather them again"
        )
        self.num_steps += 1
        adam = self._settings
        rate, floor = adam.step_size_at(self.num_steps)
        if self._is_compiled:
            numbers = (adam.weight_decay, 1 - adam.beta1, 1 - adam.beta2, rate, floor)
            arrays = [values.detach().numpy() for values in (grad.contiguous(), state.w, state.m, state.v)]
            kernel = kernels.adam_step(self.table.shape[1])
            kernels.in_pieces(kernel, len(state.rows), *arrays, *map(np.float32, numbers))
        else:
            grad = torch.add(grad, state.w, alpha=adam.weight_decay)
            adam_step(state.w, state.m, state.v, grad, rate, floor, adam)
        self._scatter_rows(state)

    @torch.no_grad()
    def catch_up_all(self) -> None:
        """Apply the missed steps of every row. Call it before any other use of the table."""
        for start in range(0, len(self.table), _CHUNK_ROWS):
            rows = torch.arange(start, min(start + _CHUNK_ROWS, len(self.table)), device=self.table.device)
            self._scatter_rows(self.gather_rows(rows))

    def _scatter_rows(self, state: RowState) -> None:
        if self._is_compiled:
            block = [values.detach().numpy() for values in (state.w, state.m, state.v)]
            kernel = kernels.scatter_rows(self.table.shape[1])
            now = np.int32(self.num_steps)
            kernels.in_pieces(kernel, len(state.rows), state.rows.numpy(), now, *block, *self._arrays())
            return
        self.table.index_copy_(0, state.rows, torch.hardshrink(state.w, float(kernels.TINY_WEIGHT)))
        self.m.index_copy_(0, state.rows, torch.hardshrink(state.m, float(kernels.TINY_MOMENT)))
        self.v.index_copy_(0, state.rows, state.v)
        self.last_step.index_fill_(0, state.rows, self.num_steps)

    def _arrays(self) -> list[Any]:
        return [tensor.numpy() for tensor in (self.table, self.m, self.v, self.last_step)]

    def _numbers(self) -> tuple[Any, ...]:
        adam, number = self._settings, np.float32
        betas = (number(adam.beta1), number(1 - adam.beta1), number(1 - adam.beta2))
        return self._corrections, number(adam.learning_rate), number(adam.weight_decay), betas, number(adam.eps)

    def state_dict(self) -> dict[str, Tensor]:
        """The state without the table: not copied, and missed steps are not applied.

        `m` and `v` [M, w] float32, `last_step` [M] int32, `num_steps` int64, `learning_rate` float64, and `settings`
        [4] float64: weight decay, both betas, eps.
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
        """Continue bit for bit from a `state_dict`, if the table also has the values that it had then.

        Raises `InputError` for other entries, shapes or settings: rows that lag must catch up under the saved settings.
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
