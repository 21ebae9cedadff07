"""A table with many more rows than values, which pruning turns into a perfect hash of the kept values.

M table rows, w row width. If each value reads its own row, a row can be removed without changing another value.
A row without a lookup in training shrinks to zero under L2, and a row of zeros takes less than a bit on disk. So extra
rows cost memory only in training, and they avoid collisions without being stored.
"""

from pydantic import Field

from features.hashing import MAX_NUM_ROWS
from recsys.compression.base import Compressor, TrainingStats
from recsys.embedding.table import EmbeddingConfig


class WideConfig(Compressor.Config):
    """The setting that all methods that prune rows share."""

    rows_a_value: float | None = Field(default=32.0, gt=0)
    """Table rows per value (of each view) seen in train. Each row is as wide as all the columns that a value read
    before, and a value reads one row, or the number of `probes:` in the registry; None: the run's own table."""


def wide_table(embedding: EmbeddingConfig, stats: TrainingStats, rows_a_value: float | None) -> EmbeddingConfig:
    """A unified table of single wide rows, `rows_a_value` for each value; the same table if that is None."""
    if rows_a_value is None:
        return embedding
    num_rows = min(MAX_NUM_ROWS, max(1, round(rows_a_value * stats.num_entries)))
    width = embedding.width * embedding.probes
    return embedding.model_copy(update={"kind": "unified", "num_rows": num_rows, "width": width, "probes": 1})


class WideTable(Compressor):
    """Base of most methods that prune rows, on such a table."""

    Config: type[Compressor.Config] = WideConfig

    def reshape(self, embedding: EmbeddingConfig, stats: TrainingStats) -> EmbeddingConfig:
        """One wide row per value among so many rows that values rarely share one."""
        return wide_table(embedding, stats, self.config.rows_a_value)
