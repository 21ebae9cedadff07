"""Avazu's csv and parquet layouts, with made-up rows."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data import avazu, common
from data.avazu import COLUMNS, HOUR_PARTS, PUBLISHED, hour_parts, write_raw
from data.common import Split
from features.dataset.info import read_dataset
from features.errors import InputError
from features.registry import FeatureRegistry

NUM_ROWS = 200


def made_up() -> pl.DataFrame:
    rng = np.random.default_rng(6)
    hours = [f"1410{day}{hour:02d}" for day, hour in rng.integers([21, 0], [31, 24], (NUM_ROWS, 2))]
    columns = {
        "id": [str(number) for number in range(10**18, 10**18 + NUM_ROWS)],
        "click": rng.integers(0, 2, NUM_ROWS),
        "hour": hours,
    }
    return pl.DataFrame(columns | {name: [f"{n:08x}" for n in rng.integers(0, 2**31, NUM_ROWS)] for name in PUBLISHED})


ROWS = made_up()
CSV = ROWS.write_csv()


def save(path: Path, text: str = CSV) -> Path:
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def written(out: Path) -> list[pl.DataFrame]:
    return [pl.read_parquet(out / "raw" / f"{part}.parquet") for part in ("train", "valid", "test")]


def assert_made_of(parts: list[pl.DataFrame], rows: pl.DataFrame) -> None:
    together = pl.concat(parts)
    assert together.columns == ["label", *COLUMNS]
    assert together["label"].to_list() == rows["click"].to_list()
    assert together.select(PUBLISHED).equals(rows.select(PUBLISHED))
    assert together["hour_of_day"].to_list() == [int(hour[6:]) for hour in rows["hour"]]


@pytest.mark.parametrize(
    ("hour", "expected"),
    [
        ("14102100", (0, "tuesday", False)),
        ("14102523", (23, "saturday", True)),
        ("14102612", (12, "sunday", True)),
        ("14103109", (9, "friday", False)),
        ("15010100", (0, "thursday", False)),
    ],
)
def test_hour_parts(hour: str, expected: tuple[int, str, bool]) -> None:
    assert pl.select(hour_parts(pl.lit(hour))).row(0) == expected


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz", "train.gz"])
def test_in_order_split_of_the_csv(tmp_path: Path, name: str) -> None:
    save(tmp_path / name)
    raw = write_raw(tmp_path / "out", tmp_path, split=Split.IN_ORDER)
    parts = written(tmp_path / "out")
    assert [len(part) for part in parts] == [160, 20, 20]
    assert_made_of(parts, ROWS)
    assert not {"id", "hour", "click"} & set(parts[0].columns)
    registry = FeatureRegistry.from_yaml(raw.registry)
    assert [(feature.name, feature.type) for feature in registry.features] == [(c, "categorical") for c in COLUMNS]
    assert len(COLUMNS) == 24
    assert COLUMNS[:3] == HOUR_PARTS


def test_random_split_of_the_csv(tmp_path: Path) -> None:
    write_raw(tmp_path / "out", save(tmp_path / "train.csv"), seed=2)
    order = np.random.default_rng(2).permutation(NUM_ROWS)
    for part, low, high in zip(written(tmp_path / "out"), (0, 160, 180), (160, 180, 200), strict=True):
        assert_made_of([part], ROWS[np.sort(order[low:high]).tolist()])


def test_a_given_split_is_kept(tmp_path: Path) -> None:
    rows = ROWS.rename({"click": "label"})
    for part, low, high in (("train", 0, 90), ("valid", 90, 140), ("test", 140, 200)):
        rows[low:high].write_parquet(tmp_path / f"{part}.parquet")
    raw = write_raw(tmp_path / "out", tmp_path)
    assert_made_of(written(tmp_path / "out"), ROWS)
    assert raw.num_rows == {"train": 90, "valid": 50, "test": 60}
    assert raw.source.split_rule == "as given"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("id,click,hour", "id,clicked,hour", "expected the header of train.csv; found no click in 'id, clicked, hour"),
        (CSV.split(",")[0] + ",click,hour,C1", "id,click,hour,X", "found no C1"),
        (CSV[-30:], "", "train.csv: expected 24 fields per line, separated by ','; found .* in the last line"),
        ("1410", "14-0", "expected the layout of avazu; found conversion from `str` to `date` failed"),
        ("1410", "1413", "expected the layout of avazu; found conversion from `str` to `date` failed"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in CSV
    with pytest.raises(InputError, match=message):
        write_raw(tmp_path / "out", save(tmp_path / "train.csv", CSV.replace(old, new)))
    assert not (tmp_path / "out" / "raw").exists()


def test_the_command_makes_a_dataset(tmp_path: Path) -> None:
    save(tmp_path / "train.csv.gz")
    with pytest.raises(SystemExit) as stop:
        common.run(avazu.main, ["--raw", str(tmp_path / "train.csv.gz"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 0
    info, _ = read_dataset(tmp_path / "out", verify=True)
    assert {split: part.rows for split, part in info.splits.items()} == {"train": 160, "valid": 20, "test": 20}
