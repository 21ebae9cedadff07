"""Lookup: embeddings of encoded examples, pooled where a feature is a list.

B examples, S slots of the layout, P slots of one feature, w row width, T tokens of a list feature in a batch.
"""

from collections.abc import Collection
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.addressing import Addressing, addressing_of, known
from features.encode import EncodedBatch
from features.hashing import Rows, Tokens
from serving.bundle import Bundle
from serving.bundle.quantize import Floats

Lengths = npt.NDArray[np.int64]
Order = npt.NDArray[np.intp]


class Lookup:
    """Gathers the slots of some features: `Lookup(bundle, {"user"}).read(encoded)`. It keeps no state between calls."""

    def __init__(self, bundle: Bundle, features: Collection[str]) -> None:
        layout, vocabulary = bundle.layout, bundle.vocabulary
        self._table, self._is_pruned = bundle.table, bundle.is_pruned
        self._num_slots, self._width = len(layout.slots), layout.width
        used = dict.fromkeys(slot.feature for slot in layout.slots if slot.feature in features)
        self._addressing = {name: addressing_of(layout, vocabulary, layout.positions_of(name)) for name in used}
        self._lists = [
            _Bag(name, self._addressing[name], _runs(layout.positions_of(name)), pooling == "mean")
            for name, pooling in layout.pooling.items()
            if name in used
        ]
        self._scalar_features = [name for name in used if name not in layout.pooling]
        positions = [p for p, slot in enumerate(layout.slots) if slot.feature in self._scalar_features]
        of_slots = [self._scalar_features.index(layout.slots[p].feature) for p in positions]
        self._feature_of_slot = np.array(of_slots, dtype=np.intp)
        self._scalars = addressing_of(layout, vocabulary, positions)
        self._runs = _runs(positions)
        self._has_others = any(slot.feature not in used for slot in layout.slots)

    def read(self, encoded: EncodedBatch, first: int, last: int, context: Floats | None = None) -> Floats:
        """Embeddings [B, S, w] of examples `first` to `last`; slots of other features come from `context` [1, S, w]."""
        scalars = self._scalar_rows(encoded, first, last)
        if not self._lists and len(self._runs) == 1 and scalars.shape[1] == self._num_slots:
            return scalars
        out = np.empty((last - first, self._num_slots, self._width), dtype=np.float32)
        if self._has_others:
            out[:] = 0 if context is None else context
        for run in self._runs:
            out[:, run.there] = scalars[:, run.here]
        for bag in self._lists:
            tokens, lengths = encoded.bag(bag.name, first, last)
            assert lengths is not None
            longest_first, pooled = self._pooled(bag.addressing.rows(tokens[:, None]), lengths, is_mean=bag.is_mean)
            for run in bag.runs:
                out[longest_first, run.there] = pooled[:, run.here]
        return out

    def _scalar_rows(self, encoded: EncodedBatch, first: int, last: int) -> Floats:
        """Embeddings [B, S of scalars, w] of the slots of scalar features."""
        if not self._scalar_features:
            return np.zeros((last - first, 0, self._width), dtype=np.float32)
        columns = [encoded.tokens[name][first:last] for name in self._scalar_features]
        tokens = np.concatenate(columns).reshape(len(columns), last - first).T  # np.stack takes three times as long
        rows = self._scalars.rows(tokens[:, self._feature_of_slot])
        return self._table.gather(rows.ravel()).reshape(*rows.shape, self._width)

    def num_untrained(self, feature: str, tokens: Tokens) -> int:
        """Number of a feature's tokens [T] with an untrained row; in a pruned table, of those without a trained one."""
        if feature not in self._addressing:
            return 0
        rows = self._addressing[feature].rows(tokens[:, None])
        is_trained = self._table.is_trained(rows.ravel()).reshape(rows.shape)
        return len(rows) - int(known(is_trained, is_pruned=self._is_pruned).sum())

    def _pooled(self, rows: Rows, lengths: Lengths, *, is_mean: bool) -> tuple[Order, Floats]:
        """The examples [B], longest list first, and in this order the sum or mean of each one's rows [B, P, w].

        `rows` are [T, P], `lengths` [B]; an empty list gives zeros. Step k adds the k-th value of every list that has
        one. So each sum is in the order of the list, as in training (`np.add.reduceat` sums in pairs, and gives an
        empty list its neighbour's row), and memory does not grow with T.
        """
        longest_first = np.argsort(-lengths, kind="stable")
        starts, lengths = (np.cumsum(lengths) - lengths)[longest_first], lengths[longest_first]
        sums = np.zeros((len(lengths), rows.shape[1], self._width), dtype=np.float32)
        steps = np.arange(lengths[:1].sum())
        for k, num_active in enumerate(np.searchsorted(-lengths, -steps, side="left").tolist()):
            step = rows[starts[:num_active] + k]  # [active, P]
            sums[:num_active] += self._table.gather(step.ravel()).reshape(num_active, -1, self._width)
        if is_mean:
            sums /= np.maximum(lengths, 1).astype(np.float32)[:, None, None]
        return longest_first, sums


class _Run(NamedTuple):
    """Consecutive slots, such as those of neighbouring features."""

    here: slice
    """Among the slots of this lookup."""
    there: slice
    """Among all slots."""


class _Bag(NamedTuple):
    name: str
    addressing: Addressing
    runs: list[_Run]
    is_mean: bool


def _runs(positions: list[int]) -> list[_Run]:
    """Increasing positions, cut into runs of consecutive ones.

    >>> [(run.here.start, run.there.start, run.there.stop) for run in _runs([2, 3, 7])]
    [(0, 2, 4), (2, 7, 8)]
    """
    starts = [k for k, position in enumerate(positions) if k == 0 or position != positions[k - 1] + 1]
    pairs = pairwise([*starts, len(positions)])
    return [_Run(slice(start, end), slice(positions[start], positions[end - 1] + 1)) for start, end in pairs]
