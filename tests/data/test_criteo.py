"""Criteo's text and parquet layouts, with made-up rows."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data import common, criteo
from data.common import Split
from data.criteo import CATEGORICAL, COLUMNS, NUMERIC, Protocol, write_raw
from features.dataset.info import read_dataset
from features.encode import encode_frame
from features.errors import InputError
from features.hashing import token_of_text
from features.registry import FeatureRegistry

NUM_ROWS = 300


def made_up() -> pl.DataFrame:
    rng = np.random.default_rng(4)
    columns: dict[str, pl.Series] = {"label": pl.Series(rng.integers(0, 2, NUM_ROWS), dtype=pl.Int8)}
    for name in NUMERIC:
        values = pl.Series(rng.integers(-3, 5000, NUM_ROWS), dtype=pl.Int64)
        columns[name] = values.set(pl.Series(rng.random(NUM_ROWS) < 0.3), None)
    for name in CATEGORICAL:
        texts = pl.Series([f"{number:08x}" for number in rng.integers(0, 2**32, NUM_ROWS)])
        columns[name] = texts.set(pl.Series(rng.random(NUM_ROWS) < 0.3), None)
    return pl.DataFrame(columns)


ROWS = made_up()
TEXT = ROWS.write_csv(separator="\t", include_header=False)


def save(path: Path, text: str = TEXT) -> Path:
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def written(out: Path) -> list[pl.DataFrame]:
    return [pl.read_parquet(out / "raw" / f"{part}.parquet") for part in ("train", "valid", "test")]


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
def test_in_order_split_of_the_text(tmp_path: Path, name: str) -> None:
    save(tmp_path / name)
    raw = write_raw(tmp_path / "out", tmp_path, split=Split.IN_ORDER, ratios="12:1:1")
    parts = written(tmp_path / "out")
    assert [len(part) for part in parts] == [257, 21, 22]
    assert pl.concat(parts).equals(ROWS)
    assert parts[0].columns == COLUMNS
    assert raw.source.split_rule == "in file order 12:1:1"


def test_random_split_of_the_text(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "out", save(tmp_path / "train.txt"), seed=9)
    order = np.random.default_rng(9).permutation(NUM_ROWS)
    for part, low, high in zip(written(tmp_path / "out"), (0, 240, 270), (240, 270, 300), strict=True):
        assert part.equals(ROWS[np.sort(order[low:high]).tolist()])
    assert "default_rng(9)" in raw.source.split_rule


def test_windows_line_ends(tmp_path: Path) -> None:
    write_raw(tmp_path / "out", save(tmp_path / "train.txt", TEXT.replace("\n", "\r\n")), split=Split.IN_ORDER)
    assert pl.concat(written(tmp_path / "out")).equals(ROWS)


def test_a_given_split_is_kept(tmp_path: Path) -> None:
    rows = ROWS.cast(dict.fromkeys(NUMERIC, pl.Int32)).with_columns(Id=pl.lit(1))
    for part, low, high in (("train", 0, 100), ("valid", 100, 180), ("test", 180, 300)):
        rows[low:high].write_parquet(tmp_path / f"{part}.parquet")
    raw = write_raw(tmp_path / "out", tmp_path)
    parts = written(tmp_path / "out")
    assert [len(part) for part in parts] == [100, 80, 120]
    assert pl.concat(parts).cast(dict.fromkeys(NUMERIC, pl.Int64)).equals(ROWS)
    assert raw.source.split_rule == "as given"


def test_x4_lowers_numbers_to_the_log_square_token(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "out", save(tmp_path / "train.txt"))
    registry = FeatureRegistry.from_yaml(raw.registry)
    values = [None, -2, 0, 1, 2, 3, 100, 101, 5000]
    buckets = [None, "-2", "0", "1", "2", "1", "21", "21", "72"]  # floor(ln(x)^2) above 2
    frame = pl.DataFrame({name: pl.Series([None] * 9, dtype=pl.String) for name in CATEGORICAL}).with_columns(
        pl.Series(name, values, dtype=pl.Int64) for name in NUMERIC
    )
    expected = pl.DataFrame({"text": buckets}).select(token_of_text(pl.col("text")))["text"].to_list()
    encoded = encode_frame(frame, registry)
    assert encoded["I1"].to_list() == encoded["I13"].to_list() == expected
    assert len(registry.token_features) == 39


def test_log1p_keeps_numbers_as_floats(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "out", save(tmp_path / "train.txt"), protocol=Protocol.LOG1P)
    registry = FeatureRegistry.from_yaml(raw.registry)
    assert [feature.name for feature in registry.dense_features] == NUMERIC
    assert raw.source.name == "criteo-log1p"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(line.split("\t", 1)[1] for line in TEXT.splitlines()), "40 fields .*; found 39 in the first line"),
        (TEXT[:-200], "found .* in the last line; give a whole train.txt"),
        (TEXT.replace("\t", ","), "found 1 in the first line"),
        (TEXT + "0\tx" + "\t" * 38 + "\n", "expected .*; found could not parse `x` as dtype `i64` at column 'I1'"),
        (TEXT + "3" + "\t" * 39 + "\n", "every label must be 0 or 1; found 1 that are not"),
        (TEXT + "0" + "\t" * 45 + "\n", "expected .*; found .*"),
        ("", "found 1 in the first line"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_raw(tmp_path / "out", save(tmp_path / "train.txt", text), split=Split.IN_ORDER)
    assert not (tmp_path / "out" / "raw").exists()


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "train.txt.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match="expected a whole file in the published layout; found"):
        write_raw(tmp_path / "out", path)


def test_the_command_makes_a_dataset(tmp_path: Path) -> None:
    arguments = ["--raw", str(save(tmp_path / "train.txt")), "--out", str(tmp_path / "out"), "--split", "in-order"]
    with pytest.raises(SystemExit) as stop:
        common.run(criteo.main, arguments)
    assert stop.value.code == 0
    info, _ = read_dataset(tmp_path / "out", verify=True)
    assert {split: part.rows for split, part in info.splits.items()} == {"train": 240, "valid": 30, "test": 30}
    assert info.name == "criteo-x4"
