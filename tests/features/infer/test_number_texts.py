"""Drafts of text columns: numbers, weighted lists, identifiers."""

from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from features.dataset.fit import fit_registry
from features.dataset.prepare import prepare
from features.encode import encode_frame
from features.errors import InputError
from features.infer.column_facts import ColumnFacts
from features.infer.draft import draft_registry
from features.infer.rules import guess_feature
from features.io.csv_format import CsvFormat
from features.io.readers import read_chunks
from features.registry import FeatureRegistry
from tests.features.infer.drafts import draft_of, guess_of

INTEGER = "{type: categorical, value_type: integer}"
BOOLEAN = "{type: categorical, value_type: boolean}"
START = datetime(2017, 11, 7, 9, 5, 3, 250_000, tzinfo=UTC)
CLICK = np.random.default_rng(2).integers(0, 2, 80).tolist()
MOMENTS = [START + timedelta(days=17 * n, hours=7 * n, minutes=11 * n) for n in range(40)]


NUMBERS = {  # texts, their values, the decimal mark, what the reason says
    "comma": (["1,5", "20,25", "0,5"], [1.5, 20.25, 0.5], ",", "written as '1,5'"),
    "comma, or two values": (["1,5", "20,25", "3"], [1.5, 20.25, 3], ",", "(if these are lists: categorical_list)"),
    "comma and points": (["1.234,5", "7", "1.234.567"], [1234.5, 7, 1234567], ",", "written as '1.234,5'"),
    "dollars": (["$1,234.50", "$7", "-$3.25"], [1234.5, 7, -3.25], ".", "written as '$1,234.50'"),
    "euros": (["1.234,50 €", "7,00 €"], [1234.5, 7], ",", "written as '1.234,50 €'"),
    "percent": (["5%", "12.5%", "100 %"], [0.05, 0.125, 1], ".", "written as '5%'"),
    "thousands": (["950", "1,250", "12,500"], [950, 1250, 12500], ".", "'1,250' has thousands"),
    "only thousands": (["1,234", "5,678"], [1234, 5678], ".", "'1,234' has thousands"),
    "millions": (["1,234,567", "5,678"], [1234567, 5678], ".", "written as '1,234,567'"),
    "points of thousands": (["950", "1.250", "12.500"], [950, 1250, 12500], ",", "'1.250' has thousands"),
    "euros in thousands": (["€950", "€1.250", "€12.500"], [950, 1250, 12500], ",", "'1.250' has thousands"),
    "comma beside a large number": (["1234", "5,678"], [1234, 5.678], ",", "'5,678' has a decimal mark, as '1234'"),
    "comma after zero": (["0,123", "1,234"], [0.123, 1.234], ",", "written as '0,123'"),
    "blanks": (["1 234", "12 345 678"], [1234, 12345678], ".", "written as '1 234'"),
}


@pytest.mark.parametrize("is_delimited", [True, False])
@pytest.mark.parametrize("case", NUMBERS)
def test_written_numbers_are_read_and_the_evidence_is_said(tmp_path: Path, case: str, is_delimited: bool):
    texts, values, decimal, said = NUMBERS[case]
    facts = ColumnFacts.of(pl.Series("amount", texts * 20), is_delimited=is_delimited)
    assert facts.column.head(len(values)).to_list() == values
    guess = guess_feature(facts)
    assert guess.is_used
    assert guess.setting.startswith("{type: numeric, ")
    assert ('decimal: ","' in guess.setting) == (decimal == ",")
    assert said in guess.reason
    # The setting means the same to the encoder.
    feature = FeatureRegistry.of(features={"amount": {"type": "numeric", "transform": "none", "decimal": decimal}})
    assert feature.features[0].parse(pl.Series("amount", texts)).to_list() == pytest.approx(values)


def test_points_without_other_evidence_are_decimal():
    for texts in (["1.234", "2.5"], ["1.234", "5.678"], ["0.125", "1.250"]):
        facts = ColumnFacts.of(pl.Series("amount", texts * 20), is_delimited=True)
        assert facts.style is None
        assert facts.values.max() == max(map(float, texts))


def test_lists_of_numbers_are_no_thousands():
    ids = ["101,202", "303,404", "505", "101,404", "202,303,505", "404,505"]
    assert guess_of(ids * 20, "item_ids").setting == "categorical"
    lists = [",".join(map(str, sorted({n % 7, n % 4, n * n % 9}))) for n in range(60)]
    assert guess_of(lists).setting == '{type: categorical_list, separator: ","}'


WEIGHTED = "list of values with weights, which no feature type reads: keep the values alone, joined by "


@pytest.mark.parametrize(
    "texts", [["a:0.5|b:2.0", "c:1"], ["12:0.5 7:1", "3:0.25"], ["a=1;b=2", "c=3"], ["a:.5,b:1e-3", "c:2,a:1"]]
)
def test_values_with_weights_are_left_out_with_a_remedy(texts: list[str]):
    guess = guess_of(texts * 30, "interests")
    assert not guess.is_used
    assert guess.reason.startswith(WEIGHTED)


@pytest.mark.parametrize(
    "texts", [["09:30|10:15", "11:00"], ["host:8080", "host:80"], ["a:b|c:d", "e:f"], ["aa:bb:1", "cc:dd:2"]]
)
def test_other_colons_are_no_weights(texts: list[str]):
    assert "weights" not in guess_of(texts * 30).reason


IDS = {  # name of the column and values: few, many, measures, row identifiers
    "kind": [n % 7 for n in range(300)],
    "user_id": [n * n % 97 for n in range(300)],
    "n": [n * 37 % 101 + 20 for n in range(300)],
    "age": [n * 37 % 61 for n in range(300)],
    "visits": [n % 5 * (n % 3 == 0) for n in range(300)],
    "order_id": [100 + 0 * n for n in range(20)] + [n % 120 for n in range(280)],
}


@pytest.mark.parametrize("has_missing", [True, False])
@pytest.mark.parametrize("name", IDS)
def test_an_identifier_is_one_whatever_its_type(name: str, has_missing: bool):
    values = [None if has_missing and n % 10 == 3 else value for n, value in enumerate(IDS[name])]
    types = [pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.Int128, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64]
    types += [pl.Float32, pl.Float64, pl.Decimal(38, 0)]
    columns = [pl.Series(values).cast(dtype) for dtype in types]
    guesses = {guess_of(column, name, is_delimited=False) for column in columns}
    texts = [pl.Series(values).cast(dtype).cast(pl.String) for dtype in (pl.Int64, pl.Float64)]  # 128 and 128.0
    mixed = pl.Series([text if n % 2 else other for n, (text, other) in enumerate(zip(*texts, strict=True))])
    guesses |= {guess_of(column, name) for column in [*texts, mixed]}
    assert len(guesses) == 1
    assert guesses.pop().setting in (
        INTEGER,
        "{type: numeric, transform: log1p}",
        "{type: numeric, transform: standardize}",
    )


@pytest.mark.parametrize("dtype", [pl.Float32, pl.Float64, pl.String])
def test_identifiers_that_floats_have_damaged_are_left_out(dtype: type[pl.DataType]):
    ids = pl.Series([2.0**60 + 1e15 * (n % 9) for n in range(60)])
    guess = guess_of(ids.cast(dtype), "user_id")
    assert guess.reason.startswith("column of identifiers that a float cannot tell apart")
    assert guess_of(ids.cast(dtype), "revenue").is_used


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        (["128.0", "7"], INTEGER),
        (["128", "7"], INTEGER),
        (["true", "False"], BOOLEAN),
        (["TRUE", "FALSE"], BOOLEAN),
        (["02139", "10001"], "categorical"),
        (["A12", "12"], "categorical"),
        (["+128", "+7"], "categorical"),
        (["+128.0", "7.0"], "categorical"),
        (["12345678901234567.0", "7.0"], "categorical"),
        (["18446744073709551616", "1"], "categorical"),
        (["9" * 25, "2"], "categorical"),
        (["9223372036854775808", "1"], INTEGER),
        (["yes", "no"], "categorical"),
        (["1.0|2.0", "3.0|2.0", "1.0", "3.0|2.0|1.0"], '{type: categorical_list, separator: "|", value_type: integer}'),
        (["1|2", "3|2", "1", "3|2|1"], '{type: categorical_list, separator: "|"}'),
    ],
)
def test_letters_count_where_an_integer_is_not_meant(values: list[str], setting: str):
    assert guess_of(values * 30).setting == setting


def test_text_of_plain_integers_stays_text_in_a_file_with_types():
    assert guess_of(["128", "7"] * 30, is_delimited=False).setting == "categorical"
    assert guess_of(["128.0", "7.0"] * 30, is_delimited=False).setting == INTEGER
    assert guess_of(["1.5", "7.25", "3"] * 30, is_delimited=False).setting == "{type: numeric, transform: standardize}"


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        (
            pl.Series([[1, 2], [3], [], None] * 20, dtype=pl.List(pl.Int16)),
            "{type: categorical_list, value_type: integer}",
        ),
        (pl.Series([[1.0, 2.0], [None]] * 20), "{type: categorical_list, value_type: integer}"),
        (
            pl.Series([[1, 2], [3, 4]] * 20, dtype=pl.Array(pl.UInt8, 2)),
            "{type: categorical_list, value_type: integer}",
        ),
        (pl.Series([[True], [False]] * 20), "{type: categorical_list, value_type: boolean}"),
        (pl.Series([["1", "2"], ["3"]] * 20), "categorical_list"),
        (pl.Series([["a", "2"], ["3"]] * 20, dtype=pl.List(pl.Categorical)), "categorical_list"),
    ],
)
def test_native_lists(tmp_path: Path, values: pl.Series, setting: str):
    draft = draft_of(tmp_path, pl.DataFrame({"click": CLICK[: len(values)], "x": values}))
    assert f"  x: {setting} " in draft
    info = prepare(
        FeatureRegistry.from_yaml(tmp_path / "draft.yaml"), {"train": [tmp_path / "a.parquet"]}, tmp_path / "out"
    )
    assert sum(split.rows for split in info.splits.values()) == len(values)


UNUSUAL = {
    "nested": pl.Series([[[1]], [[2]]] * 20),
    "struct": pl.Series([{"a": 1}, {"a": 2}] * 20),
    "lists of structs": pl.Series([[{"a": 1}], []] * 20),
    "binary": pl.Series([b"a", b"b"] * 20),
    "object": pl.Series([object(), object()] * 20, dtype=pl.Object),
    "duration": pl.Series([timedelta(1), timedelta(2)] * 20),
    "time": pl.Series([time(1), time(2)] * 20),
    "null": pl.Series([None, None] * 20),
    "missing floats": pl.Series([float("nan"), None] * 20),
    "infinite": pl.Series([float("inf"), 1.5] * 20),
    "infinite alone": pl.Series([float("inf"), float("-inf")] * 20),
    "beyond float32": pl.Series([1e300, 1.5] * 20),
    "infinite words": pl.Series(["inf", "-inf", "1"] * 20),
    "fractions in lists": pl.Series([[0.5], [0.25, 1.0]] * 20),
    "empty lists": pl.Series([[], []] * 20, dtype=pl.List(pl.Int64)),
    "empty texts": pl.Series(["", ""] * 20),
    "blanks": pl.Series([" ", ""] * 20),
    "mixed blanks": pl.Series(["", "a"] * 20),
    "money": pl.Series([Decimal("1.00"), Decimal("2.00")] * 20, dtype=pl.Decimal(10, 2)),
    "large decimals": pl.Series([Decimal(10**37), Decimal(1)] * 20, dtype=pl.Decimal(38, 0)),
    "large integers": pl.Series([2**126, -(2**126)] * 20, dtype=pl.Int128),
    "enum": pl.Series(["a", "b"] * 20, dtype=pl.Enum(["a", "b"])),
    "half": pl.Series([1.0, 2.0] * 20, dtype=pl.Float16),
    "moment": pl.Series([START, MOMENTS[1]] * 20),
}
USED = {"blanks": True, "mixed blanks": True, "money": True, "large decimals": True, "large integers": True}
USED |= {"enum": True, "half": True}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_columns_are_left_out_with_a_reason_or_used(name: str):
    column = UNUSUAL[name].alias("x")
    frame = pl.DataFrame({"click": CLICK[: len(column)], "user": list("abcd") * (len(column) // 4)}).with_columns(
        column
    )
    draft = draft_registry(frame)
    assert ("\n  x: " in draft) == USED.get(name, False)
    assert ("\n  # x: " in draft) != USED.get(name, False)
    with_label = draft_registry(frame, label="x").splitlines()[1]
    assert with_label.startswith("label: ")


def test_pandas_frames_are_drafted_as_what_they_are():
    frame = pl.DataFrame(
        {
            "click": CLICK,
            "user_id": pl.Series([2**60 + n % 20 if n % 5 else None for n in range(80)]),
            "at": pl.Series(MOMENTS * 2),
            "flag": [True, None, False, True] * 20,
        }
    )
    draft = draft_registry(frame)
    assert f"\n  user_id: {INTEGER}  # codes, by its name; 16 values; 20.0% missing" in draft
    assert "\n  # at: categorical" in draft
    assert f"\n  flag: {BOOLEAN}" in draft


def test_what_pandas_writes_as_csv_is_drafted_as_its_parquet(tmp_path: Path):
    """pandas writes 128.0 for an integer in a column with a missing value, and True for a flag."""
    random = np.random.default_rng(5)
    frame = pl.DataFrame(
        {
            "click": random.integers(0, 2, 400),
            "item_id": pl.Series(random.integers(1, 90, 400).tolist()).scatter([3, 90], None),
            "is_new": pl.Series((random.random(400) < 0.5).tolist()).scatter([7], None),
            "price": random.gamma(2, 9, 400),
        }
    )
    frame.write_parquet(tmp_path / "a.parquet")
    pd.DataFrame({name: frame[name].to_list() for name in frame.columns}).to_csv(tmp_path / "a.csv", index=False)
    drafts = [draft_registry(tmp_path / f"a.{kind}") for kind in ("parquet", "csv")]
    assert "128.0" in (text := (tmp_path / "a.csv").read_text()) or ".0,True" in text
    assert drafts[0].splitlines()[1:] == drafts[1].splitlines()[1:]
    assert f"item_id: {INTEGER}" in drafts[0]
    assert f"is_new: {BOOLEAN}" in drafts[0]
    (tmp_path / "draft.yaml").write_text(drafts[1], encoding="utf-8")
    registry = FeatureRegistry.from_yaml(tmp_path / "draft.yaml")
    registry = fit_registry(registry, lambda: iter([frame]))
    encoded = [encode_frame(next(read_chunks(tmp_path / f"a.{kind}")), registry) for kind in ("parquet", "csv")]
    assert encoded[0].equals(encoded[1])


def test_numbers_with_a_word_in_between(tmp_path: Path):
    frame = pl.DataFrame({"label": [0, 1] * 45, "price": ["1.5", "2", "NA"] * 30})
    draft = draft_of(tmp_path, frame, "csv")
    assert "numbers but for 'NA': draft again with `--null-value` to make it numeric" in draft
    assert "numbers but for 'NA': make those null" in draft_of(tmp_path, frame)
    draft = draft_registry(tmp_path / "a.csv", csv=CsvFormat(null_values=("NA",)))
    assert "price: {type: numeric, transform: standardize}" in draft
    assert "csv: {null_values: [NA]}" in draft


@pytest.mark.parametrize(("separator", "option"), [(";", "';'"), ("\t", "tab"), ("|", "'|'")])
def test_another_separator(tmp_path: Path, separator: str, option: str):
    frame = pl.DataFrame({"click": CLICK, "price": ["1,5", "2,25", "3,75", "4"] * 20, "b": list("uvwx") * 20})
    frame.write_csv(tmp_path / "a.csv", separator=separator)
    with pytest.raises(InputError, match=r"a\.csv: expected several columns; found one, 'click.*price.*b'") as caught:
        draft_registry(tmp_path / "a.csv")
    assert str(caught.value).endswith(f"; pass `--separator {option}`")
    draft = draft_registry(tmp_path / "a.csv", csv=CsvFormat(separator=separator))
    (tmp_path / "draft.yaml").write_text(draft, encoding="utf-8")
    assert "\ncsv: {separator: " in draft
    assert '  price: {type: numeric, transform: standardize, decimal: ","}  # numbers from 1.5 to 4; ' in draft
    registry = FeatureRegistry.from_yaml(tmp_path / "draft.yaml")
    info = prepare(registry, {"train": [tmp_path / "a.csv"]}, tmp_path / "out")
    assert sum(split.rows for split in info.splits.values()) == len(frame)


def test_tabs_and_their_file(tmp_path: Path):
    frame = pl.DataFrame({"click": CLICK, "b": list("uvwx") * 20})
    frame.write_csv(tmp_path / "a.tsv", separator="\t")
    assert "csv:" not in draft_registry(tmp_path / "a.tsv")
    frame.write_csv(tmp_path / "a.tsv")
    with pytest.raises(InputError, match=r"found one, 'click,b'; rename it to \.csv and pass `--separator ','`"):
        draft_registry(tmp_path / "a.tsv")


def test_files_without_rows(tmp_path: Path):
    for name, text in {"empty.csv": "", "header.csv": "click,a\n"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=rf"{name}: expected rows"):
            draft_registry(tmp_path / name)
    with pytest.raises(InputError, match="expected rows; found none"):
        draft_registry(tmp_path)
    (tmp_path / "z.csv").write_text("click,a\n" + "0,x\n1,y\n1,z\n" * 9)
    assert "Drafted from 27 rows, the first ones of 3 of 3 files." in draft_registry(tmp_path)
