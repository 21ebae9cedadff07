"""Preparing a dataset: the content of the parts, what it does not depend on, and failures that leave nothing behind."""

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import features.dataset.prepare
import features.files
import features.io.readers
from features.dataset.info import DatasetInfo, DatasetSource, read_dataset
from features.dataset.prepare import prepare
from features.encode import encode_frame
from features.errors import InputError
from features.hashing import hash_text
from features.registry import FeatureRegistry

REGISTRY = FeatureRegistry.of(
    label="click",
    group="user",
    weight="importance",
    features={
        "user": "categorical",
        "tags": {"type": "categorical_list", "separator": "|"},
        "price": "numeric",
        "age": {"type": "numeric", "transform": "bucketize", "num_buckets": 5},
    },
)


def raw_frame(num_rows: int, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "age": random.integers(10, 80, num_rows),
            "click": random.integers(0, 2, num_rows).astype(np.int8),
            "user": [f"u{n}" if n % 10 else None for n in random.integers(0, 50, num_rows)],
            "tags": random.choice(["a|b", "", "c", "a|b|c|d"], num_rows),
            "importance": random.random(num_rows).round(3),
            "price": [value if value > -1 else None for value in random.normal(0, 3, num_rows).round(4)],
            "comment": ["not used"] * num_rows,
        }
    )


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "raw.parquet"
    raw_frame(700).write_parquet(path)
    return path


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file in chunks of 64 rows, as if it were large."""
    original = features.io.readers.read_chunks

    def read_chunks(*arguments, **options) -> Iterator[pl.DataFrame]:
        return original(*arguments, **options, chunk_rows=64)

    monkeypatch.setattr(features.dataset.prepare, "read_chunks", read_chunks)


def rows_of(out: Path, info: DatasetInfo, split: str = "train") -> pl.DataFrame:
    return pl.concat(pl.read_parquet(out / part.file) for part in info.splits[split].parts)


def whole(out: Path) -> list[pl.DataFrame]:
    info, _ = read_dataset(out, verify=True)
    return [rows_of(out, info, split) for split in info.splits]


def tree(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_a_dataset_directory(tmp_path: Path, raw: Path):
    other = tmp_path / "valid.csv"
    raw_frame(90, seed=1).write_csv(other)
    out = tmp_path / "deep" / "dataset"
    source = DatasetSource(name="shop", source="our own", licence="CC0", split_rule="by hand")
    info = prepare(REGISTRY, {"train": [raw], "valid": [other]}, out, source=source, part_rows=256)
    assert (info, REGISTRY.diff(read_dataset(out)[1])) == (read_dataset(out, verify=True)[0], [])
    assert sorted(tree(out)) == [
        "dataset.json",
        "registry.json",
        *(f"train/part-0000{n}.parquet" for n in range(3)),
        "valid/part-00000.parquet",
    ]
    assert [part.rows for part in info.splits["train"].parts] == [256, 256, 188]
    assert info.splits["valid"].rows == 90
    assert (info.name, info.licence, info.split_rule, info.unknown_columns) == ("shop", "CC0", "by hand", ("comment",))
    frame = raw_frame(700)
    assert info.splits["train"].label_rate == pytest.approx(frame["click"].mean())
    assert info.splits["train"].missing_rates == {
        "user": frame["user"].null_count() / 700,
        "tags": 0,
        "price": frame["price"].null_count() / 700,
        "age": 0,
    }


def test_columns_of_a_part(tmp_path: Path, raw: Path):
    info = prepare(REGISTRY, {"train": [raw], "valid": [raw_copy(raw)]}, tmp_path / "out")
    rows, frame = rows_of(tmp_path / "out", info), raw_frame(700)
    assert rows.schema == {
        "label": pl.UInt8,
        "weight": pl.Float32,
        "group": pl.UInt64,
        "user": pl.UInt64,
        "tags": pl.List(pl.UInt64),
        "price": pl.Float32,
        "age": pl.UInt64,
    }
    assert rows["label"].to_list() == frame["click"].to_list()
    assert rows["weight"].to_list() == frame["importance"].cast(pl.Float32).to_list()
    assert rows["group"].to_list() == rows["user"].to_list()
    _, fitted = read_dataset(tmp_path / "out")
    assert rows.select(["user", "tags", "price", "age"]).equals(encode_frame(frame, fitted))


def raw_copy(path: Path) -> Path:
    copy = path.with_name("copy.parquet")
    copy.write_bytes(path.read_bytes())
    return copy


def test_without_weight_and_group_there_are_no_such_columns(tmp_path: Path, raw: Path):
    registry = FeatureRegistry.of(label="click", features={"user": "categorical"})
    info = prepare(registry, {"train": [raw]}, tmp_path / "out")
    assert rows_of(tmp_path / "out", info).columns == ["label", "user"]
    assert info.unknown_columns == ("age", "tags", "importance", "price", "comment")


@pytest.mark.usefixtures("small_chunks")
def test_streaming_is_the_same_as_the_whole(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch):
    prepare(REGISTRY, {"train": [raw]}, tmp_path / "chunks")
    monkeypatch.undo()
    prepare(REGISTRY, {"train": [raw]}, tmp_path / "whole")
    one, other = read_dataset(tmp_path / "chunks")[1], read_dataset(tmp_path / "whole")[1]
    assert one.features[2].fitted.mean == pytest.approx(other.features[2].fitted.mean, rel=1e-12)
    assert one.features[3].fitted.boundaries == other.features[3].fitted.boundaries
    for left, right in zip(whole(tmp_path / "chunks"), whole(tmp_path / "whole"), strict=True):
        assert left.drop("price").equals(right.drop("price"))
        np.testing.assert_allclose(left["price"], right["price"], rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("part_rows", [1, 50, 64, 65, 10_000])
def test_part_size_changes_the_files_alone(tmp_path: Path, raw: Path, part_rows: int):
    prepare(REGISTRY, {"train": [raw]}, tmp_path / "reference")
    info = prepare(REGISTRY, {"train": [raw]}, tmp_path / "out", part_rows=part_rows)
    for split in info.splits.values():
        assert [part.rows for part in split.parts[:-1]] == [part_rows] * (len(split.parts) - 1)
        assert 0 < split.parts[-1].rows <= part_rows
    assert all(map(pl.DataFrame.equals, whole(tmp_path / "out"), whole(tmp_path / "reference")))


def test_files_are_one_stream_whatever_they_are_cut_into(tmp_path: Path, raw: Path):
    frame = raw_frame(700)
    (tmp_path / "cut").mkdir()
    for number, (first, last) in enumerate([(0, 10), (10, 11), (11, 450), (450, 700)]):
        frame[first:last].write_parquet(tmp_path / "cut" / f"{number}.parquet")
    prepare(REGISTRY, {"train": [raw]}, tmp_path / "one")
    prepare(REGISTRY, {"train": [tmp_path / "cut"]}, tmp_path / "many")
    one, many = whole(tmp_path / "one"), whole(tmp_path / "many")
    assert [left.drop("price").equals(right.drop("price")) for left, right in zip(one, many, strict=True)] == [True] * 3


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path, raw: Path):
    one = prepare(REGISTRY, {"train": [raw]}, tmp_path / "a")
    other = prepare(REGISTRY, {"train": [raw]}, tmp_path / "b")
    assert one.digest == other.digest
    left, right = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == ["dataset.json"]  # the name of the directory


def test_statistics_are_those_of_the_training_rows(tmp_path: Path):
    """Validation and test rows a thousand times larger do not affect the statistics."""
    train = raw_frame(200)
    train.write_parquet(tmp_path / "train.parquet")
    for split in ("valid", "test"):
        large = train.with_columns(pl.col("price") * 1000, pl.col("age") * 1000)
        large.write_parquet(tmp_path / f"{split}.parquet")
    prepare(
        REGISTRY, {split: [tmp_path / f"{split}.parquet"] for split in ("train", "valid", "test")}, tmp_path / "out"
    )
    _, _, price, age = read_dataset(tmp_path / "out")[1].features
    assert price.fitted.mean == pytest.approx(train["price"].mean())
    assert max(age.fitted.boundaries) < 80


@pytest.mark.usefixtures("small_chunks")
def test_statistics_leave_out_held_out_rows(tmp_path: Path):
    frame = raw_frame(3000)
    frame.write_parquet(tmp_path / "raw.parquet")
    registry = FeatureRegistry.of(
        label="click", features={"price": "numeric", "n": {"type": "numeric", "transform": "none"}}
    )
    frame.with_columns(n=pl.arange(3000)).write_parquet(tmp_path / "raw.parquet")
    info = prepare(registry, {"train": [tmp_path / "raw.parquet"]}, tmp_path / "out", holdout=0.3)
    kept = rows_of(tmp_path / "out", info)["n"].cast(pl.Int64)
    assert 1000 < len(kept) < 1500
    fitted = read_dataset(tmp_path / "out")[1].features[0].fitted
    assert fitted.mean == pytest.approx(frame["price"].gather(kept).mean())
    assert fitted.mean != pytest.approx(frame["price"].mean(), rel=1e-9)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("given", "expected"), [([], {"train": 0.6, "valid": 0.2, "test": 0.2}), (["test"], {"train": 0.8, "valid": 0.2})]
)
def test_holding_out(tmp_path: Path, given: list[str], expected: dict[str, float]):
    num_rows = 5000
    frame = raw_frame(num_rows).with_columns(n=pl.arange(num_rows))
    frame.write_parquet(tmp_path / "raw.parquet")
    raw_frame(60).with_columns(n=-1).write_parquet(tmp_path / "test.parquet")
    registry = FeatureRegistry.of(label="click", features={"n": {"type": "numeric", "transform": "none"}})
    files = {"train": [tmp_path / "raw.parquet"]} | {split: [tmp_path / "test.parquet"] for split in given}
    info = prepare(registry, files, tmp_path / "out", holdout=0.2)
    assert list(info.splits) == ["train", "valid", "test"]
    assert info.split_rule == f"0.2 of the training rows each for {'valid' if given else 'valid, test'}, by position"
    numbers = {split: rows_of(tmp_path / "out", info, split)["n"].cast(pl.Int64).to_list() for split in expected}
    assert sorted(n for some in numbers.values() for n in some) == list(range(num_rows))
    for split, share in expected.items():
        assert numbers[split] == sorted(numbers[split])
        assert len(numbers[split]) / num_rows == pytest.approx(share, abs=0.03)
    # Held-out rows are spread evenly: half of them are in the first half of the file.
    assert np.mean(np.array(numbers["valid"]) < num_rows / 2) == pytest.approx(0.5, abs=0.06)


def test_a_given_validation_split_holds_nothing_out(tmp_path: Path, raw: Path):
    info = prepare(REGISTRY, {"train": [raw], "valid": [raw_copy(raw)]}, tmp_path / "out")
    assert {split: one.rows for split, one in info.splits.items()} == {"train": 700, "valid": 700}
    assert info.split_rule == "as given"


def test_a_source_without_a_split_rule_gets_the_one_that_was_used(tmp_path: Path, raw: Path):
    info = prepare(REGISTRY, {"train": [raw]}, tmp_path / "out", source=DatasetSource(name="shop"))
    assert (info.name, info.split_rule) == ("shop", "0.1 of the training rows each for valid, test, by position")
    source = DatasetSource(name="shop", split_rule="mine")
    assert prepare(REGISTRY, {"train": [raw]}, tmp_path / "other", source=source).split_rule == "mine"


def test_tokens_know_no_seed(tmp_path: Path, raw: Path):
    """Prepare once, then vary the table: seeds, sizes and probes do not affect the data."""
    for seed in (1, 2):
        registry = FeatureRegistry.of(
            label="click", seed=seed, features={"user": {"type": "categorical", "probes": seed}}
        )
        prepare(registry, {"train": [raw]}, tmp_path / str(seed))
    assert all(map(pl.DataFrame.equals, whole(tmp_path / "1"), whole(tmp_path / "2")))
    assert hash_text("u7") in whole(tmp_path / "1")[0]["user"]


@pytest.mark.parametrize("dtype", [pl.Int64, pl.Float32, pl.Boolean, pl.String])
def test_labels_of_any_type(tmp_path: Path, dtype):
    frame = pl.DataFrame({"label": pl.Series([1, 0, 1] * 30).cast(dtype), "a": ["x"] * 90})
    frame.write_parquet(tmp_path / "a.parquet")
    info = prepare(
        FeatureRegistry.of(features={"a": "categorical"}), {"train": [tmp_path / "a.parquet"]}, tmp_path / "o"
    )
    assert sum(split.rows * split.label_rate for split in info.splits.values()) == pytest.approx(60)


def test_overwriting(tmp_path: Path, raw: Path):
    out = tmp_path / "out"
    prepare(REGISTRY, {"train": [raw]}, out, part_rows=100)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="expected no dataset yet; found one; pass --overwrite"):
        prepare(REGISTRY, {"train": [raw]}, out)
    prepare(REGISTRY, {"train": [raw], "valid": [raw_copy(raw)]}, out, overwrite=True)
    assert sorted(tree(out)) == [
        "dataset.json",
        "notes.txt",
        "registry.json",
        "train/part-00000.parquet",
        "valid/part-00000.parquet",
    ]
    read_dataset(out, verify=True)


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("failure", ["bad value", "full disk at a part", "full disk at the end", "interrupt"])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_failure_midway_leaves_everything_as_it_was(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch, failure: str, is_there: bool
):
    out = tmp_path / "out"
    if is_there:
        prepare(REGISTRY, {"train": [raw]}, out)
    before = tree(tmp_path)
    expected: type[BaseException] = InputError
    if failure == "bad value":
        click = [*raw_frame(700)["click"].to_list()[:-1], 2]
        raw_frame(700).with_columns(click=pl.Series(click)).write_parquet(raw)
        before["raw.parquet"] = raw.read_bytes()
    elif failure == "full disk at a part":
        calls = iter(range(100))
        write = features.files.write_parquet
        monkeypatch.setattr(
            features.dataset.prepare,
            "write_parquet",
            lambda *a, **k: full_disk() if next(calls) == 2 else write(*a, **k),
        )
    elif failure == "full disk at the end":
        monkeypatch.setattr("features.files.os.fsync", full_disk)
    else:
        expected = KeyboardInterrupt

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(features.dataset.prepare, "_move_into_place", interrupt)
    with pytest.raises(expected) as caught:
        prepare(REGISTRY, {"train": [raw]}, out, overwrite=True, part_rows=100)
    if failure == "bad value":
        assert f"{raw}: label 'click': expected 0 or 1; found 2 in row 700; say in the registry" in str(caught.value)
    elif failure.startswith("full"):
        assert "found No space left on device; free space, or choose another output" in str(caught.value)
    monkeypatch.undo()
    assert tree(tmp_path) == before
    assert out.exists() == is_there


def test_a_move_that_was_cut_off_can_be_made_good(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch):
    """After a kill between two renames the directory is not a dataset, and the next run may replace it."""
    out = tmp_path / "out"
    prepare(REGISTRY, {"train": [raw]}, out)
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if Path(target) == out / "valid":
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        prepare(REGISTRY, {"train": [raw]}, out, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"expected a dataset; found no readable dataset.json there"):
        read_dataset(out)
    prepare(REGISTRY, {"train": [raw]}, out)
    read_dataset(out, verify=True)


def test_folders_that_no_dataset_owns_are_left_alone(tmp_path: Path, raw: Path):
    """A folder with `train/` in it may be a user's raw data."""
    (tmp_path / "train").mkdir()
    raw.rename(tmp_path / "train" / "raw.parquet")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="train would be replaced; found input files in it; choose another --out"):
        prepare(REGISTRY, {"train": [tmp_path / "train"]}, tmp_path, overwrite=True)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "precious.txt").write_text("x")
    (tmp_path / "train" / "raw.parquet").rename(tmp_path / "raw.parquet")
    (tmp_path / "train").rmdir()
    with pytest.raises(InputError, match="test would be replaced; found a folder that no dataset owns"):
        prepare(REGISTRY, {"train": [tmp_path / "raw.parquet"]}, tmp_path, overwrite=True)
    assert (tmp_path / "test" / "precious.txt").read_text() == "x"
    assert len(tree(tmp_path)) == len(before) + 1


def test_polars_reports_a_full_disk_as_an_os_error():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full; to have it: mknod -m 666 /dev/full c 1 7")
    with pytest.raises(OSError, match="No space left on device") as caught:
        features.files.write_parquet(pl.DataFrame({"a": [1, 2]}), Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC
