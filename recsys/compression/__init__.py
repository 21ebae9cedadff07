"""COMPRESSORS, the methods that make an embedding table smaller."""

from recsys.compression.base import (
    Budget,
    Compressor,
    InitFrom,
    PruningContext,
    SlotLookups,
    TrainingStats,
    ValueCounts,
)
from recsys.compression.frequency import Frequency
from recsys.compression.hashed import Hashed
from recsys.compression.importance import Importance
from recsys.compression.magnitude import Magnitude
from recsys.compression.mixed_dimensions import MixedDimensions
from recsys.compression.opt_fs import OptFS
from recsys.compression.optembed import OptEmbed
from recsys.compression.quantized import Quantized
from recsys.compression.quotient_remainder import QuotientRemainder
from recsys.compression.robe import Robe
from recsys.compression.smaller import Smaller

COMPRESSORS: dict[str, type[Compressor]] = {
    "importance": Importance,
    "magnitude": Magnitude,
    "optembed": OptEmbed,
    "frequency": Frequency,
    "hashed": Hashed,
    "mixed_dimensions": MixedDimensions,
    "opt_fs": OptFS,
    "quantized": Quantized,
    "quotient_remainder": QuotientRemainder,
    "robe": Robe,
    "smaller": Smaller,
}
"""Name to method; a new one is a file and a line here."""

__all__ = [
    "COMPRESSORS",
    "Budget",
    "Compressor",
    "InitFrom",
    "PruningContext",
    "SlotLookups",
    "TrainingStats",
    "ValueCounts",
]
