"""Splits, atomic raw files, and the command wrapper that all dataset modules share."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import typer

from data.common import (
    PARTS,
    RawDataset,
    Split,
    build,
    check_sha256,
    find_file,
    first_line,
    part_codes,
    reading,
    registry_text,
    run,
    split_rows,
    split_rule,
    write_raw_dataset,
)
from features.dataset.info import DatasetSource, read_dataset
from features.errors import InputError
from features.registry import FeatureRegistry

ROWS = pl.DataFrame({"label": [0, 1] * 50, "user": [f"u{number}" for number in range(100)]})
SOURCE = DatasetSource(name="made up", source="this test", licence="none", split_rule="in file order 8:1:1")


def write(out: Path, rows: pl.DataFrame = ROWS) -> RawDataset:
    parts = split_rows(rows.lazy(), part_codes(len(rows), split=Split.IN_ORDER))
    return write_raw_dataset(out, parts, source=SOURCE, features={"user": "categorical"})


def test_a_random_split_is_the_permutation_cut_at_the_ratios() -> None:
    codes = part_codes(1_003, split=Split.RANDOM, seed=5)
    order = np.random.default_rng(5).permutation(1_003)
    assert set(np.flatnonzero(codes == 0)) == set(order[:802])
    assert set(np.flatnonzero(codes == 1)) == set(order[802:902])
    assert set(np.flatnonzero(codes == 2)) == set(order[902:])


def test_a_random_split_depends_on_the_seed_alone() -> None:
    one = part_codes(1_000, split=Split.RANDOM, seed=1)
    assert np.array_equal(one, part_codes(1_000, split=Split.RANDOM, seed=1))
    assert not np.array_equal(one, part_codes(1_000, split=Split.RANDOM, seed=2))


def test_criteo_x4_sizes() -> None:
    shares = np.bincount(part_codes(458_406, split=Split.IN_ORDER)).tolist()
    assert shares == [366_724, 45_841, 45_841]


@pytest.mark.parametrize("ratios", ["8:1", "8:1:0", "a:b:c", "", "8:1:1:1", "-8:1:1"])
def test_ratios_are_three_positive_integers(ratios: str) -> None:
    with pytest.raises(InputError, match=r"three positive integers; found .*; such as 8:1:1"):
        part_codes(100, split=Split.RANDOM, ratios=ratios)


def test_every_part_needs_a_row() -> None:
    with pytest.raises(InputError, match="found 4 rows"):
        part_codes(4, split=Split.RANDOM)


@pytest.mark.parametrize("split", list(Split))
def test_parts_are_disjoint_complete_and_in_file_order(split: Split) -> None:
    parts = split_rows(ROWS.lazy(), part_codes(100, split=split, seed=3))
    users = {part: rows.collect()["user"].to_list() for part, rows in parts.items()}
    assert [len(users[part]) for part in PARTS] == [80, 10, 10]
    assert sorted(name for names in users.values() for name in names) == sorted(ROWS["user"])
    for names in users.values():
        assert names == sorted(names, key=lambda name: int(name[1:]))


def test_split_rules_say_how_to_repeat_them() -> None:
    assert split_rule(Split.RANDOM, "8:1:1", 7) == "random 8:1:1, numpy default_rng(7).permutation over file order"
    assert split_rule(Split.IN_ORDER, "12:1:1", 7) == "in file order 12:1:1"


def test_raw_files_and_registry(tmp_path: Path) -> None:
    raw = write(tmp_path)
    assert raw.num_rows == {"train": 80, "valid": 10, "test": 10}
    assert raw.label_rates == {"train": 0.5, "valid": 0.5, "test": 0.5}
    assert pl.read_parquet(tmp_path / "raw" / "train.parquet").equals(ROWS.head(80))
    assert FeatureRegistry.from_yaml(raw.registry).features[0].name == "user"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "registry.yaml"]


@pytest.mark.parametrize(
    ("label", "message"),
    [(2, "train: every label must be 0 or 1; found 80"), (None, "found 80 that are not")],
)
def test_wrong_labels_are_refused_and_leave_nothing(tmp_path: Path, label: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(tmp_path, ROWS.with_columns(label=pl.lit(label, dtype=pl.Int64)))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_finished_dataset_as_it_was(tmp_path: Path) -> None:
    build(tmp_path, lambda: write(tmp_path), notice="none", overwrite=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    broken = ROWS.with_columns(label=pl.when(pl.col("user") == "u99").then(7).otherwise(pl.col("label")))
    with pytest.raises(InputError, match="test: every label"):
        build(tmp_path, lambda: write(tmp_path, broken), notice="none", overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_unreadable_source_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("label,user\n0,a\nx,b\n")
    rows = pl.scan_csv(tmp_path / "bad.csv", schema={"label": pl.Int8, "user": pl.String})
    with pytest.raises(InputError, match="expected the layout of made up; found could not parse `x`"):
        write_raw_dataset(tmp_path, dict.fromkeys(PARTS, rows), source=SOURCE, features={"user": "categorical"})


def test_build_makes_a_dataset_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []

    def counted() -> RawDataset:
        calls.append(1)
        return write(tmp_path)

    build(tmp_path, counted, notice="research only", overwrite=False)
    first = capsys.readouterr().out
    assert "Licence: research only" in first
    assert "train: 80 rows, label rate 0.50000" in first
    build(tmp_path, counted, notice="research only", overwrite=False)
    assert "finished already; nothing done (--overwrite" in capsys.readouterr().out
    assert len(calls) == 1
    build(tmp_path, counted, notice="research only", overwrite=True)
    assert len(calls) == 2
    info, registry = read_dataset(tmp_path, verify=True)
    assert {split: part.rows for split, part in info.splits.items()} == {"train": 80, "valid": 10, "test": 10}
    assert (info.name, info.licence, registry.label) == ("made up", "none", "label")


def test_out_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="--out must be a folder"):
        build(tmp_path / "file", lambda: write(tmp_path), notice="none", overwrite=False)


def test_checksums(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"abc")
    check_sha256(tmp_path / "blob", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", remedy="")
    with pytest.raises(InputError, match=r"blob: expected sha256 00; found ba7816bf.*; fetch it again"):
        check_sha256(tmp_path / "blob", "00", remedy="fetch it again")


def test_find_file(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("x")
    assert find_file(tmp_path, ("a.csv", "b.csv")) == tmp_path / "b.csv"
    assert find_file(tmp_path / "b.csv", ("a.csv",)) == tmp_path / "b.csv"
    with pytest.raises(InputError, match=r"expected a.csv or c.csv; found b.csv in .*; point --raw at"):
        find_file(tmp_path, ("a.csv", "c.csv"))
    with pytest.raises(InputError, match="--raw must exist"):
        find_file(tmp_path / "none", ("a.csv",))


def test_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    (tmp_path / "bad.gz").write_bytes(b"not an archive")
    assert first_line(tmp_path / "a.txt") == first_line(tmp_path / "a.gz") == "one"
    with pytest.raises(InputError, match=r"bad\.gz: expected text"):
        first_line(tmp_path / "bad.gz")


def test_registry_text_reads_back(tmp_path: Path) -> None:
    features = {"user": "categorical", "tags": {"type": "categorical_list", "separator": "|", "pooling": "sum"}}
    path = tmp_path / "registry.yaml"
    path.write_text(registry_text(features, group="user", comment="a dataset"))
    registry = FeatureRegistry.from_yaml(path)
    assert registry == FeatureRegistry.of(group="user", features=features)
    assert path.read_text().splitlines()[0] == "# a dataset"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "Missing option '--count'"), (["--count", "x"], "Invalid value"), (["--count", "-1"], "must be positive")],
)
def test_a_mistake_is_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(count: int = typer.Option(...)) -> None:
        if count < 0:
            raise InputError("count must be positive", found=str(count))

    with pytest.raises(SystemExit) as stop:
        run(command, arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_success_is_exit_0() -> None:
    with pytest.raises(SystemExit) as stop:
        run(lambda: None, [])
    assert stop.value.code == 0


def test_no_module_needs_the_other_packages() -> None:
    modules = ", ".join(f"data.{name}" for name in ("movielens", "frappe", "criteo", "avazu", "synthetic"))
    forbidden = {"torch", "recsys", "serving", "experiments", "pandas"}
    check = f"import sys, {modules}; print({forbidden} & set(sys.modules))"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "set()"


def test_a_full_disk_is_not_blamed_on_the_source() -> None:
    with (
        pytest.raises(InputError, match=r"can be read and written; found .*No space left on device .*; free space"),
        reading("the layout of made up"),
    ):
        ROWS.lazy().sink_parquet("/dev/full")


def test_an_interruption_is_exit_130() -> None:
    def command() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run(command, [])
    assert stop.value.code == 130
