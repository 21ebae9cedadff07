"""Importance: each row stores the prefix that is worth its bytes, measured by the squared error of leaving it out.

M table rows, w row width, K rows that training reads, J widths that a row may have. A removed cell reads as 0. Over
training, that changes the network's inputs by reads * value^2, summed over the removed cells. The mask minimises this
sum within the budget, as reverse water-filling does for the components of a signal.

The sum overestimates two things: a value of a mean-pooled list, which is divided by the length of the list before the
network sees it; and, where slots of different widths share a row, columns that only some of the slots use.
"""

import torch
from pydantic import Field
from torch import Tensor

from recsys.compression.base import PruningContext
from recsys.compression.rows import keep_best_cells, read_counts, row_caps
from recsys.compression.wide import WideConfig, WideTable
from recsys.embedding.mask import Mask


class Importance(WideTable):
    """Keeps cells by reads times squared value; no supernet, no search."""

    class Config(WideConfig):
        """Settings of the table and of the row widths."""

        columns_a_step: int = Field(default=4, ge=1)
        """Widths are multiples of this: fewer different widths are cheaper to store."""

    def build_mask(self, evidence: PruningContext) -> Mask:
        """The mask of the least squared error within the budget."""
        slot_widths = Mask.full(evidence.layout).slot_widths
        return least_error_mask(evidence.table, slot_widths, self.config.columns_a_step, evidence)


def least_error_mask(table: Tensor, slot_widths: Tensor, columns_a_step: int, evidence: PruningContext) -> Mask:
    """The least-error mask of a table [M, w] within the budget, given the columns that each slot [S] uses."""
    caps, width = row_caps(evidence, slot_widths), table.shape[1]
    rows = caps.nonzero().flatten()
    widths = torch.arange(0, width + columns_a_step, columns_a_step).clamp(max=width)
    squares = table[rows].double().square() * (torch.arange(width) < caps[rows, None])
    below = torch.cat([torch.zeros(len(rows), 1, dtype=torch.float64), squares.cumsum(dim=1)], dim=1)  # [K, w + 1]
    gains = below[:, widths] * read_counts(evidence, slot_widths)[rows, None]
    return keep_best_cells(gains, widths, rows, slot_widths, evidence)
