"""Rows of the table for tokens of a layout's features, for every kind of table.

N tokens, P slots of one feature.
"""

from collections.abc import Sequence

import numpy as np

from features.arrays import Flags
from features.hashing import Rows, Tokens
from features.layout import TableLayout
from features.table_kinds import TABLE_KINDS, Addressing, Vocabulary

__all__ = ["Addressing", "Vocabulary", "addressing_of", "known", "rows_of"]


def addressing_of(
    layout: TableLayout, vocabulary: Vocabulary | None = None, positions: Sequence[int] | None = None
) -> Addressing:
    """The addressing of a layout's slots at `positions`, or of all; a collisionless table needs its vocabulary.

    >>> from features.hashing import MISSING_TOKEN
    >>> from features.registry import FeatureRegistry
    >>> layout = TableLayout.of(
    ...     FeatureRegistry.of(features={"a": "categorical"}), num_rows=1, width=4, probes=1, views={"main": ("a",)},
    ...     kind="collisionless", num_values={"a": 2},
    ... )
    >>> tokens = np.array([[9], [7], [8], [MISSING_TOKEN]], dtype=np.uint64)
    >>> addressing_of(layout, {"a": np.array([7, 9], dtype=np.uint64)}).rows(tokens).ravel().tolist()
    [3, 2, 1, 0]
    """
    slots = layout.slots if positions is None else [layout.slots[position] for position in positions]
    return TABLE_KINDS[layout.kind](slots, vocabulary)


def rows_of(layout: TableLayout, vocabulary: Vocabulary | None, feature: str, tokens: Tokens) -> Rows:
    """Rows [P, N] that a feature's slots read for its tokens [N], in output order."""
    return addressing_of(layout, vocabulary, layout.positions_of(feature)).rows(tokens[:, None]).T


def known(is_trained: Flags, *, is_pruned: bool) -> Flags:
    """Flags [N] of known values, from flags of their rows [N, P] that were read in training and not pruned.

    In a pruned table a value is known if at least one of its rows is left, because the others may have been pruned.

    >>> known(np.array([[True, False], [False, False]]), is_pruned=True).tolist()
    [True, False]
    >>> known(np.array([[True, False], [True, True]]), is_pruned=False).tolist()
    [False, True]
    """
    suffices = np.logical_or if is_pruned else np.logical_and
    return suffices.reduce(is_trained, axis=1)
