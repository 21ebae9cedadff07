"""Rows and columns of each feature that a mask keeps."""

from typing import NamedTuple

import numpy as np

from features.addressing import Vocabulary, rows_of
from features.layout import TableLayout
from recsys.embedding.mask import Mask
from recsys.evaluation.collisions import Distinct


class KeptColumns(NamedTuple):
    """Rows and columns of one feature that a pruned table stores."""

    feature: str
    rows: int
    """Rows of its training values with at least one stored column."""
    of_rows: int
    """Rows of its training values."""
    columns: int
    """Columns that its slots keep, over all views and probes."""
    of_columns: int
    """Columns of its slots."""


def kept_by_feature(
    layout: TableLayout, mask: Mask, distinct: Distinct, vocabulary: Vocabulary | None
) -> list[KeptColumns]:
    """Rows and columns that a mask keeps of each token feature, for its distinct training values."""
    widths, of_slots = mask.row_widths.numpy(), mask.slot_widths.numpy()
    found = []
    for name, (tokens, _) in distinct.items():
        rows = np.unique(rows_of(layout, vocabulary, name, tokens))
        slots = of_slots[layout.positions_of(name)]
        kept_rows, columns = int((widths[rows] > 0).sum()), int(slots.sum())
        found.append(KeptColumns(name, kept_rows, len(rows), columns, len(slots) * layout.width))
    return found
