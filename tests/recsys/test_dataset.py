"""A split as batches: every row once, the right values, the same order again, an exact position, bounded memory."""

import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from features.dataset import prepare as prepare_module
from features.encode import EncodedBatch, encode_frame
from features.errors import InputError
from features.registry import FeatureRegistry
from recsys import dataset
from recsys.batch import Batch
from recsys.dataset import Split, batch_of
from tests.planted import write_dataset

NUM_ROWS = 1003
REGISTRY = FeatureRegistry.of(
    weight="importance",
    group="user",
    features={
        "tags": {"type": "categorical_list", "separator": "|"},
        "user": "categorical",
        "row": {"type": "numeric", "transform": "none"},
        "words": {"type": "categorical_list", "pooling": "sum"},
        "item": "categorical",
        "half": {"type": "numeric", "transform": "none"},
    },
)
SCALARS = FeatureRegistry.of(features={"user": "categorical", "row": {"type": "numeric", "transform": "none"}})


def raw_frame(num_rows: int = NUM_ROWS) -> pl.DataFrame:
    """Rows that know their number; lists are empty, null or long."""
    random = np.random.default_rng(0)
    tags = [None if n == 5 else "|".join(f"t{k}" for k in range(n)) for n in random.integers(0, 6, num_rows)]
    words = [[f"w{k}" for k in random.integers(0, 9, n)] for n in random.integers(0, 3, num_rows)]
    return pl.DataFrame(
        {
            "label": random.integers(0, 2, num_rows),
            "importance": random.random(num_rows),
            "tags": tags,
            "user": random.integers(0, 20, num_rows),
            "row": np.arange(num_rows),
            "words": pl.Series(words, dtype=pl.List(pl.String)),
            "item": [f"i{k}" for k in random.integers(0, 50, num_rows)],
            "half": np.arange(num_rows) / 2,
        }
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of parts and row groups of several sizes: 300 rows per part (103 in the last), 128 per row group."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "ROW_GROUP_ROWS", 128)
        frames = {"train": raw_frame(), "valid": raw_frame(50)}
        return write_dataset(tmp_path_factory.mktemp("dataset"), REGISTRY, frames, part_rows=300)


@pytest.fixture(params=[1 << 29, 24_000, 1], ids=["one window", "some windows", "a window a row group"])
def train(request: pytest.FixtureRequest, directory: Path) -> Split:
    return Split(directory, "train", window_bytes=request.param)


def rows_of(batches: Iterable[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.dense_features[:, 0]]


def equal(one: Batch, other: Batch) -> bool:
    assert one.weights is not None
    assert other.weights is not None
    assert one.groups is not None
    assert other.groups is not None
    pairs = [
        (one.sparse_features.values(), other.sparse_features.values()),
        (one.sparse_features.lengths(), other.sparse_features.lengths()),
        (one.dense_features, other.dense_features),
        (one.labels, other.labels),
        (one.weights, other.weights),
        (one.groups, other.groups),
    ]
    return one.sparse_features.keys() == other.sparse_features.keys() and all(torch.equal(a, b) for a, b in pairs)


def test_every_row_comes_once_an_epoch(train: Split):
    for shuffle in (True, False):
        rows = rows_of(train.batches(64, shuffle=shuffle, seed=3, epoch=2))
        assert sorted(rows) == list(range(NUM_ROWS))
        assert (rows == list(range(NUM_ROWS))) == (not shuffle)
    assert train.num_rows == NUM_ROWS


def test_a_row_keeps_its_values(train: Split):
    raw = raw_frame()
    expected = encode_frame(raw, REGISTRY).with_columns(raw["label"], raw["importance"].cast(pl.Float32))
    expected = expected.with_columns(group=expected["user"])
    for batch in train.batches(100, shuffle=True, seed=1):
        wanted = expected[[int(row) for row in batch.dense_features[:, 0]]]
        assert batch.sparse_features.keys() == ["tags", "user", "words", "item"]
        assert batch.sparse_features.stride() == batch.num_examples == len(wanted)
        for name, part in batch.sparse_features.to_dict().items():
            values = wanted[name] if name in ("user", "item") else wanted[name].explode().drop_nulls()
            lengths = [1] * len(wanted) if name in ("user", "item") else wanted[name].list.len().to_list()
            assert part.values().numpy().view(np.uint64).tolist() == values.to_list()
            assert part.lengths().tolist() == lengths
        assert batch.dense_features.tolist() == wanted.select("row", "half").cast(pl.Float32).to_numpy().tolist()
        assert batch.labels.tolist() == wanted["label"].to_list()
        assert batch.weights is not None
        assert batch.weights.tolist() == wanted["importance"].to_list()
        assert batch.groups is not None
        assert batch.groups.numpy().view(np.uint64).tolist() == wanted["group"].to_list()
        tensors = [batch.dense_features, batch.labels, batch.weights]
        assert [tensor.dtype for tensor in tensors] == [torch.float32] * 3
        assert batch.sparse_features.values().dtype == batch.groups.dtype == torch.int64


def test_weights_and_groups_are_optional(tmp_path: Path):
    path = write_dataset(tmp_path, SCALARS, {"train": raw_frame(20), "valid": raw_frame(20)})
    (batch,) = Split(path, "train").batches(100)
    assert batch.weights is None
    assert batch.groups is None


def test_order_depends_on_seed_and_epoch_alone(train: Split, directory: Path):
    def order(split: Split, seed: int, epoch: int) -> list[int]:
        return rows_of(split.batches(64, shuffle=True, seed=seed, epoch=epoch))

    again = Split(directory, "train", window_bytes=train._window_bytes)
    list(again.batches(10))  # what was read before does not matter
    assert order(train, 1, 0) == order(train, 1, 0) == order(again, 1, 0)
    orders = [order(train, seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len({tuple(one) for one in orders}) == 9
    same_place = np.mean([np.equal(one, other).mean() for one in orders for other in orders if one is not other])
    assert same_place < 0.02


def test_windows_hold_other_rows_in_another_epoch(directory: Path):
    split = Split(directory, "train", window_bytes=24_000)
    windows = [{frozenset(window) for window in split._windows(1, epoch, shuffle=True)} for epoch in range(4)]
    assert all(one != other for one in windows for other in windows if one is not other)
    assert split._windows(1, 2, shuffle=False) == split._windows(9, 3, shuffle=False)


@pytest.mark.parametrize("shuffle", [True, False])
def test_start_is_an_exact_position(train: Split, shuffle: bool):
    batches = list(train.batches(90, shuffle=shuffle, seed=4, epoch=1))
    assert train.num_batches(90, seed=4, epoch=1, shuffle=shuffle) == len(batches)
    for start in range(len(batches) + 2):
        rest = list(train.batches(90, shuffle=shuffle, seed=4, epoch=1, start=start))
        assert len(rest) == max(0, len(batches) - start)
        assert all(equal(one, other) for one, other in zip(rest, batches[start:], strict=True))


@pytest.mark.parametrize("batch_size", [3, 7, 64, 1002, 5000])
def test_batches_of_a_window_are_of_even_size(train: Split, batch_size: int):
    sizes = iter([batch.num_examples for batch in train.batches(batch_size, shuffle=True, seed=1)])
    for window in train._windows(1, 0, shuffle=True):
        num_rows = sum(piece.rows for piece in window)
        found = [next(sizes) for _ in range(-(-num_rows // batch_size))]
        assert sum(found) == num_rows
        assert min(found) >= 2
        assert max(found) <= min(batch_size, min(found) + 1)
    assert next(sizes, None) is None


def test_one_row_too_many_does_not_make_a_batch_of_one(tmp_path: Path):
    path = write_dataset(tmp_path, SCALARS, {"train": raw_frame(4097), "valid": raw_frame(10)})
    assert [batch.num_examples for batch in Split(path, "train").batches(4096, shuffle=True)] == [2049, 2048]


@pytest.mark.parametrize("part_rows", [8, 1], ids=["the last row alone", "each row alone"])
def test_no_window_is_a_single_row(tmp_path: Path, part_rows: int):
    path = write_dataset(tmp_path, SCALARS, {"train": raw_frame(41), "valid": raw_frame(10)}, part_rows=part_rows)
    split = Split(path, "train", window_bytes=1)
    for epoch in range(5):
        sizes = [batch.num_examples for batch in split.batches(8, shuffle=True, epoch=epoch)]
        assert sum(sizes) == 41
        assert min(sizes) >= 2


def test_no_more_than_a_window_is_in_memory(directory: Path, monkeypatch: pytest.MonkeyPatch):
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most_rows: list[int] = []
    make = dataset._Window.__init__

    def watched(self: Any, frame: pl.DataFrame, registry: FeatureRegistry) -> None:
        assert not alive, "the window before is still there"
        make(self, frame, registry)
        alive.add(self)
        most_rows.append(len(frame))

    monkeypatch.setattr(dataset._Window, "__init__", watched)
    split = Split(directory, "train", window_bytes=24_000)
    batches: Iterator[Batch] = split.batches(32, shuffle=True)
    assert len(rows_of(batches)) == NUM_ROWS
    assert len(most_rows) > 3
    assert max(most_rows) < NUM_ROWS / 2
    # Skipped windows are not even read.
    most_rows.clear()
    num_batches = split.num_batches(32, shuffle=True)
    rows_of(split.batches(32, shuffle=True, start=num_batches - 1))
    assert len(most_rows) == 1


def test_long_lists_make_windows_of_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepare_module, "ROW_GROUP_ROWS", 20)
    registry = FeatureRegistry.of(features={"tags": {"type": "categorical_list", "separator": " "}})
    tags = [" ".join(["a"] * 50) if row < 200 else "a" for row in range(400)]
    rows = pl.DataFrame({"label": [0, 1] * 200, "tags": tags})
    path = write_dataset(tmp_path, registry, {"train": rows, "valid": rows})
    windows = Split(path, "train", window_bytes=20_000)._windows(0, 0, shuffle=False)
    num_rows = [sum(piece.rows for piece in window) for window in windows]
    assert sum(num_rows) == 400
    # 8 bytes for the label, 8 or 400 for the list: 49 or 1,250 rows fit.
    assert num_rows == [40, 40, 40, 40, 240]


def test_a_small_split_is_read_once(directory: Path, monkeypatch: pytest.MonkeyPatch):
    split = Split(directory, "valid")
    first = list(split.batches(7, shuffle=True))
    monkeypatch.setattr(split, "_read", None)
    assert all(equal(one, other) for one, other in zip(split.batches(7, shuffle=True), first, strict=True))


def test_tokens_are_those_of_the_files(train: Split):
    expected = EncodedBatch.from_frame(encode_frame(raw_frame(), REGISTRY), REGISTRY)
    found = list(train.tokens())
    for name, tokens in expected.tokens.items():
        assert np.array_equal(np.concatenate([encoded.tokens[name] for encoded in found]), tokens)
    assert sum(encoded.num_examples for encoded in found) == NUM_ROWS


def test_batch_of_encoded_rows(directory: Path):
    batch = batch_of(EncodedBatch.from_frame(encode_frame(raw_frame(50), REGISTRY), REGISTRY), REGISTRY)
    (expected,) = Split(directory, "valid").batches(100)
    assert torch.equal(batch.sparse_features.values(), expected.sparse_features.values())
    assert torch.equal(batch.sparse_features.lengths(), expected.sparse_features.lengths())
    assert torch.equal(batch.dense_features, expected.dense_features)
    assert batch.num_examples == 50


def test_numeric_features_alone(tmp_path: Path):
    registry = FeatureRegistry.of(features={"row": {"type": "numeric", "transform": "none"}})
    path = write_dataset(tmp_path, registry, {"train": raw_frame(20), "valid": raw_frame(10)})
    batches = list(Split(path, "train").batches(6, shuffle=True))
    assert sorted(rows_of(batches)) == list(range(20))
    assert all(batch.sparse_features.stride() == batch.num_examples for batch in batches)


def test_what_cannot_be_read_is_one_clear_line(tmp_path: Path, directory: Path):
    with pytest.raises(InputError, match="has no split 'test'; found train, valid"):
        Split(directory, "test")
    with pytest.raises(InputError, match="expected a dataset"):
        Split(tmp_path, "train")
    with pytest.raises(InputError, match="batch_size must be at least 1; found 0"):
        next(Split(directory, "train").batches(0))
    path = write_dataset(tmp_path, SCALARS, {"train": raw_frame(20), "valid": raw_frame(10)})
    part = path / "train" / "part-00000.parquet"
    content = part.read_bytes()
    part.write_bytes(bytes(len(content)))
    with pytest.raises(InputError, match=r"expected the part that prepare wrote; found .*; prepare it again"):
        Split(path, "train")
    part.write_bytes(bytes(len(content) // 2) + content[len(content) // 2 :])  # the footer is whole
    with pytest.raises(InputError, match="expected the part that prepare wrote"):
        list(Split(path, "train").batches(4))
