"""pandas, Arrow and polars frames mean the same rows to `prepare` and to `infer_registry`."""

import datetime
import decimal
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from features.dataset.prepare import prepare
from features.encode import encode_frame
from features.errors import InputError
from features.infer.draft import draft_registry, infer_registry
from features.io.frames import frame_of, is_frame
from features.registry import FeatureRegistry

REGISTRY = FeatureRegistry.of(
    label="click",
    group="user",
    weight="weight",
    features={"user": "categorical", "tags": "categorical_list", "price": "numeric", "kind": "categorical"},
)


def raw(num_rows: int = 60) -> pl.DataFrame:
    random = np.random.default_rng(3)
    return pl.DataFrame(
        {
            "click": random.integers(0, 2, num_rows),
            "user": [None if k == 7 else f"u{k}" for k in random.integers(0, 9, num_rows).tolist()],
            "tags": [
                None if k == 0 else [f"t{j}" for j in range(k - 1)] for k in random.integers(0, 5, num_rows).tolist()
            ],
            "price": [None if k < 0.1 else k for k in random.random(num_rows).tolist()],
            "kind": random.integers(0, 3, num_rows),
            "weight": random.random(num_rows),
            "other": [f"row {k}" for k in range(num_rows)],
        }
    )


def as_pandas(frame: pl.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({name: frame[name].to_list() for name in frame.columns})


FORMS: dict[str, Any] = {"polars": lambda frame: frame, "arrow": lambda frame: pa.table(frame), "pandas": as_pandas}


def contents(directory: Path) -> dict[str, Any]:
    """A dataset without its name and the parts' checksums, which depend on the writer's metadata."""
    document = json.loads((directory / "dataset.json").read_text(encoding="utf-8"))
    parts = {file.relative_to(directory): pl.read_parquet(file).to_dicts() for file in directory.rglob("*.parquet")}
    infos = {name: (split["rows"], split["missing_rates"]) for name, split in document["splits"].items()}
    return {"parts": parts, "splits": infos, "unknown": document["unknown_columns"]}


@pytest.mark.parametrize("form", FORMS)
def test_a_frame_is_prepared_as_its_file_is(tmp_path: Path, form: str) -> None:
    frame = raw()
    frame.write_parquet(tmp_path / "raw.parquet")
    from_file = prepare(REGISTRY, {"train": [tmp_path / "raw.parquet"]}, tmp_path / "file")
    from_frame = prepare(REGISTRY, {"train": FORMS[form](frame)}, tmp_path / "frame")
    assert from_frame.registry_fingerprint == from_file.registry_fingerprint
    assert contents(tmp_path / "frame") == contents(tmp_path / "file")
    assert from_frame.unknown_columns == ("other",)


def test_frames_and_files_may_be_mixed_by_split(tmp_path: Path) -> None:
    raw(30).write_parquet(tmp_path / "valid.parquet")
    info = prepare(REGISTRY, {"train": raw(), "valid": [tmp_path / "valid.parquet"], "test": raw(20)}, tmp_path / "out")
    assert {name: split.rows for name, split in info.splits.items()} == {"train": 60, "valid": 30, "test": 20}
    assert info.split_rule == "as given"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (raw().drop("user"), "the frame of 'train': expected a column 'user'; found columns click, tags"),
        (raw().head(0), "expected rows; found none"),
        (raw().with_columns(click=pl.lit(3)), "the frame of 'train': label 'click': expected 0 or 1; found 3 in row 1"),
        (as_pandas(raw()).assign(kind=[object()] * 60), "column 'kind': expected categories"),
    ],
)
def test_frames_that_cannot_be_prepared(tmp_path: Path, frame: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(REGISTRY, {"train": frame}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_registry_is_drafted_from_a_frame_as_from_its_file(tmp_path: Path, form: str) -> None:
    frame = raw(200)
    frame.write_parquet(tmp_path / "raw.parquet")
    of_file, of_frame = draft_registry(tmp_path / "raw.parquet"), draft_registry(FORMS[form](frame))
    assert of_frame.splitlines()[1:] == of_file.splitlines()[1:]
    assert of_frame.startswith("# Drafted from the first 200 rows of a frame. Read")
    (tmp_path / "registry.yaml").write_text(of_frame, encoding="utf-8")
    assert infer_registry(FORMS[form](frame)) == FeatureRegistry.from_yaml(tmp_path / "registry.yaml")


def test_what_cannot_be_drafted_from() -> None:
    with pytest.raises(InputError, match="the frame: expected rows; found none"):
        draft_registry(raw(0))
    with pytest.raises(InputError, match="the frame: expected a column 'nope'"):
        draft_registry(as_pandas(raw()), label="nope")
    with pytest.raises(InputError, match="column 'x': expected one column of that name; found 2"):
        frame_of(pd.DataFrame([[1, 2]], columns=["x", "x"]), (), None)


def test_what_is_a_frame() -> None:
    assert all(is_frame(FORMS[form](raw(3))) for form in FORMS)
    assert not any(is_frame(value) for value in ([], {}, "a.parquet", Path("a"), raw(3).lazy(), [{"user": 1}]))


def test_pandas_without_its_columns_keeps_its_rows() -> None:
    assert frame_of(pd.DataFrame({"x": [1, 2, 3]}), REGISTRY.features).height == 3


def test_pandas_needs_no_pyarrow() -> None:
    code = """
import sys
sys.modules["pyarrow"] = None
import pandas as pd
from features.infer import infer_registry
frame = pd.DataFrame({"click": [0, 1] * 20, "user": ["a", None, "b", "c"] * 10, "n": [1, "x", 2.0, None] * 10})
assert {feature.name for feature in infer_registry(frame).features} == {"user", "n"}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MOMENTS = pd.to_datetime(["2020-01-01 10:00", None, "2021-01-01 11:00"])
COLUMNS: dict[str, Any] = {
    "integers with nulls": pd.array([2**60 + 1, None, 3], dtype="Int64"),
    "large integers": pd.array([2**63 + 1, None, 3], dtype="UInt64"),
    "objects that are integers": pd.Series([2**60 + 1, None, 3], dtype=object),
    "arrow integers": pd.Series([2**60 + 1, None, 3], dtype="int64[pyarrow]"),
    "flags": pd.array([True, None, False], dtype="boolean"),
    "floats": pd.array([0.5, None, 2], dtype="Float64"),
    "texts": pd.array(["a", None, "b"], dtype="string"),
    "categories": pd.Categorical(["x", None, "y"]),
    "categories of integers": pd.Categorical([7, None, 8]),
    "lists": pd.Series([["a"], None, ["b", "c"]]),
    "arrow lists": pd.Series([[1], None, [2, 3]], dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
    "moments": MOMENTS,
    "moments of a zone": MOMENTS.tz_localize("Europe/Berlin"),
    "days": pd.Series([datetime.date(2020, 1, 1), None, datetime.date(2020, 1, 2)]),
    "durations": pd.to_timedelta(["1D", None, "2D"]),
    "decimals": pd.Series([decimal.Decimal("1.50"), None, decimal.Decimal(2)]),
    "bytes": pd.Series([b"x", None, b"y"]),
    "structs": pd.Series([{"a": 1}, None, {"a": 2}]),
    "nothing": pd.Series([None, None, None], dtype=object),
    "sparse": pd.arrays.SparseArray([0, 0, 1]),
    "mixed": pd.Series([7, "a", None], dtype=object),
    "complex": pd.Series([1 + 2j, 3, None]),
    "periods": pd.period_range("2020-01", periods=3, freq="M"),
    "intervals": pd.arrays.IntervalArray.from_breaks([0, 1, 2, 3]),
    "ragged": pd.Series([np.array(["a"]), None, np.array([1.5])]),
    "sets": pd.Series([{1}, None, {2}]),
    "objects": pd.Series([object(), None, object()]),
}
TYPES = ("categorical", "categorical_list", "numeric")


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_pandas_is_that_of_its_parquet_file(tmp_path: Path, kind: str) -> None:
    """The same tokens if parquet can hold the column and its feature takes it; otherwise an InputError."""
    frame = pd.DataFrame({"x": COLUMNS[kind]})
    try:
        frame.to_parquet(tmp_path / "x.parquet")
        of_file = pl.read_parquet(tmp_path / "x.parquet")
    except (ValueError, TypeError, pa.ArrowException, pl.exceptions.PolarsError):
        of_file = None
    for name in TYPES:
        registry = FeatureRegistry.of(
            features={"x": {"type": name} | ({"transform": "none"} if name == "numeric" else {})}
        )
        found = tokens_or_refusal(lambda registry=registry: frame_of(frame, registry.features), registry)
        if of_file is None:
            assert found is not None
        elif isinstance(expected := tokens_or_refusal(lambda: of_file, registry), pl.DataFrame):
            assert isinstance(found, pl.DataFrame)
            assert found.equals(expected)
        else:
            assert isinstance(found, str)


def tokens_or_refusal(raw: Callable[[], pl.DataFrame], registry: FeatureRegistry) -> pl.DataFrame | str:
    try:
        return encode_frame(raw(), registry)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("kind", COLUMNS)
def test_any_column_of_pandas_is_drafted_or_refused_in_one_line(kind: str) -> None:
    frame = pd.DataFrame({"x": COLUMNS[kind], "z": ["a", "b", "a"]})
    frame = pd.concat([frame] * 20, ignore_index=True).assign(y=[k * k % 7 % 2 for k in range(60)])
    assert "x: " in draft_registry(frame)


def test_nullable_integers_of_60_bits_are_identifiers(tmp_path: Path) -> None:
    user = pd.array([2**60 + k % 7 if k % 5 else None for k in range(210)], dtype="Int64")
    frame = pd.DataFrame({"user": user, "click": [k % 2 for k in range(210)], "at": pd.Timestamp("2020-01-01")})
    registry = infer_registry(frame)
    assert [(feature.name, feature.type) for feature in registry.features] == [("user", "categorical")]
    prepare(registry, {"train": frame}, tmp_path / "out")
    tokens = pl.read_parquet(tmp_path / "out" / "train")["user"]
    assert tokens.n_unique() == 8


def test_a_named_level_of_an_index_is_a_column() -> None:
    frame = pd.DataFrame({"user": [7, 8], "price": [1.5, 2.5], 3: ["a", "b"]}).set_index("user")
    registry = FeatureRegistry.of(features={"user": "categorical", "price": "numeric", "3": "categorical"})
    assert frame_of(frame, registry.features).to_dict(as_series=False) == {
        "user": [7, 8],
        "price": [1.5, 2.5],
        "3": ["a", "b"],
    }


def test_arrow_tables_that_no_frame_can_hold_are_one_line() -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(InputError, match="the frame: expected"):
        frame_of(table, ())
