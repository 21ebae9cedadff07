"""Quantisation alone: every row stays, rounded to the type that it is exported in.

M table rows, w row width. Post-training: the weights are not trained again. `serving.bundle.table` has the codes.
"""

from torch import Tensor

from recsys.compression.base import Compressor, PruningContext
from recsys.embedding.mask import Mask


class Quantized(Compressor):
    """The run's own table in fewer bits."""

    keeps_every_row = True
    start = "as_is"

    def build_mask(self, evidence: PruningContext) -> Mask:
        """Everything but rows of zeros; raises `InputError` if that exceeds the budget."""
        mask = Mask(stored_widths(evidence.table), Mask.full(evidence.layout).slot_widths)
        size = evidence.num_bytes(mask)
        if size > evidence.budget.num_bytes:
            remedy = "choose a smaller --table-dtype, or a method that removes rows"
            raise evidence.budget.too_few(f"{size:,} with every row", remedy)
        return mask


def stored_widths(table: Tensor) -> Tensor:
    """Columns stored per row [M] of a table [M, w] without pruning: all w, or 0 for a row of zeros.

    >>> import torch
    >>> stored_widths(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [2, 0]
    """
    return (table != 0).any(dim=1) * table.shape[1]
