"""Frequency cut-off: rows that training read least are dropped.

M table rows. On a table of one probe that is far larger than the vocabulary, a row belongs to a value, and this is the
usual cut-off (`min_categr_count` of BARS), without a vocabulary to say which values are left: the table says which rows
it stores. Dropped values read zeros.
"""

from recsys.compression.base import PruningContext
from recsys.compression.rows import keep_best_rows, lookup_counts
from recsys.compression.wide import WideTable
from recsys.embedding.mask import Mask


class Frequency(WideTable):
    """Keeps the rows that the most training examples read."""

    def build_mask(self, context: PruningContext) -> Mask:
        """The most read rows that the budget admits."""
        return keep_best_rows(lookup_counts(context), context)
