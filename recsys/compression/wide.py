"""A table with many more rows than values: once pruned and served, a perfect hash of the values that are left.

M table rows, w row width. If each value reads its own row, a row can be removed without changing another value. A row
that is not read in training shrinks to zero under L2, and a row of zeros takes less than a bit on the disk. So more
rows cost memory only in training, and they avoid collisions without being stored.
"""

from pydantic import Field

from features.hashing import MAX_NUM_ROWS
from recsys.compression.base import Compressor, TrainingStats
from recsys.embedding.table import EmbeddingConfig


class WideConfig(Compressor.Config):
    """The setting that the methods for pruning rows share."""

    rows_a_value: float | None = Field(default=32.0, gt=0)
    """Table rows per value (of each view) seen in train; None: the run's own table. A row is as wide as all that a
    value of the run's table reads, and a value reads one, or as many as the registry's `probes:` for its feature."""


def wide_table(embedding: EmbeddingConfig, facts: TrainingStats, rows_a_value: float | None) -> EmbeddingConfig:
    """A unified table with `rows_a_value` wide rows per value, one probe; the same table if that is None."""
    if rows_a_value is None:
        return embedding
    num_rows = min(MAX_NUM_ROWS, max(1, round(rows_a_value * facts.num_entries)))
    width = embedding.width * embedding.probes
    return embedding.model_copy(update={"kind": "unified", "num_rows": num_rows, "width": width, "probes": 1})


class WideTable(Compressor):
    """Base of the methods that prune rows of such a table."""

    Config: type[Compressor.Config] = WideConfig

    def reshape(self, embedding: EmbeddingConfig, facts: TrainingStats) -> EmbeddingConfig:
        """A table of one wide row per value, with so many rows that hardly any two values share one."""
        return wide_table(embedding, facts, self.config.rows_a_value)
