"""Optimisers of the table: three behind one small interface.

M table rows, w row width, U distinct rows of a batch. `adam` is ours and needs no kernel library; `rowwise_adagrad` is
torchrec's fused kernel, which also runs sharded over processes.
"""

from typing import Protocol

import torch
from torch import Tensor

from features.addressing import Vocabulary
from features.errors import InputError
from features.layout import TableLayout
from recsys.checkpoint import load_optimizer_tensors, optimizer_tensors
from recsys.embedding.active_rows import ActiveRows
from recsys.embedding.row_sparse_adam import RowSparseAdam, RowState
from recsys.embedding.table import EmbeddingConfig, UnifiedEmbedding


class TableOptimizer(Protocol):
    """The part of a table optimiser that the trainer uses."""

    @property
    def learning_rate(self) -> float:
        """Rate of the next steps."""
        ...

    @learning_rate.setter
    def learning_rate(self, value: float) -> None: ...

    def gradients(self) -> list[Tensor]:
        """Gradients of the table, which clipping scales in place; none if the update is fused."""
        ...

    def step(self) -> None:
        """Apply the update of the last backward pass."""
        ...

    def flush(self) -> None:
        """Bring every row up to date, before evaluation and export."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything but the table itself that a resumed run needs to continue bit for bit."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        ...


class AdamTable(RowSparseAdam):
    """Row-sparse Adam over the rows that training gathers; the quality of dense Adam at O(batch) per step."""

    _active_rows: RowState | None = None

    def gather(self, rows: Tensor) -> Tensor:
        """Up-to-date values [U, w] of distinct rows: a leaf, whose gradient the next `step` applies."""
        self._active_rows = self.gather_rows(rows)
        return self._active_rows.w.requires_grad_()

    def gradients(self) -> list[Tensor]:
        """The gradient of the gathered rows [U, w]; none if the batch had no token."""
        return _gradients(self._active_rows)

    def step(self) -> None:
        """One step on the gathered rows."""
        if self._active_rows is not None:
            # A batch whose lists are all empty reads no row; dense Adam would take a step all the same.
            w = self._active_rows.w
            self.step_rows(self._active_rows, torch.zeros_like(w) if w.grad is None else w.grad)
        self._active_rows = None

    def flush(self) -> None:
        """Apply the missed steps of all rows."""
        self.catch_up_all()


class DenseAdam:
    """torch's Adam with L2 over the whole table at every step, O(M): the reference for `AdamTable`."""

    def __init__(self, table: Tensor, *, learning_rate: float, weight_decay: float) -> None:
        self.table = table.requires_grad_()
        self.adam = torch.optim.Adam([self.table], lr=learning_rate, weight_decay=weight_decay, fused=True)
        self._active_rows: ActiveRows | None = None

    def gather(self, rows: Tensor) -> Tensor:
        """Values [U, w] of distinct rows: a leaf, whose gradient the next `step` applies."""
        self._active_rows = ActiveRows(rows, self.table.detach().index_select(0, rows).requires_grad_())
        return self._active_rows.w

    @property
    def learning_rate(self) -> float:
        """Rate of the next steps."""
        return self.adam.param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.adam.param_groups[0]["lr"] = value

    def gradients(self) -> list[Tensor]:
        """The gradient of the gathered rows [U, w]: all others are zero."""
        return _gradients(self._active_rows)

    def step(self) -> None:
        """One step on every row."""
        if self._active_rows is not None:
            self.table.grad = torch.zeros_like(self.table)
            for gradient in self.gradients():
                self.table.grad.index_copy_(0, self._active_rows.rows, gradient)
            self.adam.step()
        self._active_rows = None

    def flush(self) -> None:
        """Nothing: every row is always up to date."""

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and the number of steps."""
        return optimizer_tensors(self.adam)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore them."""
        load_optimizer_tensors(self.adam, state)


class FusedRowWiseAdagrad:
    """torchrec's fused row-wise Adagrad, which updates the rows that a batch reads inside backward."""

    def __init__(self, embedding: UnifiedEmbedding) -> None:
        self.optimizer = embedding.collection.fused_optimizer()  # pyright: ignore[reportCallIssue]

    @property
    def learning_rate(self) -> float:
        """Rate of the next steps."""
        return float(self.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value
        self.optimizer.zero_grad()  # passes the rate on to torchrec's kernel

    def gradients(self) -> list[Tensor]:
        """None: gradients never leave the kernel, so that the global norm cannot include them."""
        return []

    def step(self) -> None:
        """Nothing: backward has updated the table."""

    def flush(self) -> None:
        """Nothing: every row is always up to date."""

    def state_dict(self) -> dict[str, Tensor]:
        """The running sums of squares, one per row."""
        return {"momentum": self._momentum()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore them."""
        self._momentum().copy_(state["momentum"])

    def _momentum(self) -> Tensor:
        (state,) = self.optimizer.state_dict()["state"].values()
        (momentum,) = state.values()
        return momentum


class TableOptimizerWrapper:
    """Forwards to a table's optimiser; a subclass also steps something else.

    The rate and the gradients are those of the table: what else a subclass trains has its own rate and is not
    in the global norm.
    """

    def __init__(self, table: TableOptimizer) -> None:
        self.table = table

    @property
    def learning_rate(self) -> float:
        """The table's."""
        return self.table.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.table.learning_rate = value

    def gradients(self) -> list[Tensor]:
        """The table's."""
        return self.table.gradients()

    def step(self) -> None:
        """Apply the table's update."""
        self.table.step()

    def flush(self) -> None:
        """Bring every row up to date."""
        self.table.flush()

    def state_dict(self) -> dict[str, Tensor]:
        """The table's."""
        return self.table.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore it."""
        self.table.load_state_dict(state)


def _gradients(active_rows: ActiveRows | RowState | None) -> list[Tensor]:
    return [] if active_rows is None or active_rows.w.grad is None else [active_rows.w.grad]


def build_table(
    layout: TableLayout, config: EmbeddingConfig, learning_rate: float, vocabulary: Vocabulary | None = None
) -> tuple[UnifiedEmbedding, TableOptimizer]:
    """The embedding of a layout, bound to the optimiser that its config names; `learning_rate` if that sets none.

    Raises `InputError` for a table that does not fit in memory, or a width that the fused kernel does not support.
    """
    rate = config.learning_rate or learning_rate
    try:
        return _build(layout, config, rate, vocabulary)
    except (RuntimeError, MemoryError) as error:
        if "alloc" not in str(error) and "memory" not in str(error):
            raise
        found = f"{layout.num_rows:,} rows of {layout.width}"
        raise InputError(
            "the table must fit in memory", found=found, remedy="lower embedding.num_rows or embedding.width"
        ) from None


def _build(
    layout: TableLayout, config: EmbeddingConfig, rate: float, vocabulary: Vocabulary | None
) -> tuple[UnifiedEmbedding, TableOptimizer]:
    if config.optimizer != "rowwise_adagrad":
        embedding = UnifiedEmbedding(layout, config.init, vocabulary=vocabulary)
        kind = AdamTable if config.optimizer == "adam" else DenseAdam
        optimizer = kind(embedding.table.detach(), learning_rate=rate, weight_decay=config.l2)
        embedding.gather_fn = optimizer.gather
        return embedding, optimizer
    if layout.width % 4:
        remedy = "set embedding.width to a multiple of 4, or embedding.optimizer=adam"
        raise InputError("rowwise_adagrad needs a width divisible by 4", found=str(layout.width), remedy=remedy)
    fused = {"learning_rate": rate, "eps": 1e-8, "weight_decay": config.l2}
    embedding = UnifiedEmbedding(layout, config.init, fused=fused, vocabulary=vocabulary)
    return embedding, FusedRowWiseAdagrad(embedding)
