"""Importance: each row keeps the prefix that is worth its bytes, by the squared error of dropping the rest.

M table rows, w row width, K rows that training looks up, J widths that a row may have. A removed cell reads as 0. Over
training, that changes the network's inputs by lookups * value^2, summed over the removed cells. The mask minimises this
sum within the budget, as reverse water-filling does for the components of a signal.

Two things are overestimated: values of a mean-pooled list, which are divided by its length before the network sees
them, and, where slots of different widths share a row, columns that only some of them read.
"""

import torch
from pydantic import Field
from torch import Tensor

from recsys.compression.base import PruningContext
from recsys.compression.rows import keep_best_cells, lookup_counts, row_caps
from recsys.compression.wide import WideConfig, WideTable
from recsys.embedding.mask import Mask


class Importance(WideTable):
    """Lookups times squares, cell by cell; no supernet, no search."""

    class Config(WideConfig):
        """The table, and the granularity of row widths."""

        columns_a_step: int = Field(default=4, ge=1)
        """Widths are multiples of this: fewer different widths are cheaper to store."""

    def build_mask(self, context: PruningContext) -> Mask:
        """The mask of the least squared error within the budget."""
        slot_widths = Mask.full(context.layout).slot_widths
        return least_error_mask(context.table, slot_widths, self.config.columns_a_step, context)


def least_error_mask(table: Tensor, slot_widths: Tensor, columns_a_step: int, context: PruningContext) -> Mask:
    """The mask of a table [M, w] with the least squared error within the budget, for given widths of the slots [S]."""
    caps, width = row_caps(context, slot_widths), table.shape[1]
    rows = caps.nonzero().flatten()
    widths = torch.arange(0, width + columns_a_step, columns_a_step).clamp(max=width)
    squares = table[rows].double().square() * (torch.arange(width) < caps[rows, None])
    below = torch.cat([torch.zeros(len(rows), 1, dtype=torch.float64), squares.cumsum(dim=1)], dim=1)  # [K, w + 1]
    gains = below[:, widths] * lookup_counts(context, slot_widths)[rows, None]
    return keep_best_cells(gains, widths, rows, slot_widths, context)
