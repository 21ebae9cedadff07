"""Low-bit rows and nothing else: every row stays, rounded to the type that it is exported in.

Post-training: nothing is trained again. `serving.table` says how.
"""

from features.errors import InputError
from recsys.compression.base import Compressor, Evidence
from recsys.mask import Mask


class Quantized(Compressor):
    """The run's own table in fewer bits."""

    start = "as_is"

    def freeze(self, evidence: Evidence) -> Mask:
        """Everything; raises `InputError` where that is more than the budget."""
        mask = Mask.full(evidence.layout)
        size = evidence.num_bytes(mask)
        if size > evidence.budget.num_bytes:
            found, remedy = f"{size:,} with every row", "choose a smaller --table-dtype, or a method that removes rows"
            raise InputError(f"{evidence.budget.num_bytes:,} bytes are too few", found=found, remedy=remedy)
        return mask
