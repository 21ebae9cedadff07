"""Per-feature hashing: one range per feature and view, its rows in proportion to its values, one lookup per value.

Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009, arXiv 0902.2206; one
table per feature is what production systems had before tables were shared.
"""

from pydantic import Field

from recsys.compression.base import Compressor, TrainingStats
from recsys.compression.sizing import most_rows
from recsys.embedding.table import EmbeddingConfig


class Hashed(Compressor):
    """Each feature and view hashes into its own range."""

    class Config(Compressor.Config):
        """Shape of the table."""

        width: int = Field(default=16, ge=1, le=4096)
        """w: floats per value."""

    replaces_table = True

    def reshape(self, embedding: EmbeddingConfig, stats: TrainingStats) -> EmbeddingConfig:
        """One probe into the range of each feature."""
        width = self.config.width
        num_rows = most_rows(self.budget, width)
        return embedding.model_copy(update={"kind": "hashed", "num_rows": num_rows, "width": width, "probes": 1})
