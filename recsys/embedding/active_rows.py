"""Gathers the table rows that a training batch reads, each distinct row once.

n lookups of a batch, U distinct rows among them, M table rows, w row width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.embedding import kernels

GatherFn = Callable[[Tensor], Tensor]
"""Distinct rows [U], increasing, to their values [U, w]: a leaf, whose `grad` holds their gradient after backward."""


class ActiveRows(NamedTuple):
    """Rows that a training step updates, and the leaf that collects their gradient."""

    rows: Tensor
    """Distinct rows [U], int64, increasing."""
    w: Tensor
    """Their values [U, w]."""


def gather(rows: Tensor, num_rows: int, gather_fn: GatherFn) -> Tensor:
    """Values [n, w] of rows [n], all in [0, num_rows); the gradients of one row add up in the leaf of `gather_fn`.

    >>> leaf = torch.tensor([[0.0], [2.0]], requires_grad=True)  # rows 0 and 2 of some table
    >>> values = gather(torch.tensor([2, 0, 2]), 3, lambda rows: leaf)
    >>> values.flatten().tolist()
    [2.0, 0.0, 2.0]
    >>> (values * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    >>> leaf.grad.tolist()
    [[10.0], [101.0]]
    """
    if rows.device.type != "cpu":
        distinct, inverse = torch.unique(rows, return_inverse=True)
        return F.embedding(inverse, gather_fn(distinct))
    found = kernels.sort_rows(rows.numpy(), num_rows)
    return _Gather.apply(gather_fn(torch.from_numpy(found.rows)), found)


class _Gather(torch.autograd.Function):
    """Rows of a leaf [U, w] for each lookup: [n, w]. torch's own backward takes ten times as long."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, found: kernels.SortedRows) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.found = found
        return leaf.index_select(0, torch.from_numpy(found.inverse))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found: kernels.SortedRows = ctx.found
        total = torch.empty(len(found.rows), grad.shape[1])
        kernel = kernels.sum_gradients(grad.shape[1])
        arrays = grad.contiguous().numpy(), found.order, found.starts, total.numpy()
        kernels.in_pieces(kernel, len(total), *arrays)
        return total, None
