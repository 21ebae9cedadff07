"""Mistakes in preparing a dataset: one line with what was expected, what was found, and the remedy."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import features.dataset.prepare
from features.dataset.info import read_dataset
from features.dataset.prepare import prepare
from features.errors import InputError
from features.hashing import MISSING_TOKEN, hash_text
from features.registry import FeatureRegistry

NAN = float("nan")
FEATURES: dict[str, Any] = {
    "user": "categorical",
    "tags": {"type": "categorical_list", "separator": "|"},
    "price": {"type": "numeric", "transform": "log1p"},
}
ROWS: dict[str, list[Any]] = {
    "label": [0, 1, 1, 0, 1],
    "user": ["u", "v", None, "", "w"],
    "tags": ["a|b", "", None, "c", "a"],
    "price": [1.0, None, 2.5, 4.0, -1.0],
}
NUM_ROWS = 5 * 40  # enough for both labels in every held-out split


@pytest.fixture
def raw(tmp_path: Path) -> Callable[..., Path]:
    """Write the rows forty times, with some columns replaced, dropped (None) or added."""

    def write(kind: str = "parquet", **columns: Any) -> Path:
        frame = pl.DataFrame(
            {name: values for name, values in (ROWS | columns).items() if values is not None}, strict=False
        )
        path = tmp_path / f"raw.{kind}"
        getattr(pl.concat([frame] * 40), f"write_{kind}")(path)
        return path

    return write


def run(path: Path | str, registry: FeatureRegistry | None = None, **options: Any) -> pl.DataFrame:
    """The prepared training rows."""
    registry = registry or FeatureRegistry.of(features=FEATURES)
    out = Path(path).parent / "out"
    info = prepare(registry, {"train": [path]}, out, **options)
    return pl.concat(pl.read_parquet(out / part.file) for split in info.splits.values() for part in split.parts)


def refusal(path: Path | str, registry: FeatureRegistry | None = None, **options: Any) -> str:
    """The message, which is one line; checks that the refused command left nothing behind."""
    out = Path(path).parent / "out"
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(InputError) as caught:
        run(path, registry, **options)
    assert sorted(out.parent.rglob("*")) == before
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert caught.value.__cause__ is None
    return message


def test_the_good_case(raw: Callable[..., Path]):
    rows = run(raw())
    assert len(rows) == NUM_ROWS
    assert set(rows["user"]) == {hash_text("u"), hash_text("v"), hash_text("w"), hash_text(""), MISSING_TOKEN}


def test_missing_column(raw: Callable[..., Path]):
    path = raw(user=None)
    assert refusal(path) == (
        f"{path}: expected a column 'user'; found columns label, tags, price; correct the registry or the file"
    )
    assert "expected a column 'label'; found columns user, tags, price" in refusal(raw(label=None))
    registry = FeatureRegistry.of(features=FEATURES, group="shop", weight="w")
    assert "expected a column 'w'" in refusal(raw(), registry)


def test_unknown_columns_are_counted_and_ignored(raw: Callable[..., Path]):
    path = raw(extra=[1, 2, 3, 4, 5], junk=[[1]] * 5)
    run(path)
    info, _ = read_dataset(path.parent / "out")
    assert info.unknown_columns == ("extra", "junk")


@pytest.mark.parametrize(
    ("columns", "found", "remedy"),
    [
        (
            {"price": ["1", "2", "x", "4", "5"]},
            "expected a number; found 'x' in row 3",
            "declare it `categorical`",
        ),
        (
            {"price": [[1.0]] * 5},
            "expected a number; found a list (List(Float64))",
            "declare it `categorical`, or cast",
        ),
        (
            {"price": [1.0, 2.0, 3.0, float("inf"), NAN]},
            "expected finite numbers in float32's range; found inf in row 4",
            "make it null, or clip it before",
        ),
        (
            {"user": [1.0, NAN, 3.0, 1.5, 2.0]},
            "expected categories: text, integers or booleans; found the number 1.5 in row 4",
            "declare it `numeric`",
        ),
        (
            {"user": [1.0, NAN, 2.0**53, 1.0, 2.0]},
            "expected integers below 2^53 in a Float64 column; found 9007199254740992 in row 3",
            "store the column as integers or text",
        ),
        (
            {"user": [["a"]] * 5},
            "expected one value per row; found a list (List(String))",
            "declare it `categorical_list`",
        ),
        ({"user": [b"a"] * 5}, "expected categories: text, integers or booleans; found Binary", "cast it to text"),
        (
            {"tags": [1, 2, 3, 4, 5]},
            "expected a list column; found one value per row (Int64)",
            "declare it `categorical`",
        ),
        (
            {"tags": [[1.0], [2.0, 2.5], [], None, [3.0]]},
            "expected categories: text, integers or booleans; found the number 2.5 in row 2",
            "declare it `numeric`",
        ),
    ],
)
def test_a_value_that_its_feature_cannot_take(raw: Callable[..., Path], columns: dict, found: str, remedy: str):
    path = raw(**columns)
    message = refusal(path)
    name = next(iter(columns))
    assert message.startswith(f"{path}: column {name!r}: {found}; {remedy}")


def test_text_without_a_separator_is_no_list(raw: Callable[..., Path]):
    registry = FeatureRegistry.of(features={"tags": "categorical_list"})
    message = refusal(raw(), registry)
    assert "column 'tags': expected a list column; found text and no separator declared; set `separator:`" in message


def test_text_in_a_csv_number_is_named_with_its_row(raw: Callable[..., Path]):
    path = raw("csv", price=["1", "", " 2 ", "1,5", "3"])
    found = "expected a number; found '1,5' in row 4; set `decimal: \",\"` if a comma is the decimal mark"
    assert refusal(path).startswith(f"{path}: column 'price': {found}")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (
            [0, 1, 2, 0, 1],
            "found 2 in row 3; say in the registry what is positive: `label: {column: NAME, at_least",
        ),
        ([0, 1, None, 0, 1], "found null in row 3; drop those rows"),
        ([0.0, 1.0, 1.0, NAN, 0.5], "found nan in row 4; say in the registry"),
        ([0.0, 1.0, 1.0, 0.5, 1.0], "found 0.5 in row 4; say in the registry"),
        ([0, 1, -1, 0, 1], "found -1 as well as 0 in row 3"),
        (["0", "1", "1", "perhaps", "0"], "found 'perhaps' in row 4; say in the registry"),
        (["yes", "no", "-1", "yes", "no"], "found -1 as well as 0 in row 3"),
        (["0", "1", "", "1", "0"], "found an empty text in row 3"),
        ([[0]] * 5, "found List(Int64); name the right column under `label:`"),
    ],
)
def test_a_label_that_is_not_0_or_1(raw: Callable[..., Path], labels: list, found: str):
    path = raw(label=labels)
    message = refusal(path)
    assert message.startswith(f"{path}: label 'label': expected 0 or 1; found")
    assert found in message


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_a_label_of_text_files(raw: Callable[..., Path], kind: str):
    path = raw(kind, label=["0", "1", "wahr", "1", "0"])
    assert f"{path}: label 'label': expected 0 or 1; found 'wahr' in row 3; say in the registry" in refusal(path)


@pytest.mark.parametrize("value", [0, 1])
def test_a_label_of_one_class(raw: Callable[..., Path], value: int):
    message = refusal(raw(label=[value] * 5))
    assert message.startswith("split 'train': expected both labels, 0 and 1; found ")
    assert f"rows that are all {value}; check the label column, or take more rows" in message


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ([1.0, 2.0, -0.5, 1.0, 1.0], "found -0.5 in row 3; correct or drop those rows"),
        ([1.0, None, 1.0, 1.0, 1.0], "found null in row 2"),
        ([1.0, NAN, 1.0, 1.0, 1.0], "found nan in row 2"),
        ([1.0, 1.0, float("inf"), 1.0, 1.0], "found inf in row 3"),
        ([[1.0]] * 5, "found List(Float64); name the right column under `weight:`"),
    ],
)
def test_bad_weights(raw: Callable[..., Path], weights: list, found: str):
    message = refusal(raw(w=weights), FeatureRegistry.of(features=FEATURES, weight="w"))
    assert "weight 'w': expected finite numbers from 0; " in message
    assert found in message


def test_a_bad_group(raw: Callable[..., Path]):
    message = refusal(raw(g=[1.5, 2.0, 3.0, 4.0, 5.0]), FeatureRegistry.of(features=FEATURES, group="g"))
    assert "column 'g': expected categories: text, integers or booleans; found the number 1.5 in row 1" in message


def test_the_row_is_counted_in_the_file_and_not_in_the_chunk(raw: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    original = features.dataset.prepare.read_chunks
    monkeypatch.setattr(features.dataset.prepare, "read_chunks", lambda *a, **k: original(*a, **k, chunk_rows=8))
    good = raw()
    bad = good.with_name("second.parquet")
    labels = pl.Series([1, 0] * 50 + [3] + [0] * 99)
    pl.read_parquet(good).with_columns(label=labels).write_parquet(bad)
    with pytest.raises(InputError) as caught:
        prepare(FeatureRegistry.of(features=FEATURES), {"train": [good, bad]}, good.parent / "out")
    assert str(caught.value).startswith(f"{bad}: label 'label': expected 0 or 1; found 3 in row 101;")
    registry = FeatureRegistry.of(features={"price": "numeric"})  # the same in the pass that fits
    prices = pl.Series([1.0] * 77 + [float("inf")] + [2.0] * 122)
    pl.read_parquet(good).with_columns(price=prices).write_parquet(bad)
    with pytest.raises(InputError) as caught:
        prepare(registry, {"train": [good, bad]}, good.parent / "out")
    assert str(caught.value).startswith(
        f"{bad}: column 'price': expected finite numbers in float32's range; found inf in row 78;"
    )


def test_no_such_file(tmp_path: Path):
    for pattern in ("none.parquet", "*.csv", "data"):
        message = refusal(tmp_path / pattern)
        assert message.startswith(f"no file matches '{tmp_path / pattern}'; name a file, directory or glob of .parquet")


def test_empty_files(raw: Callable[..., Path], tmp_path: Path):
    for name in ("empty.csv", "empty.parquet", "empty.ndjson"):
        (tmp_path / name).touch()
        assert refusal(tmp_path / name) == "split 'train': expected rows; found none; check the input files"
    pl.read_parquet(raw()).clear().write_parquet(tmp_path / "none.parquet")
    assert refusal(tmp_path / "none.parquet") == "split 'train': expected rows; found none; check the input files"
    registry = FeatureRegistry.of(features={"price": "numeric"})
    assert "split 'train': expected rows; found none" in refusal(tmp_path / "none.parquet", registry)
    (tmp_path / "header.csv").write_text("label,user,tags,price\n")
    assert "split 'train': expected rows; found none" in refusal(tmp_path / "header.csv")
    good = raw()  # the rows of a good file next to them are used
    info = prepare(FeatureRegistry.of(features=FEATURES), {"train": [tmp_path / "*.*"]}, tmp_path / "out")
    assert sum(split.rows for split in info.splits.values()) == len(pl.read_parquet(good))


def test_too_few_rows_to_hold_any_out(tmp_path: Path):
    path = tmp_path / "few.parquet"
    pl.DataFrame(ROWS, strict=False).head(2).write_parquet(path)
    assert "split 'valid': expected rows; found none" in refusal(path)


def test_a_truncated_parquet_file(raw: Callable[..., Path]):
    path = raw()
    path.write_bytes(path.read_bytes()[:-20])
    message = refusal(path)
    assert message.startswith(f"{path}: expected a readable parquet file; found")
    assert message.endswith("the file is damaged or of another format: write it again")


@pytest.mark.parametrize(("line", "fields"), [("1,u,a", 3), ("1,u,a,2,9", 5)])
def test_a_ragged_csv_file(raw: Callable[..., Path], line: str, fields: int):
    path = raw("csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:40], line, *lines[40:]]) + "\n")
    found = f"{path}: expected 4 fields per row; found {fields} in line 41; correct or remove that line"
    assert refusal(path) == found
    # The same if the registry reads only some columns.
    assert refusal(path, FeatureRegistry.of(features={"user": "categorical"})) == found


def test_a_csv_file_with_another_separator(raw: Callable[..., Path]):
    path = raw("csv")
    path.write_text(path.read_text().replace(",", ";"))
    assert "found columns label;user;tags;price; separate the fields by commas" in refusal(path)


def test_a_csv_file_that_is_not_utf8(raw: Callable[..., Path]):
    path = raw("csv", user=["é"] * 5)
    path.write_bytes(path.read_text().encode("latin-1"))
    assert "found invalid utf-8 sequence; save it as UTF-8" in refusal(path)


def test_null_nan_and_the_empty_text_are_three_things_or_two(raw: Callable[..., Path]):
    """Null and NaN are missing; the empty text is a value."""
    assert run(raw(user=["", None, "", None, ""]))["user"].unique().len() == 2
    rows = run(raw(user=[NAN, None, 0.0, -0.0, 0.0]), overwrite=True)
    assert set(rows["user"]) == {MISSING_TOKEN, hash_text("0")}
    rows = run(raw("csv", user=["", None, "", None, ""]), overwrite=True)
    assert set(rows["user"]) == {MISSING_TOKEN, hash_text("")}


def test_long_and_astral_text(raw: Callable[..., Path]):
    values = ["\U0001f600", "x" * 2**20, "e\u0301", "\u200d", "a\x00b"]
    assert set(run(raw(user=values))["user"]) == {hash_text(value) for value in values}


@pytest.mark.parametrize("kind", ["parquet", "csv", "ndjson"])
def test_large_and_negative_integers(raw: Callable[..., Path], kind: str):
    values = [2**53, 2**53 + 1, -1, -(2**63), 2**63 - 1]
    assert set(run(raw(kind, user=values))["user"]) == {hash_text(str(value)) for value in values}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": {"label": "categorical"}}, "a name that is not reserved; found 'label'; rename the column"),
        ({"features": {"a": "numeric"}, "label": "a"}, "the label cannot be a feature; found 'a'; remove it from"),
        (
            {"features": {"a": {"key": "b"}, "b": "categorical"}},
            "feature keys must be unique; found key 'b' of 'b' and 'a'",
        ),
    ],
)
def test_duplicate_and_reserved_names(settings: dict[str, Any], message: str):
    with pytest.raises(InputError) as caught:
        FeatureRegistry.of(**settings)
    assert message in str(caught.value)


def test_a_csv_file_with_a_column_twice(tmp_path: Path):
    (tmp_path / "a.csv").write_text("label,user,user\n1,a,b\n0,a,b\n")
    registry = FeatureRegistry.of(features={"user": "categorical"})
    assert "a.csv: column names must be unique; found 'user' twice; rename one" in refusal(tmp_path / "a.csv", registry)


def test_an_output_that_cannot_be_written(raw: Callable[..., Path]):
    path = raw()
    (path.parent / "out").write_text("a file")
    assert "out: expected a directory to write to; found a file; choose another --out" in refusal(path)
    with pytest.raises(
        InputError, match=r"cannot write .*below; found Not a directory; check the path, or choose another"
    ):
        prepare(FeatureRegistry.of(features=FEATURES), {"train": [path]}, path.parent / "out" / "below")


def test_an_output_that_holds_a_dataset(raw: Callable[..., Path]):
    path = raw()
    run(path)
    assert "out: expected no dataset yet; found one; pass --overwrite, or choose another --out" in refusal(path)


def test_a_full_disk(raw: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    path = raw()

    def write(self: pl.DataFrame, *_: object, **__: object) -> None:
        # The message of polars.
        reason = f"No space left on device (os error {errno.ENOSPC})"
        raise pl.exceptions.ComputeError(f"parquet: File out of specification: underlying IO error: {reason}")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", write)
    assert refusal(path) == (
        f"cannot write {path.parent / 'out'}; found No space left on device; free space, or choose another output"
    )


def test_an_output_below_its_input_is_refused_the_first_time(raw: Callable[..., Path]):
    folder = raw().parent
    with pytest.raises(InputError, match=r"an output that is not an input too; found '.*', which names it"):
        prepare(FeatureRegistry.of(features=FEATURES), {"train": [folder]}, folder / "out")
    assert not (folder / "out").exists()


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_file_in_two_splits(raw: Callable[..., Path], split: str):
    path = raw()
    with pytest.raises(InputError, match=f"expected a file of one split; found train and {split}; a model must not be"):
        prepare(FeatureRegistry.of(features=FEATURES), {"train": [path], split: [path.parent]}, path.parent / "_out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": 0.5}, "holdout must be between 0 and 0.5; found 0.5"),
        ({"holdout": 0}, "holdout must be between 0 and 0.5; found 0"),
        ({"part_rows": 0}, "part_rows must be positive; found 0"),
    ],
)
def test_impossible_options(raw: Callable[..., Path], options: dict[str, Any], message: str):
    assert message in refusal(raw(), **options)


@pytest.mark.parametrize("splits", [{}, {"train": []}, {"valid": ["a.csv"]}])
def test_no_training_files(raw: Callable[..., Path], splits: dict):
    path = raw()
    splits = {name: [path] for name, files in splits.items() if files}
    with pytest.raises(InputError, match=r"expected training files; found splits \[.*\]; give --train GLOB"):
        prepare(FeatureRegistry.of(features=FEATURES), splits, path.parent / "out")
