"""Quotient and remainder: two complementary rows per value; two values share both only if their hashes agree.

Shi et al., "Compositional Embeddings Using Complementary Partitions for Memory-Efficient Recommendation Systems",
KDD 2020, arXiv 1909.02107. The two rows are concatenated, one of the paper's three operations: the network reads
columns, and a product would be a second way to pool that every bundle had to support. The ids are hashes instead of
positions in a vocabulary, which would cost 8 bytes per value, more than most budgets leave.
"""

from pydantic import Field

from recsys.compression.base import Compressor, TrainingStats
from recsys.compression.sizing import most_rows
from recsys.embedding.table import EmbeddingConfig


class QuotientRemainder(Compressor):
    """Two ranges per feature and view, of s rows each, which distinguish s * s hashes."""

    class Config(Compressor.Config):
        """Shape of the table."""

        width: int = Field(default=8, ge=1, le=4096)
        """w: floats of either row."""

    replaces_table = True

    def reshape(self, embedding: EmbeddingConfig, stats: TrainingStats) -> EmbeddingConfig:
        """Two probes, of the quotient and of the remainder."""
        width = self.config.width
        num_rows = most_rows(self.budget, width)
        changes = {"kind": "quotient_remainder", "num_rows": num_rows, "width": width, "probes": 2}
        return embedding.model_copy(update=changes)
