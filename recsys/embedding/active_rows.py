"""The rows that a training batch reads: each distinct one once, as a small leaf that collects its gradient.

n reads of a batch, U distinct rows among them, M table rows, w row width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.embedding import kernels

GatherFn = Callable[[Tensor], Tensor]
"""Distinct rows [U], increasing, to their values [U, w]."""


class ActiveRows(NamedTuple):
    """Rows that the last training forward read, and the leaf that collects their gradient."""

    rows: Tensor
    """Distinct rows [U], int64, increasing."""
    block: Tensor
    """Their values [U, w]; `block.grad` is there after backward."""


def gather(rows: Tensor, num_rows: int, fetch: GatherFn) -> tuple[ActiveRows, Tensor]:
    """The distinct ones of rows [n], and the values [n, w] of all, whose gradient adds up in `ActiveRows.block`.

    >>> table = torch.tensor([[0.0], [1.0], [2.0]])
    >>> active_rows, values = gather(torch.tensor([2, 0, 2]), 3, lambda rows: table[rows])
    >>> (values * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
    >>> active_rows.rows.tolist(), active_rows.block.grad.tolist()
    ([0, 2], [[10.0], [101.0]])
    """
    if rows.device.type != "cpu":
        distinct, places = torch.unique(rows, return_inverse=True)
        block = fetch(distinct).requires_grad_()
        return ActiveRows(distinct, block), F.embedding(places, block)
    reads = kernels.sort_reads(rows.numpy(), num_rows)
    distinct = torch.from_numpy(reads.rows)
    block = fetch(distinct).requires_grad_()
    return ActiveRows(distinct, block), _Gather.apply(block, reads)


class _Gather(torch.autograd.Function):
    """Rows of a block [U, w] at the places of the reads: [n, w]. torch's own backward takes ten times as long."""

    @staticmethod
    def forward(ctx: Any, block: Tensor, reads: kernels.SortedReads) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.reads = reads
        return block.index_select(0, torch.from_numpy(reads.places))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        reads: kernels.SortedReads = ctx.reads
        total = torch.empty(len(reads.rows), grad.shape[1])
        kernel = kernels.sum_reads(grad.shape[1])
        arrays = grad.contiguous().numpy(), reads.order, reads.starts, total.numpy()
        kernels.in_pieces(kernel, len(total), *arrays)
        return total, None
