"""Frappe in parquet, csv and libfm, with made-up rows."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data import common, frappe
from data.frappe import COLUMNS, libfm_rows, write_raw
from features.dataset.info import read_dataset
from features.errors import InputError
from features.registry import FeatureRegistry

SIZES = {"train": 60, "valid": 25, "test": 15}


def made_up(part: str) -> pl.DataFrame:
    rng = np.random.default_rng(len(part))
    ids = {name: rng.integers(10 * place, 10 * place + 5, SIZES[part]) for place, name in enumerate(COLUMNS)}
    return pl.DataFrame({"label": rng.integers(0, 2, SIZES[part]), **ids})


EXPECTED = {part: made_up(part).cast(dict.fromkeys(COLUMNS, pl.String) | {"label": pl.Int8}) for part in SIZES}


def libfm(rows: pl.DataFrame, *, negative: str) -> str:
    return "".join(
        f"{'1' if label else negative} {' '.join(f'{value}:1' for value in ids)}\n" for label, *ids in rows.iter_rows()
    )


def source(folder: Path, layout: str) -> Path:
    folder.mkdir()
    for part in SIZES:
        rows = made_up(part)
        if layout == "parquet":
            rows.cast(pl.Int16).write_parquet(folder / f"{part}.parquet")
        elif layout == "csv":
            (folder / f"{part}.csv").write_text(rows.write_csv(line_terminator="\r\n"), newline="")
        elif layout == "libfm":
            name = {"valid": "validation"}.get(part, part)
            (folder / f"frappe.{name}.libfm").write_text(libfm(rows, negative="-1"))
        else:
            (folder / f"{part}.libsvm").write_text(libfm(rows, negative="0"))
    return folder


def written(out: Path) -> dict[str, pl.DataFrame]:
    return {part: pl.read_parquet(out / "raw" / f"{part}.parquet") for part in SIZES}


@pytest.mark.parametrize("layout", ["parquet", "csv", "libfm", "libsvm"])
def test_every_layout_gives_the_same_rows(tmp_path: Path, layout: str) -> None:
    raw = write_raw(tmp_path / "out", source(tmp_path / "raw", layout))
    for part, rows in written(tmp_path / "out").items():
        assert rows.equals(EXPECTED[part])
    assert raw.num_rows == SIZES
    assert raw.source.split_rule == "as given"


def test_all_columns_are_categorical_and_grouped_by_user(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "out", source(tmp_path / "raw", "csv"))
    registry = FeatureRegistry.from_yaml(raw.registry)
    assert [(feature.name, feature.type) for feature in registry.features] == [(c, "categorical") for c in COLUMNS]
    assert registry.group == "user"


def vocabulary() -> pl.DataFrame:
    ids = [(name, 10 * place + k) for place, name in enumerate(COLUMNS) for k in range(5)]
    named = [{"field": name, "feature_id": number, "raw_value": f"{name} {number}"} for name, number in ids]
    return pl.DataFrame(named)


def test_a_vocabulary_names_the_values(tmp_path: Path) -> None:
    raw = source(tmp_path / "raw", "parquet")
    vocabulary().write_parquet(raw / "vocab.parquet")
    described = write_raw(tmp_path / "out", raw)
    for part, rows in written(tmp_path / "out").items():
        named = EXPECTED[part].with_columns(pl.format(f"{name} {{}}", pl.col(name)).alias(name) for name in COLUMNS)
        assert rows.equals(named)
    assert "vocab.parquet" in described.source.source


def test_an_incomplete_vocabulary_is_refused(tmp_path: Path) -> None:
    raw = source(tmp_path / "raw", "parquet")
    vocabulary().filter(pl.col("feature_id") != 93).write_parquet(raw / "vocab.parquet")
    with pytest.raises(InputError, match="expected the layout of frappe; found incomplete mapping"):
        write_raw(tmp_path / "out", raw)
    assert not (tmp_path / "out" / "raw").exists()


@pytest.mark.parametrize("line", ["1 5:1", "2 " + "5:1 " * 10, "1 " + "5:0.5 " * 10, "1" + " a:1" * 10])
def test_libfm_lines_of_another_shape_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.libfm"
    path.write_text(f"1{' 5:1' * 10}\n{line}\n")
    with pytest.raises(InputError, match=r"x\.libfm: expected a label and 10 fields such as 451:1; found"):
        libfm_rows(path)


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected train\.parquet or train\.csv or .*; found nothing in"):
        write_raw(tmp_path / "out", tmp_path)
    raw = source(tmp_path / "raw", "csv")
    (raw / "valid.csv").unlink()
    with pytest.raises(InputError, match=r"expected train, valid and test files in .*; found not all of them"):
        write_raw(tmp_path / "out", raw)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    raw = source(tmp_path / "raw", "parquet")
    made_up("test").drop("weather").write_parquet(raw / "test.parquet")
    with pytest.raises(InputError, match=r"test\.parquet: expected 11 columns; found no weather among label, user"):
        write_raw(tmp_path / "out", raw)


def test_the_command_makes_a_dataset(tmp_path: Path) -> None:
    raw = source(tmp_path / "raw", "libfm")
    with pytest.raises(SystemExit) as stop:
        common.run(frappe.main, ["--raw", str(raw), "--out", str(tmp_path / "out")])
    assert stop.value.code == 0
    info, _ = read_dataset(tmp_path / "out", verify=True)
    assert {split: part.rows for split, part in info.splits.items()} == SIZES
