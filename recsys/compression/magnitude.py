"""Magnitude pruning of whole rows: the baseline of pruning methods.

M table rows, w row width. Yin et al., "A Thorough Performance Benchmarking on Lightweight Embedding-based Recommender
Systems", TOIS 2024, arXiv 2406.17335: prune by magnitude once, then train again under the mask.
"""

import torch

from recsys.compression.base import PruningContext
from recsys.compression.rows import keep_best_rows
from recsys.compression.wide import WideTable
from recsys.embedding.mask import Mask


class Magnitude(WideTable):
    """Keeps the rows of the largest L1 norm."""

    def build_mask(self, context: PruningContext) -> Mask:
        """The largest rows that the budget admits."""
        norms = torch.linalg.vector_norm(context.table, ord=1, dim=1)
        return keep_best_rows(norms, context)
