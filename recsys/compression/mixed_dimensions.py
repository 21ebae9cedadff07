"""Mixed dimensions: the more often a row is read, the more of its columns are kept.

M table rows, w row width. Ginart et al., "Mixed Dimension Embeddings with Application to Memory-Efficient
Recommendation Systems", ISIT 2021, arXiv 1909.11810: dimensions follow popularity by a power law,
d = scale * popularity^temperature, with at least one each. Here popularity is that of a row, and if one float for every
row exceeds the budget, rows with d below one are removed. No matrix projects a short row to full width, because the
first layer of the network reads columns and does the same.
"""

import torch
from pydantic import Field
from torch import Tensor

from features.errors import InputError
from recsys.compression.base import PruningContext, TrainingStats
from recsys.compression.rows import check_empty, read_counts
from recsys.compression.wide import WideConfig, WideTable
from recsys.embedding.mask import Mask
from recsys.embedding.table import EmbeddingConfig
from serving.bundle.quantize import ROTATED_BITS


class MixedDimensions(WideTable):
    """Row widths by a power law of reads; rows that training never reads are removed."""

    class Config(WideConfig):
        """Settings of the table and of the power law."""

        temperature: float = Field(default=0.4, ge=0, le=1)
        """Exponent of the popularity: 0 makes all rows equally wide."""

    def reshape(self, embedding: EmbeddingConfig, facts: TrainingStats) -> EmbeddingConfig:
        """The wide table; raises `InputError` for a type of rows that are not cut."""
        if self.budget.dtype in ROTATED_BITS:
            remedy = "use int8, int4, int2 or int1, or a method that prunes whole rows"
            raise InputError("mixed dimensions cut rows short", found=f"{self.budget.dtype} rows", remedy=remedy)
        return super().reshape(embedding, facts)

    def build_mask(self, evidence: PruningContext) -> Mask:
        """The widest rows that the budget admits; raises `InputError` where that is not even one row."""
        full = Mask.full(evidence.layout)
        reads, width = read_counts(evidence), evidence.layout.width
        check_empty(Mask(torch.zeros_like(full.row_widths), full.slot_widths), evidence)

        def mask(scale: float) -> Mask:
            return Mask(power_law_widths(reads, scale, self.config.temperature, width, least), full.slot_widths)

        def fits(scale: float) -> bool:
            return evidence.num_bytes(mask(scale)) <= evidence.budget.num_bytes

        least = 1
        if not fits(0.0):  # one float for everybody is too much: the rarest rows go
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


def power_law_widths(reads: Tensor, scale: float, temperature: float, width: int, least: int = 1) -> Tensor:
    """Widths [M]: the power of two below scale * reads^temperature, from `least` to `width`; 0 for rows without a read.

    Powers of two, as each distinct width costs a bitmap in the file. `least` is 1, or 0: rows below one float go.

    >>> power_law_widths(torch.tensor([0.0, 1.0, 16.0, 400.0]), 1.5, 0.5, 16).tolist()
    [0, 1, 4, 16]
    >>> power_law_widths(torch.tensor([0.0, 1.0, 16.0, 400.0]), 0.1, 0.5, 16, least=0).tolist()
    [0, 0, 0, 2]
    """
    wanted = scale * reads.double().clamp(min=1) ** temperature
    widths = (2 ** torch.floor(torch.log2(wanted.clamp(1, width)))).long()
    widths = torch.where(wanted >= width, width, torch.where(wanted < 1, least, widths))
    return torch.where(reads > 0, widths, 0)
