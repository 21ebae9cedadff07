"""Selection of the most valuable rows and columns within a byte budget, which most methods share.

M table rows, w row width, K rows that training reads, J widths that a row may have.
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
"""Approximate bytes on disk that the position of a kept row costs, in addition to its columns."""
_BISECTIONS = 50


def read_counts(evidence: PruningContext, slot_widths: Tensor | None = None) -> Tensor:
    """Reads of each row [M] in training, float64, by the slots [S] that use at least one column."""
    counts = torch.zeros(evidence.layout.num_rows, dtype=torch.float64)
    for position, slot in enumerate(evidence.reads):
        if slot_widths is None or slot_widths[position] > 0:
            counts.index_add_(0, slot.rows, slot.counts.double())
    return counts


def row_caps(evidence: PruningContext, slot_widths: Tensor) -> Tensor:
    """Most columns of each row [M] that a slot which reads it in training uses; 0 for rows that are not read."""
    caps = torch.zeros(evidence.layout.num_rows, dtype=torch.int64)
    for slot, width in zip(evidence.reads, slot_widths.tolist(), strict=True):
        caps[slot.rows] = caps[slot.rows].clamp(min=width)
    return caps


def keep_best_rows(scores: Tensor, evidence: PruningContext) -> Mask:
    """The mask that keeps the rows with the highest scores [M], as many as the budget admits.

    Rows that training never reads, and those with a score of 0 or less, are always removed, as that loses nothing.
    Raises `InputError` if not even an empty table fits.
    """
    slot_widths = Mask.full(evidence.layout).slot_widths
    widths = row_caps(evidence, slot_widths)
    scores = torch.where(widths > 0, scores, 0.0)
    order = torch.argsort(scores, descending=True, stable=True)
    num_useful = int((scores > 0).sum())

    def keeping(num_rows: int) -> Mask:
        kept = torch.zeros_like(widths)
        kept[order[:num_rows]] = widths[order[:num_rows]]
        return Mask(kept, slot_widths)

    fits, fails = 0, num_useful + 1
    check_empty(keeping(0), evidence)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        is_fit = evidence.num_bytes(keeping(middle)) <= evidence.budget.num_bytes
        fits, fails = (middle, fails) if is_fit else (fits, middle)
    return keeping(fits)


def keep_best_cells(gains: Tensor, widths: Tensor, rows: Tensor, slot_widths: Tensor, evidence: PruningContext) -> Mask:
    """A width a row, so that the gains add up to the most that the budget admits.

    `gains` [K, J] is what row `rows[k]` is worth at each of `widths` [J], which increase from 0. Each row takes the
    width of the largest gain - price * bytes; the price is then the lowest one at which the file fits. Rotated rows
    are stored whole or not at all, so that the first width and the last one are all that they may have.
    """
    dtype = evidence.budget.dtype
    if dtype in ROTATED_BITS:
        gains, widths = gains[:, [0, -1]], widths[[0, -1]]
    bits = CODE_BITS.get(dtype) or 8 * NUMPY_DTYPES[STORED_DTYPES[dtype]].itemsize
    costs = widths * bits / 8 + _ROW_BYTES * (widths > 0)

    def at(price: float) -> Mask:
        row_widths = torch.zeros(evidence.layout.num_rows, dtype=torch.int64)
        row_widths[rows] = widths[(gains - price * costs).argmax(dim=1)]
        return Mask(row_widths, slot_widths)

    if evidence.num_bytes(at(0.0)) <= evidence.budget.num_bytes:
        return at(0.0)
    check_empty(Mask(torch.zeros(evidence.layout.num_rows, dtype=torch.int64), slot_widths), evidence)
    return at(_lowest_price(gains, lambda price: evidence.num_bytes(at(price)) <= evidence.budget.num_bytes))


def _lowest_price(gains: Tensor, fits: Callable[[float], bool]) -> float:
    """The lowest price that fits, about; where a byte costs more than any row is worth, nothing is kept."""
    high = float(gains.max()) * 8 + 1.0
    low = high * 1e-15
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def check_empty(mask: Mask, evidence: PruningContext) -> None:
    """Raise `InputError` where a mask without a single row exceeds the budget."""
    if evidence.num_bytes(mask) > evidence.budget.num_bytes:
        found = f"{evidence.num_bytes(mask):,} bytes without a single row"
        raise evidence.budget.too_few(found, "raise --target-bytes, or take --method smaller")
