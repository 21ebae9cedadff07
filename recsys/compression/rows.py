"""Selection of rows and columns by score within a byte budget, shared by most methods.

M table rows, w row width, K rows that training looks up, J widths that a row may have.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from recsys.compression.base import PruningContext
from recsys.embedding.mask import Mask
from serving.bundle.quantize import ROTATED_BITS
from serving.bundle.table_plan import CODE_BITS, STORED_DTYPES
from serving.bundle.tensors import NUMPY_DTYPES

_ROW_BYTES = 1.0
"""Approximate bytes that the position of a kept row takes, in addition to its columns."""
_BISECTIONS = 50


def lookup_counts(context: PruningContext, slot_widths: Tensor | None = None) -> Tensor:
    """Lookups of each row [M] in training, float64; only of slots [S] that keep a column."""
    counts = torch.zeros(context.layout.num_rows, dtype=torch.float64)
    for position, slot in enumerate(context.lookups):
        if slot_widths is None or slot_widths[position] > 0:
            counts.index_add_(0, slot.rows, slot.counts.double())
    return counts


def row_caps(context: PruningContext, slot_widths: Tensor) -> Tensor:
    """Most columns [M] that a slot keeps of each row it looks up in training; 0 for rows without a lookup."""
    caps = torch.zeros(context.layout.num_rows, dtype=torch.int64)
    for slot, width in zip(context.lookups, slot_widths.tolist(), strict=True):
        caps[slot.rows] = caps[slot.rows].clamp(min=width)
    return caps


def keep_best_rows(scores: Tensor, context: PruningContext) -> Mask:
    """As many rows of the highest scores [M] as the budget admits.

    Rows without a lookup in training and rows of score 0 or less are always dropped. Raises `InputError` if not even
    an empty table fits.
    """
    slot_widths = Mask.full(context.layout).slot_widths
    widths = row_caps(context, slot_widths)
    scores = torch.where(widths > 0, scores, 0.0)
    order = torch.argsort(scores, descending=True, stable=True)
    num_useful = int((scores > 0).sum())

    def keeping(num_rows: int) -> Mask:
        kept = torch.zeros_like(widths)
        kept[order[:num_rows]] = widths[order[:num_rows]]
        return Mask(kept, slot_widths)

    fits, fails = 0, num_useful + 1
    check_empty(keeping(0), context)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        is_fit = context.num_bytes(keeping(middle)) <= context.budget.num_bytes
        fits, fails = (middle, fails) if is_fit else (fits, middle)
    return keeping(fits)


def keep_best_cells(gains: Tensor, widths: Tensor, rows: Tensor, slot_widths: Tensor, context: PruningContext) -> Mask:
    """One width per row, maximising the sum of gains within the budget (Lagrangian relaxation).

    `gains` [K, J] is the worth of row `rows[k]` at each of `widths` [J], which increase from 0. Each row takes the
    width of the largest gain - price * bytes, at the lowest price for which the file fits. Rotated rows
    are stored whole or
    not at all: they have only the first and last width.
    """
    dtype = context.budget.dtype
    if dtype in ROTATED_BITS:
        gains, widths = gains[:, [0, -1]], widths[[0, -1]]
    bits = CODE_BITS.get(dtype) or 8 * NUMPY_DTYPES[STORED_DTYPES[dtype]].itemsize
    costs = widths * bits / 8 + _ROW_BYTES * (widths > 0)

    def at(price: float) -> Mask:
        row_widths = torch.zeros(context.layout.num_rows, dtype=torch.int64)
        row_widths[rows] = widths[(gains - price * costs).argmax(dim=1)]
        return Mask(row_widths, slot_widths)

    if context.num_bytes(at(0.0)) <= context.budget.num_bytes:
        return at(0.0)
    check_empty(Mask(torch.zeros(context.layout.num_rows, dtype=torch.int64), slot_widths), context)
    return at(_lowest_price(gains, lambda price: context.num_bytes(at(price)) <= context.budget.num_bytes))


def _lowest_price(gains: Tensor, fits: Callable[[float], bool]) -> float:
    """About the lowest price that fits; at the upper bound a byte costs more than any row is worth."""
    high = float(gains.max()) * 8 + 1.0
    low = high * 1e-15
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def check_empty(mask: Mask, context: PruningContext) -> None:
    """Raise `InputError` where a mask without a single row exceeds the budget."""
    if context.num_bytes(mask) > context.budget.num_bytes:
        found = f"{context.num_bytes(mask):,} bytes without a single row"
        raise context.budget.too_few(found, "raise --target-bytes, or take --method smaller")
