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

    def build_mask(self, context: PruningContext) -> Mask:
        """Everything but rows of zeros; raises `InputError` if that is more than the budget."""
        mask = Mask(stored_widths(context.table), Mask.full(context.layout).slot_widths)
        size = context.num_bytes(mask)
        if size > context.budget.num_bytes:
            remedy = "choose a smaller --table-dtype, or a method that removes rows"
            raise context.budget.too_few(f"{size:,} with every row", remedy)
        return mask


def stored_widths(table: Tensor) -> Tensor:
    """Columns of each row [M] of an unpruned table [M, w] that a file stores: none of a row of zeros.

    >>> import torch
    >>> stored_widths(torch.tensor([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [2, 0]
    """
    return (table != 0).any(dim=1) * table.shape[1]
