"""Frequency cut-off: drops the rows that training looked up least.

M table rows. On a table of one probe that is far larger than the vocabulary, a row belongs to a value, and this is the
usual cut-off (`min_categr_count` of BARS), without a vocabulary: the file records which rows it stores. Dropped
values read zeros.
"""

from recsys.compression.base import PruningContext
from recsys.compression.rows import keep_best_rows, lookup_counts
from recsys.compression.wide import WideTable
from recsys.embedding.mask import Mask


class Frequency(WideTable):
    """Keeps the rows that most training examples look up."""

    def build_mask(self, context: PruningContext) -> Mask:
        """As many of the rows looked up most as the budget admits."""
        return keep_best_rows(lookup_counts(context), context)
