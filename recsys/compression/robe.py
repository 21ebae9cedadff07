"""ROBE: one circular array of floats, of which a value reads blocks at hashed places.

Desai, Chou and Shrivastava, "Random Offset Block Embedding (ROBE) for compressed embedding tables in deep learning
recommendation systems", MLSys 2022, arXiv 2108.02191. A table of width 1 is the array; blocks may start anywhere and
overlap. The paper's random signs are left out: they are useless to a reader with separate weights for each feature.
"""

from pydantic import Field

from features.errors import InputError
from recsys.compression.base import Compressor, TrainingStats
from recsys.compression.sizing import most_rows
from recsys.embedding.table import EmbeddingConfig


class Robe(Compressor):
    """An array as long as the budget admits; all features and views share it."""

    class Config(Compressor.Config):
        """Floats that a value reads."""

        floats: int = Field(default=16, ge=1, le=64)
        """Floats per value."""
        block: int = Field(default=4, ge=1, le=64)
        """Z: consecutive floats; a value reads ceil(floats / Z) blocks, and perhaps only part of the last one."""

    replaces_table = True

    def reshape(self, embedding: EmbeddingConfig, stats: TrainingStats) -> EmbeddingConfig:
        """As many probes of width 1 as floats; raises `InputError` for a registry with other `probes:`."""
        floats, block = self.config.floats, self.config.block
        other = next((name for name, probes in stats.probes.items() if probes != floats), None)
        if other is not None:
            found, remedy = f"{stats.probes[other]} of {other!r}", "leave `probes:` out of the registry"
            raise InputError(f"every value reads {floats} floats of ROBE's array", found=found, remedy=remedy)
        num_rows = most_rows(self.budget, 1, stats.num_lookups(floats))
        changes = {"kind": "robe", "num_rows": num_rows, "width": 1, "probes": floats, "block": block}
        return embedding.model_copy(update=changes)
