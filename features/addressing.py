"""Addressing: tokens to rows of the table, for each kind of layout; numpy's half, torch's is in
`recsys.embedding.addressing`.

N tokens, S slots, P slots of one feature. All kinds but one hash a token to an id below `Slot.num_ids`, and the id to
one of the slot's rows: the id itself, its quotient or remainder, or a row some places after it. `collisionless` looks a
token up among those of train: row 0 of a range is the missing value, row 1 every value that train did not show, row
2 + k the k-th of its sorted tokens.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from features.hashing import MISSING_TOKEN, Rows, Tokens, rows_of_tokens
from features.layout import TableLayout

Vocabulary = Mapping[str, Tokens]
"""Feature to the distinct tokens of train, increasing, without the missing one."""

_MISSING = np.uint64(MISSING_TOKEN)


class Addressing:
    """How some of a layout's slots find their rows.

    >>> from features.registry import FeatureRegistry
    >>> layout = TableLayout.of(
    ...     FeatureRegistry.of(features={"a": "categorical"}), num_rows=1, width=4, probes=1, views={"main": ("a",)},
    ...     kind="collisionless", num_values={"a": 2},
    ... )
    >>> tokens = np.array([[9], [7], [8], [MISSING_TOKEN]], dtype=np.uint64)
    >>> Addressing(layout, {"a": np.array([7, 9], dtype=np.uint64)}).rows(tokens).ravel().tolist()
    [3, 2, 1, 0]
    """

    def __init__(
        self, layout: TableLayout, vocabulary: Vocabulary | None = None, positions: Sequence[int] | None = None
    ) -> None:
        """Of the slots at `positions` [S], or of all; `vocabulary` is needed for `collisionless` alone."""
        slots = layout.slots if positions is None else [layout.slots[position] for position in positions]
        self._salts = np.array([slot.salt for slot in slots], dtype=np.uint64)
        self._first_rows = np.array([slot.first_row for slot in slots], dtype=np.int64)
        self._num_ids = np.array([slot.num_ids for slot in slots], dtype=np.uint64)
        self._num_rows = np.array([slot.num_rows for slot in slots], dtype=np.int64)
        self._divisors = np.array([slot.divisor for slot in slots], dtype=np.int64)
        self._offsets = np.array([slot.offset for slot in slots], dtype=np.int64)
        self._is_plain = layout.kind in ("unified", "hashed")  # an id is a row
        self._sorted: list[Tokens] | None = None
        if layout.kind == "collisionless":
            assert vocabulary is not None
            self._sorted = [searchable(vocabulary[slot.feature]) for slot in slots]

    def rows(self, tokens: Tokens) -> Rows:
        """Rows [N, S] of tokens [N, S], a column a slot; or of [N, 1] where all slots read the same feature."""
        if self._sorted is None:
            ids = rows_of_tokens(tokens, self._salts, self._num_ids)
            if not self._is_plain:
                ids = (ids // self._divisors + self._offsets) % self._num_rows
            return ids + self._first_rows
        columns = np.broadcast_to(tokens, (len(tokens), len(self._sorted))).T
        found = [_offsets(ordered, column) for ordered, column in zip(self._sorted, columns, strict=True)]
        return np.array(found, dtype=np.int64).reshape(columns.shape).T + self._first_rows


def rows_of(layout: TableLayout, vocabulary: Vocabulary | None, feature: str, tokens: Tokens) -> Rows:
    """Rows [P, N] that a feature's slots read for its tokens [N], in output order."""
    return Addressing(layout, vocabulary, layout.positions_of(feature)).rows(tokens[:, None]).T


def known(is_trained: npt.NDArray[np.bool_], *, is_pruned: bool) -> npt.NDArray[np.bool_]:
    """Which values [N] are known, of whose rows [N, P] some were read in training and not pruned since.

    In a pruned table a row that is gone may have been read: there a value is known while one of its rows is left.

    >>> known(np.array([[True, False], [False, False]]), is_pruned=True).tolist()
    [True, False]
    >>> known(np.array([[True, False], [True, True]]), is_pruned=False).tolist()
    [False, True]
    """
    suffices = np.logical_or if is_pruned else np.logical_and
    return suffices.reduce(is_trained, axis=1)


def searchable(ordered: Tokens) -> Tokens:
    """The same tokens, or the missing one in place of none: no search finds it, and no array is empty."""
    return ordered if len(ordered) else np.array([_MISSING])


def _offsets(ordered: Tokens, tokens: Tokens) -> npt.NDArray[np.int64]:
    """0 for a missing token, 1 for one that is not in `ordered`, else 2 + its position there: [N]."""
    after = np.searchsorted(ordered, tokens, side="right")  # where 0, the last token stands at -1, and is another one
    offsets = np.where(ordered[after - 1] == tokens, after + 1, 1)
    return np.where(tokens == _MISSING, 0, offsets)
