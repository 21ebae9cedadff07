"""A smaller table without pruning: the baseline of all pruning methods at equal bytes.

Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems", NeurIPS 2023,
arXiv 2305.12102: the multiplexed table degrades gracefully as it shrinks.
"""

from features.table_kinds import TABLE_KINDS
from recsys.compression.base import Compressor, TrainingStats
from recsys.compression.sizing import most_rows
from recsys.embedding.table import EmbeddingConfig


class Smaller(Compressor):
    """The run's table with as many rows as the budget admits; multiplexed, where it was collisionless or hashed."""

    replaces_table = True

    def reshape(self, embedding: EmbeddingConfig, stats: TrainingStats) -> EmbeddingConfig:
        """Another number of rows."""
        num_rows = most_rows(self.budget, embedding.width, stats.num_lookups(embedding.probes))
        kind = "unified" if TABLE_KINDS[embedding.kind].has_own_ranges else embedding.kind
        return embedding.model_copy(update={"kind": kind, "num_rows": num_rows})
