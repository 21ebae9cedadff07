"""Batches of a dataset split: shuffled, streamed in windows, resumable at an exact position.

n rows, B examples. The parquet row groups are distributed over windows of a bounded size, in an order that depends only
on seed and epoch; rows are shuffled within their window. A split that fits in one window stays in memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.arrays import Float32s
from features.dataset.info import DatasetInfo, read_dataset
from features.encode import EncodedBatch
from features.errors import InputError
from features.files import check_readable
from features.registry import FeatureRegistry
from recsys.batch import Batch

WINDOW_BYTES = 1 << 29
"""Most bytes of examples in memory at a time; loading a window briefly takes twice that."""

Indices = npt.NDArray[np.int64]


class _RowGroup(NamedTuple):
    """One row group of a parquet part."""

    path: Path
    offset: int
    """Number of its first row in the part."""
    rows: int
    num_bytes: int
    """Size in memory, where every value takes at most 8 bytes."""


class Split:
    """One split of a dataset directory; raises `InputError` for any other directory, or if it has no such split."""

    def __init__(self, directory: str | Path, split: str, *, window_bytes: int = WINDOW_BYTES) -> None:
        self.directory, self.name = Path(directory), split
        self.info: DatasetInfo
        self.registry: FeatureRegistry
        self.info, self.registry = read_dataset(directory)
        if split not in self.info.splits:
            known = ", ".join(self.info.splits)
            raise InputError(f"{directory} has no split {split!r}", found=known, remedy="name one of those")
        self.num_rows = self.info.splits[split].rows
        self._window_bytes = window_bytes
        self._row_groups = [
            row_group for part in self.info.splits[split].parts for row_group in _row_groups(self.directory / part.file)
        ]
        self._is_small = sum(row_group.num_bytes for row_group in self._row_groups) <= window_bytes
        self._memory: _Window | None = None

    def num_batches(self, batch_size: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = False) -> int:
        """Number of batches in an epoch."""
        windows = self._windows(seed, epoch, shuffle)
        return sum(_num_batches(sum(row_group.rows for row_group in window), batch_size) for window in windows)

    def batches(
        self, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0, start: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on, bit for bit those of a pass from 0.

        Every row comes once per epoch. A window is divided evenly into as few batches of at most `batch_size` as
        possible: their sizes differ by at most 1, and a batch has a single example only if the split has, or if
        `batch_size` is below 3.
        """
        if batch_size < 1:
            raise InputError("batch_size must be at least 1", found=str(batch_size))
        for number, window in enumerate(self._windows(seed, epoch, shuffle)):
            num_rows = sum(row_group.rows for row_group in window)
            num_batches = _num_batches(num_rows, batch_size)
            if start >= num_batches:
                start -= num_batches
                continue
            rows = self._load(window)
            order = np.arange(num_rows)
            if shuffle:
                np.random.default_rng([seed, epoch, number + 1]).shuffle(order)
            for indices in np.array_split(order, num_batches)[start:]:
                yield rows.batch(indices)
            start = 0
            del rows  # before the next window is read

    def tokens(self) -> Iterator[EncodedBatch]:
        """The split's tokens and floats in file order, one batch per window; for reports."""
        for batch, _, _ in self.labelled_tokens():
            yield batch

    def labelled_tokens(self) -> Iterator[tuple[EncodedBatch, Float32s, Float32s]]:
        """`tokens`, each batch with its labels [B] and example weights [B], ones if the registry names no weight."""
        for window in self._windows(0, 0, shuffle=False):
            frame = self._read(window)
            labels = frame["label"].to_numpy().astype(np.float32)
            weights = frame["weight"].to_numpy() if "weight" in frame.columns else np.ones_like(labels)
            yield EncodedBatch.from_frame(frame, self.registry), labels, weights

    def _windows(self, seed: int, epoch: int, shuffle: bool) -> list[list[_RowGroup]]:
        row_groups = self._row_groups
        if shuffle and not self._is_small:
            order = np.random.default_rng([seed, epoch, 0]).permutation(len(row_groups))
            row_groups = [row_groups[index] for index in order]
        windows: list[list[_RowGroup]] = [[]]
        num_rows = num_bytes = 0
        for row_group in row_groups:
            is_full = num_bytes + row_group.num_bytes > self._window_bytes
            # No window has a single row, as batch norm cannot train on one.
            if is_full and num_rows > 1 and row_group.rows > 1:
                windows.append([])
                num_rows = num_bytes = 0
            windows[-1].append(row_group)
            num_rows += row_group.rows
            num_bytes += row_group.num_bytes
        return windows

    def _read(self, window: list[_RowGroup]) -> pl.DataFrame:
        frames = [_read_rows(row_group) for row_group in window]
        return pl.concat(frames, rechunk=True)  # arrays of one chunk are not copied again

    def _load(self, window: list[_RowGroup]) -> "_Window":
        if not self._is_small:
            return _Window(self._read(window), self.registry)
        if self._memory is None:
            self._memory = _Window(self._read(window), self.registry)
        return self._memory


def _row_groups(path: Path) -> Iterator[_RowGroup]:
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from None
    offset = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        num_values = sum(group.column(column).num_values for column in range(group.num_columns))
        yield _RowGroup(path, offset, group.num_rows, 8 * num_values)
        offset += group.num_rows


def _read_rows(row_group: _RowGroup) -> pl.DataFrame:
    try:
        return pl.scan_parquet(row_group.path, glob=False).slice(row_group.offset, row_group.rows).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _damaged(row_group.path, error) from None


def _damaged(path: Path, error: Exception) -> InputError:
    check_readable(path)
    found = " ".join(str(error).split())[:160]
    return InputError(f"{path}: expected the part that prepare wrote", found=found, remedy="prepare it again")


def _num_batches(num_rows: int, batch_size: int) -> int:
    return -(-num_rows // batch_size)


class _Window:
    """Rows in memory from which batches are gathered: scalars side by side, lists as values and offsets.

    numpy gathers: the arrays are small, and torch's worker threads cost more than they save.
    """

    def __init__(self, frame: pl.DataFrame, registry: FeatureRegistry) -> None:
        encoded = EncodedBatch.from_frame(frame, registry)
        self.keys = [feature.name for feature in registry.token_features]
        scalars = [encoded.tokens[key].view(np.int64) for key in self.keys if key not in encoded.lengths]
        self.scalars = np.stack(scalars, axis=1) if scalars else np.zeros((len(frame), 0), np.int64)
        self.lists = {
            key: _Lists(encoded.tokens[key].view(np.int64), lengths) for key, lengths in encoded.lengths.items()
        }
        self.dense = encoded.dense
        self.labels = frame["label"].to_numpy().astype(np.float32)
        self.weights = frame["weight"].to_numpy() if "weight" in frame.columns else None
        self.groups = frame["group"].to_numpy().view(np.int64) if "group" in frame.columns else None

    def batch(self, indices: Indices) -> Batch:
        """The batch of the rows at `indices` [B]."""
        columns = iter(np.ascontiguousarray(self.scalars[indices].T))  # [scalar features, B]
        ones = np.ones(len(indices), dtype=np.int64)
        bags = [self.lists[key].gather(indices) if key in self.lists else (next(columns), ones) for key in self.keys]
        return Batch(
            sparse_features=jagged(self.keys, bags, len(indices)),
            dense_features=torch.from_numpy(self.dense[indices]),
            labels=torch.from_numpy(self.labels[indices]),
            weights=None if self.weights is None else torch.from_numpy(self.weights[indices]),
            groups=None if self.groups is None else torch.from_numpy(self.groups[indices]),
        )


class _Lists:
    """A ragged column: values [sum of lengths], and one length per row [n]."""

    def __init__(self, values: Indices, lengths: Indices) -> None:
        self.values, self.lengths = values, lengths
        self.starts = lengths.cumsum() - lengths

    def gather(self, indices: Indices) -> tuple[Indices, Indices]:
        """Values and lengths of the rows at `indices` [B]."""
        lengths = self.lengths[indices]
        begins = lengths.cumsum() - lengths
        shifts = np.repeat(self.starts[indices] - begins, lengths)
        return self.values[np.arange(len(shifts)) + shifts], lengths


def jagged(keys: list[str], bags: list[tuple[Indices, Indices]], num_examples: int) -> KeyedJaggedTensor:
    """A KeyedJaggedTensor of (values, lengths [B]) per feature, which may be none.

    >>> jagged(["a"], [(np.array([5, 6, 7]), np.array([2, 1]))], 2).lengths().tolist()
    [2, 1]
    """
    empty = np.zeros(0, dtype=np.int64)
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.from_numpy(np.concatenate([values for values, _ in bags] or [empty])),
        lengths=torch.from_numpy(np.concatenate([lengths for _, lengths in bags] or [empty])),
        stride=num_examples,
    )


def batch_of(encoded: EncodedBatch, registry: FeatureRegistry) -> Batch:
    """A batch of encoded examples with labels of 0, to score raw rows with a ranker."""
    keys = [feature.name for feature in registry.token_features]
    ones = np.ones(encoded.num_examples, dtype=np.int64)
    bags = [(encoded.tokens[key].view(np.int64), encoded.lengths.get(key, ones)) for key in keys]
    return Batch(
        sparse_features=jagged(keys, bags, encoded.num_examples),
        dense_features=torch.from_numpy(encoded.dense.copy()),
        labels=torch.zeros(encoded.num_examples),
    )
