"""From raw files as users have them to scores: other labels, separators, formats and layouts, by the commands."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from features.dataset.info import read_dataset
from features.registry import FeatureRegistry

SMALL = ("trainer.epochs=1", "embedding.num_rows=4096", "--no-track", "--json")


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    """Planted clicks on a nullable integer id and a nullable flag, which a csv file of pandas has as 128.0 and True."""
    random = np.random.default_rng(0)
    user, flag = random.integers(100, 160, 3000), random.integers(0, 2, 3000)
    click = random.random(3000) < np.where((user + flag) % 2, 0.9, 0.1)
    frame = pd.DataFrame({"user": pd.array(user, dtype="Int64"), "flag": pd.array(flag == 1, dtype="boolean")})
    frame["price"] = np.float32(random.integers(1, 10, 3000) / 10)
    frame["click"] = click.astype(int)
    frame.loc[random.random(3000) < 0.05, ["user", "flag"]] = pd.NA
    return frame


def write_csv(log: pd.DataFrame, path: Path) -> Path:
    """As pandas does where a column of numbers or flags has nulls and is not a nullable type."""
    log.astype({"user": "float64", "flag": object}).to_csv(path, index=False)
    assert ".0,True," in path.read_text()
    return path


@pytest.mark.parametrize("trained_on", ["csv", "parquet"])
@pytest.mark.slow
def test_csv_of_pandas_scores_as_its_parquet(muxrec, log, tmp_path, trained_on):
    csv = write_csv(log, tmp_path / "log.csv")
    log.to_parquet(tmp_path / "log.parquet")
    train = tmp_path / f"log.{trained_on}"
    (tmp_path / "registry.yaml").write_text(muxrec("prepare", "--infer", train).out)
    registry = tmp_path / "registry.yaml"
    muxrec("prepare", "--registry", registry, "--train", train, "--out", tmp_path / "data", "--json")
    muxrec("train", "logistic_regression", "--data", tmp_path / "data", "--out", tmp_path / "run", *SMALL)
    scores = {}
    for file in (csv, tmp_path / "log.parquet"):
        out = tmp_path / f"scores-{file.suffix}"
        result = muxrec("score", tmp_path / "run" / "bundle", "--input", file, "--out", out, "--json")
        assert (result.code, json.loads(result.out)["warnings"]) == (0, []), result.err
        scores[file.suffix] = pl.read_parquet(f"{out}/*.parquet")["score"].to_numpy()
    # A standardised price is rounded to float32 differently; ids and flags are the same rows.
    np.testing.assert_allclose(scores[".csv"], scores[".parquet"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_unseen_values_give_a_warning(muxrec, log, tmp_path):
    """Without a value type every letter of a text counts: then 128.0 is unseen, and score and parity say so."""
    csv = write_csv(log, tmp_path / "log.csv")
    log.to_parquet(tmp_path / "log.parquet")
    registry = tmp_path / "registry.yaml"
    registry.write_text("label: click\nfeatures: {user: categorical, flag: categorical, price: numeric}\n")
    muxrec("prepare", "--registry", registry, "--train", tmp_path / "log.parquet", "--out", tmp_path / "data", "--json")
    run = tmp_path / "run"
    muxrec("train", "logistic_regression", "--data", tmp_path / "data", "--out", run, *SMALL)
    for file, expected in ((csv, ["user", "flag"]), (tmp_path / "log.parquet", [])):
        arguments = ("--input", file, "--json")
        score = muxrec("score", run / "bundle", *arguments, "--out", tmp_path / f"scores-{file.suffix}")
        parity = muxrec("parity", run, run / "bundle", *arguments)
        for result in (score, parity):
            assert result.code == 0, result.err
            warnings = [line for line in result.err.splitlines() if "warning" in line]
            assert [line.split(": ")[2] for line in warnings] == expected
            assert all("of the values are unseen, 0.0% in training" in line for line in warnings)


@pytest.mark.parametrize(
    ("setting", "values", "rate"),
    [
        ("positive: [4, 5]", [5.0, 4, 3, 2], 0.5),
        ("positive: ['4', 5]", ["5.0", "4.0", "3", "2.5"], 0.5),
        ("positive: [true]", ["True", "TRUE", "false", "False"], 0.5),
        ("positive: [true]", [True, True, False, False], 0.5),
        ("positive: [0.5]", [0.5, 0.25, 0.75, 0.1], 0.25),
        ("at_least: 0.7", np.array([0.7, 0.3, 0.9, 0.1], dtype=np.float32), 0.5),
        ("at_least: 3.6", np.array([3.6, 3.5, 4.1, 1], dtype=np.float32), 0.5),
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_rule_means_the_same_in_every_form(muxrec, tmp_path, setting, values, rate, suffix):
    frame = pd.DataFrame({"outcome": np.tile(values, 100), "user": np.arange(400) % 7})
    frame.to_parquet(tmp_path / "log.parquet") if suffix == "parquet" else frame.to_csv(
        tmp_path / "log.csv", index=False
    )
    registry = tmp_path / "registry.yaml"
    registry.write_text(f"label: {{column: outcome, {setting}}}\nfeatures: {{user: categorical}}\n")
    arguments = ("--registry", registry, "--train", tmp_path / f"log.{suffix}", "--out", tmp_path / "data", "--json")
    result = muxrec("prepare", *arguments)
    assert result.code == 0, result.err
    splits = read_dataset(tmp_path / "data")[0].splits.values()
    assert sum(split.rows * split.label_rate for split in splits) == pytest.approx(400 * rate)


LABELS = {
    "yes": ("yes", "no", "click"),
    "T": ("T", "F", "click"),
    "True": (True, False, "click"),
    "minus one": (1, -1, "click"),
    "rating": (5, 2.5, "{column: click, at_least: 4}"),
    "text": ("Canceled", "Not_Canceled", "{column: click, positive: [Canceled]}"),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv.gz", "json.gz"])
def test_labels_in_other_forms(muxrec, log, tmp_path, kind, suffix):
    positive, negative, setting = LABELS[kind]
    frame = pl.DataFrame(
        {"user": log["user"].astype(object).where(log["user"].notna(), None).to_list(), "click": log["click"].to_list()}
    )
    labels = [positive if one else negative for one in frame["click"]]
    frame = frame.with_columns(click=pl.Series(labels, strict=False))
    path = tmp_path / f"log.{suffix}"
    if suffix == "parquet":
        frame.write_parquet(path)
    elif suffix == "csv":
        frame.write_csv(path)
    else:
        text = frame.write_csv(separator="\t") if suffix == "tsv.gz" else frame.write_ndjson()
        path.write_bytes(gzip.compress(text.encode()))
    registry = tmp_path / "registry.yaml"
    registry.write_text(f"label: {setting}\nfeatures: {{user: {{type: categorical, value_type: integer}}}}\n")
    result = muxrec("prepare", "--registry", registry, "--train", path, "--out", tmp_path / "data", "--json")
    assert result.code == 0, result.err
    info, _ = read_dataset(tmp_path / "data")
    assert sum(split.rows * split.label_rate for split in info.splits.values()) == pytest.approx(log["click"].sum())


def test_options_go_before_the_registry(muxrec, tmp_path):
    text = "who;at;bought\n" + "".join(f"{'NA' if k % 7 == 0 else k % 5};{k};{k % 2}\n" for k in range(400))
    (tmp_path / "log.csv").write_text(text)
    wrong = muxrec("prepare", "--infer", tmp_path / "log.csv")
    assert wrong.code == 2
    assert "pass `--separator ';'`" in wrong.err
    options = ("--separator", ";", "--null-value", "NA", "--label", "bought")
    draft = muxrec("prepare", "--infer", tmp_path / "log.csv", *options)
    assert "csv: {separator: ;, null_values: [NA]}" in draft.out
    registry = tmp_path / "registry.yaml"
    registry.write_text("label: click\nfeatures: {who: {type: categorical, value_type: integer}}\n")
    arguments = ("--registry", registry, "--train", tmp_path / "log.csv", "--out", tmp_path / "data")
    result = muxrec("prepare", *arguments, *options, "--json")
    assert result.code == 0, result.err
    info, stored = read_dataset(tmp_path / "data")
    assert stored == FeatureRegistry.of(
        label="bought",
        csv={"separator": ";", "null_values": ["NA"]},
        features={"who": {"type": "categorical", "value_type": "integer"}},
    )
    assert info.splits["train"].missing_rates["who"] == pytest.approx(1 / 7, abs=0.04)
    wrong = muxrec("prepare", *arguments, "--separator", ";;")
    assert (wrong.code, "a separator is one ASCII character; found ';;'" in wrong.err) == (2, True)


def test_partition_columns_are_read_by_every_command(muxrec, log, tmp_path):
    for day in (1, 2):
        folder = tmp_path / "log" / f"day={day}"
        folder.mkdir(parents=True)
        log.iloc[day::2].to_parquet(folder / "part.parquet")
        (folder / "empty.csv").touch()
    assert "\n  day: {type: categorical, value_type: integer} " in muxrec("prepare", "--infer", tmp_path / "log").out
    registry = tmp_path / "registry.yaml"
    registry.write_text("label: click\nfeatures: {user: categorical, day: {type: categorical, value_type: integer}}\n")
    out = tmp_path / "data"
    result = muxrec("prepare", "--registry", registry, "--train", tmp_path / "log", "--out", out, "--json")
    assert result.code == 0, result.err
    assert pl.read_parquet(out / "train" / "*.parquet")["day"].n_unique() == 2
    log.assign(day=2).to_parquet(tmp_path / "log" / "day=1" / "part.parquet")
    result = muxrec("prepare", "--registry", registry, "--train", tmp_path / "log", "--out", out, "--overwrite")
    assert result.code == 2
    assert "expected 'day' to be '1', as its path says; found 2" in result.err


@pytest.mark.parametrize(("weights", "found"), [("0", "no row"), ("click", "only rows of label 1")])
def test_weights_that_leave_nothing_to_learn_are_refused(muxrec, log, tmp_path, weights, found):
    log.assign(weight=0.0 if weights == "0" else log["click"].astype(float)).to_parquet(tmp_path / "log.parquet")
    registry = tmp_path / "registry.yaml"
    registry.write_text("label: click\nweight: weight\nfeatures: {user: categorical}\n")
    arguments = ("--registry", registry, "--train", tmp_path / "log.parquet", "--out", tmp_path / "data")
    result = muxrec("prepare", *arguments)
    assert result.code == 2
    assert f"expected rows of both labels with a weight above 0; found {found}; check the weight" in result.err
    assert not (tmp_path / "data").exists()
