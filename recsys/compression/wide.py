"""A table with many more rows than values: once pruned and served, a perfect hash of what is left.

M table rows, w row width. Where a value reads one row of its own, a row can be removed without touching another value.
A row that nobody reads in training shrinks to zero under L2, and a row of zeros takes less than a bit on the disk. So
the number of rows costs memory in training alone, and collisions are paid for with rows that are not stored.
"""

from pydantic import Field

from features.hashing import MAX_NUM_ROWS
from recsys.compression.base import Compressor, TrainingStats
from recsys.embedding.table import EmbeddingConfig


class WideConfig(Compressor.Config):
    """The setting that methods share which prune rows."""

    rows_a_value: float | None = Field(default=32.0, gt=0)
    """Table rows for each value (of each view) seen in train, each row as wide as all that a value read before, of
    which it reads one, or as many as the registry's `probes:` of its feature say; None: the run's own table."""


def wide_table(embedding: EmbeddingConfig, stats: TrainingStats, rows_a_value: float | None) -> EmbeddingConfig:
    """A unified table of single wide rows, `rows_a_value` for each value; the same table where that is None."""
    if rows_a_value is None:
        return embedding
    num_rows = min(MAX_NUM_ROWS, max(1, round(rows_a_value * stats.num_entries)))
    width = embedding.width * embedding.probes
    return embedding.model_copy(update={"kind": "unified", "num_rows": num_rows, "width": width, "probes": 1})


class WideTable(Compressor):
    """A method on such a table: a base of most of those that prune rows."""

    Config: type[Compressor.Config] = WideConfig

    def reshape(self, embedding: EmbeddingConfig, stats: TrainingStats) -> EmbeddingConfig:
        """One wide row a value among so many rows that hardly two values share one."""
        return wide_table(embedding, stats, self.config.rows_a_value)
