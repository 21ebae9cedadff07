"""target_statistics.safetensors: float columns of each value of a token feature, by how often it was positive in train.

B examples, F token features, V values of one feature in train.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.arrays import AnyFloats, Float32s, Int64s
from features.encode import EncodedBatch
from features.hashing import Tokens
from serving.bundle.tensors import fault, map_tensors, take, write_tensors

NUM_COLUMNS = 2
"""Columns per token feature: a rate and a count."""
UNKNOWN, EMPTY = 0, 1
"""Rows of `ValueColumns.columns` before those of the values."""


class ValueColumns(NamedTuple):
    """The columns of one feature's values."""

    tokens: Tokens
    """The values [V], increasing."""
    columns: AnyFloats
    """[2 + V, 2]: of a value that train lacks, of an empty list, and of each value."""

    def of(self, tokens: Tokens) -> AnyFloats:
        """Columns [T, 2] of tokens [T]."""
        if not len(self.tokens):
            return self.columns[np.full(len(tokens), UNKNOWN)]
        after = np.searchsorted(self.tokens, tokens, side="right")  # index -1, the last value, where it is 0
        return self.columns[np.where(self.tokens[after - 1] == tokens, EMPTY + after, UNKNOWN)]


@dataclass(frozen=True)
class TargetStatistics:
    """The columns of all token features, in registry order."""

    features: Mapping[str, ValueColumns]

    def columns(self, batch: EncodedBatch, first: int = 0, last: int | None = None) -> Float32s:
        """Float columns [B, 2F] of examples `first` to `last`, for the features of the batch; a list has the mean."""
        last = batch.num_examples if last is None else last
        names = [name for name in self.features if name in batch.tokens]
        out = np.empty((last - first, NUM_COLUMNS * len(names)), dtype=np.float32)
        for position, name in enumerate(names):
            tokens, lengths = batch.bag(name, first, last)
            own = self.features[name].of(tokens)
            if lengths is not None:
                own = _means(own, lengths, self.features[name].columns[EMPTY])
            out[:, NUM_COLUMNS * position : NUM_COLUMNS * (position + 1)] = own
        return out


def _means(columns: AnyFloats, lengths: Int64s, empty: AnyFloats) -> AnyFloats:
    """Mean columns [B, 2] of lists, whose values' columns are one after another."""
    examples = np.repeat(np.arange(len(lengths)), lengths)
    sums = [np.bincount(examples, weights=column, minlength=len(lengths)) for column in columns.T]
    return np.where(lengths[:, None] > 0, np.stack(sums, axis=1) / np.maximum(lengths, 1)[:, None], empty)


def write_target_statistics(path: Path, statistics: TargetStatistics) -> None:
    """Write statistics; the same bytes for the same statistics."""
    tensors = {}
    for name, (tokens, columns) in statistics.features.items():
        tensors[f"{name}.tokens"] = tokens.astype("<u8", copy=False)
        tensors[f"{name}.columns"] = columns.astype("<f4", copy=False)
    write_tensors(path, tensors)


def read_target_statistics(path: Path, features: Sequence[str]) -> TargetStatistics:
    """The statistics of these features, which stay on the disk; raises `InputError` for a damaged file."""
    tensors = map_tensors(path)
    expected = [f"{name}.{part}" for name in features for part in ("tokens", "columns")]
    if set(tensors) != set(expected):
        raise fault(path, f"tensors {', '.join(expected)}"[:160], ", ".join(tensors)[:160])
    found: dict[str, ValueColumns] = {}
    for name in features:
        num_values = len(tensors[f"{name}.tokens"])
        tokens = take(path, tensors, f"{name}.tokens", (num_values,), "U64")
        columns = take(path, tensors, f"{name}.columns", (EMPTY + 1 + num_values, NUM_COLUMNS), "F32")
        if (tokens[1:] <= tokens[:-1]).any() or not np.isfinite(columns).all():
            raise fault(path, f"increasing tokens of {name!r} and finite columns", "others")
        found[name] = ValueColumns(tokens, columns)
    return TargetStatistics(found)
