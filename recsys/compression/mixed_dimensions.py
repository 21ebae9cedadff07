"""Mixed dimensions: a row keeps more columns the more often training looks it up.

M table rows, w row width. Ginart et al., "Mixed Dimension Embeddings with Application to Memory-Efficient
Recommendation Systems", ISIT 2021, arXiv 1909.11810: dimensions follow popularity by a power law,
d = scale * popularity^temperature (section 3), at least one. Here popularity is the lookups of a row, and rows below
one float are dropped if one float for each exceeds the budget. No matrix projects a short row to full width: the first
layer of the network has a weight per column and does the same.
"""

import torch
from pydantic import Field
from torch import Tensor

from features.errors import InputError
from recsys.compression.base import PruningContext, TrainingStats
from recsys.compression.rows import check_empty, lookup_counts
from recsys.compression.wide import WideConfig, WideTable
from recsys.embedding.mask import Mask
from recsys.embedding.table import EmbeddingConfig
from serving.bundle.quantize import ROTATED_BITS


class MixedDimensions(WideTable):
    """Row widths by a power law of lookups; rows that training never looks up are dropped."""

    class Config(WideConfig):
        """Settings of the table and of the power law."""

        temperature: float = Field(default=0.4, ge=0, le=1)
        """Exponent of the popularity: 0 makes all rows equally wide."""

    def reshape(self, embedding: EmbeddingConfig, stats: TrainingStats) -> EmbeddingConfig:
        """The wide table; raises `InputError` for a dtype whose rows cannot be cut short."""
        if self.budget.dtype in ROTATED_BITS:
            remedy = "use int8, int4, int2 or int1, or a method that prunes whole rows"
            raise InputError("mixed dimensions cut rows short", found=f"{self.budget.dtype} rows", remedy=remedy)
        return super().reshape(embedding, stats)

    def build_mask(self, context: PruningContext) -> Mask:
        """The widest rows that the budget admits; raises `InputError` if not even one row fits."""
        full = Mask.full(context.layout)
        lookups, width = lookup_counts(context), context.layout.width
        check_empty(Mask(torch.zeros_like(full.row_widths), full.slot_widths), context)

        def mask(scale: float) -> Mask:
            return Mask(power_law_widths(lookups, scale, self.config.temperature, width, least), full.slot_widths)

        def fits(scale: float) -> bool:
            return context.num_bytes(mask(scale)) <= context.budget.num_bytes

        least = 1
        if not fits(0.0):  # one float per row is too much: the rarest rows are dropped
            least = 0
        low, high = 0.0, float(width)  # at scale w the rarest row is full
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        found = mask(high if fits(high) else low)
        if found.num_rows_kept == 0:
            remedy = "raise --target-bytes, or take --method importance"
            raise self.budget.too_few("more with one float for each of the rows that are read most, all alike", remedy)
        return found


def power_law_widths(lookups: Tensor, scale: float, temperature: float, width: int, least: int = 1) -> Tensor:
    """Widths [M]: the power of two below scale * lookups^temperature, from `least` to `width`; 0 without a lookup.

    Powers of two, as each distinct width costs a bitmap in the file. `least` is 1, or 0 to drop rows below one float.

    >>> power_law_widths(torch.tensor([0.0, 1.0, 16.0, 400.0]), 1.5, 0.5, 16).tolist()
    [0, 1, 4, 16]
    >>> power_law_widths(torch.tensor([0.0, 1.0, 16.0, 400.0]), 0.1, 0.5, 16, least=0).tolist()
    [0, 0, 0, 2]
    """
    wanted = scale * lookups.double().clamp(min=1) ** temperature
    widths = (2 ** torch.floor(torch.log2(wanted.clamp(1, width)))).long()
    widths = torch.where(wanted >= width, width, torch.where(wanted < 1, least, widths))
    return torch.where(lookups > 0, widths, 0)
