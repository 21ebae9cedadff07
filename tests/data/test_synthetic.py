"""Planted data: the documented properties of the true probabilities hold."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data import common, synthetic
from data.synthetic import (
    CHUNK_ROWS,
    EXPONENT,
    TRUTH,
    Planted,
    bayes,
    planted_chunk,
    planted_chunks,
    planted_frame,
    planted_rows,
    power_law,
    write_raw,
)
from features.dataset.info import read_dataset
from features.errors import InputError
from features.registry import FeatureRegistry


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return planted_frame(200_000, seed=3, num_features=5, num_distinct=50, num_numeric=1, num_lists=1)


def test_columns_and_types(rows: pl.DataFrame) -> None:
    assert rows.columns == ["label", "f00", "f01", "f02", "f03", "f04", "l00", "x00", TRUTH]
    assert rows.schema == pl.Schema(Planted(num_features=5, num_numeric=1, num_lists=1).schema)
    assert set(rows["label"].unique()) == {0, 1}
    assert rows[TRUTH].is_between(0, 1, closed="none").all()
    assert rows["f00"].str.contains(r"^v\d+$").all()
    assert rows["x00"].null_count() / len(rows) == pytest.approx(0.05, abs=0.005)
    lengths = rows["l00"].str.count_matches("v")
    assert (lengths.min(), lengths.max()) == (0, 4)


def test_labels_follow_the_true_probabilities(rows: pl.DataFrame) -> None:
    bins = rows.group_by((pl.col(TRUTH) * 20).floor().alias("bin")).agg(
        pl.len(), pl.col("label").mean(), pl.col(TRUTH).mean(), (pl.col(TRUTH) * (1 - pl.col(TRUTH))).sum().alias("var")
    )
    z = (bins["label"] - bins[TRUTH]) * bins["len"] / bins["var"].sqrt()
    assert len(bins) == 20
    assert z.abs().max() < 4  # type: ignore[operator]


@pytest.mark.parametrize("name", ["f00", "f01"])
def test_the_interacting_features_have_no_effect_of_their_own(rows: pl.DataFrame, name: str) -> None:
    rate = rows["label"].mean()
    assert isinstance(rate, float)
    values = rows.group_by(name).agg(pl.len(), pl.col("label").mean())
    z = (values["label"] - rate) * (values["len"] / (rate * (1 - rate))).sqrt()
    assert z.abs().max() < 4  # type: ignore[operator]
    assert z.std() == pytest.approx(1, abs=0.35)  # 50 values: what chance alone leaves


def test_other_features_have_an_effect(rows: pl.DataFrame) -> None:
    rates = rows.group_by("f02").agg(pl.len(), pl.col("label").mean()).filter(pl.col("len") > 1000)["label"]
    assert rates.max() - rates.min() > 0.2  # type: ignore[operator]


def auc_of_rates(rows: pl.DataFrame, keys: list[str]) -> float:
    """AUC on the second half of summing, over `keys`, the first half's log-odds of that value."""
    train, test = rows.head(len(rows) // 2), rows.tail(len(rows) // 2)
    score = np.zeros(len(test))
    for key in keys:
        rate = train.group_by(key).agg(((pl.col("label").sum() + 1) / (pl.len() + 2)).alias("rate"))
        odds = test.join(rate, on=key, how="left", maintain_order="left")["rate"].fill_null(0.5).to_numpy()
        score += np.log(odds / (1 - odds))
    return bayes(test.with_columns(pl.Series(TRUTH, 1 / (1 + np.exp(-score)))))[0]


def test_a_linear_model_cannot_see_the_interaction() -> None:
    rows = planted_frame(200_000, seed=5, num_features=2, num_distinct=20)
    rows = rows.with_columns(pair=pl.col("f00") + "x" + pl.col("f01"))
    best = bayes(rows.tail(100_000))[0]
    assert best == pytest.approx(0.80, abs=0.02)
    assert auc_of_rates(rows, ["f00", "f01"]) == pytest.approx(0.5, abs=0.01)
    assert auc_of_rates(rows, ["pair"]) == pytest.approx(best, abs=0.01)


def test_signs_are_balanced_between_twins() -> None:
    rows = planted_frame(CHUNK_ROWS, num_features=2, num_distinct=10)
    numbers = rows["f00"].str.tail(-1).cast(pl.Int64)
    assert float((numbers % 2).mean()) == pytest.approx(0.5, abs=0.01)  # type: ignore[arg-type]
    high = pl.col(TRUTH) > 0.4  # sigma(-1 + 1.5) against sigma(-1 - 1.5)
    by_pair = rows.group_by("f00", "f01").agg(high.mean().alias("share"))
    assert set(by_pair["share"]) == {0.0, 1.0}
    assert float(rows.select(high.mean()).item()) == pytest.approx(0.5, abs=0.01)


def test_values_follow_the_power_law() -> None:
    num_rows, num_distinct = 200_000, 1_000
    counts = np.bincount(power_law(np.random.default_rng(1), num_rows, num_distinct).astype(int), minlength=1_000)
    edges = 1 - np.arange(1, num_distinct + 2.0) ** (1 - EXPONENT)
    expected = num_rows * np.diff(edges) / edges[-1]
    assert len(counts) == num_distinct
    assert np.abs((counts - expected) / np.sqrt(expected)).max() < 5
    ranks = np.arange(10, 100)
    slope = np.polyfit(np.log(ranks + 1), np.log(counts[ranks]), 1)[0]
    assert slope == pytest.approx(-EXPONENT, abs=0.1)


@pytest.mark.parametrize("num_distinct", [2, 3, 7, 10**9])
def test_values_stay_in_the_vocabulary(num_distinct: int) -> None:
    ranks = power_law(np.random.default_rng(1), 100_000, num_distinct)
    assert int(ranks.max()) < num_distinct
    assert set(range(2)) <= set(ranks[:1000].tolist())
    names = planted_frame(2_000, num_features=3, num_distinct=num_distinct)["f00"]
    assert names.str.tail(-1).cast(pl.Int64).max() < num_distinct  # type: ignore[operator]


def test_a_seed_gives_the_same_rows_always() -> None:
    one = planted_frame(1_000, seed=4, num_numeric=1, num_lists=1)
    assert one.equals(planted_frame(1_000, seed=4, num_numeric=1, num_lists=1))
    assert one.equals(planted_frame(70_000, seed=4, num_numeric=1, num_lists=1).head(1_000))
    assert not one["label"].equals(planted_frame(1_000, seed=5, num_numeric=1, num_lists=1)["label"])


def test_golden_rows() -> None:
    rows = planted_frame(3, seed=1, num_features=3, num_distinct=100, num_numeric=1, num_lists=1)
    assert rows.drop(TRUTH).rows() == [
        (0, "v11", "v89", "v21", "v0|v5", 1.6435),
        (0, "v79", "v2", "v4", "v5|v2", 0.7858),
        (0, "v1", "v0", "v94", "v19|v0|v17|v3", 1.0641),
    ]
    assert rows[TRUTH].to_list() == pytest.approx([0.6644968975710899, 0.19545789520488333, 0.03952191966657526])


def test_chunks_are_independent_of_each_other() -> None:
    planted = Planted(seed=2, num_distinct=30)
    together = planted_frame(2 * CHUNK_ROWS + 10, seed=2, num_distinct=30)
    assert together[CHUNK_ROWS : 2 * CHUNK_ROWS].equals(planted_chunk(planted, 1))
    assert together[2 * CHUNK_ROWS :].equals(planted_chunk(planted, 2).head(10))
    assert not planted_chunk(planted, 0).equals(planted_chunk(planted, 1))


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 5), (10, CHUNK_ROWS + 3), (CHUNK_ROWS, CHUNK_ROWS + 1), (CHUNK_ROWS - 1, CHUNK_ROWS + 1)]
)
def test_any_range_of_rows(start: int, stop: int) -> None:
    planted = Planted(num_features=2, num_distinct=30)
    expected = planted_frame(stop, num_features=2, num_distinct=30)[start:]
    assert pl.concat(planted_chunks(planted, start, stop)).equals(expected)
    query = planted_rows(planted, start, stop)
    assert query.collect().equals(expected)
    assert (
        query.filter(pl.col("label") == 1)
        .select("f00")
        .head(2)
        .collect()
        .equals(expected.filter(pl.col("label") == 1).select("f00").head(2))
    )


def test_no_rows() -> None:
    assert planted_frame(0).shape == (0, 10)


def test_raw_files_hold_the_truth_and_the_registry_does_not(tmp_path: Path) -> None:
    planted = Planted(seed=2, num_numeric=2, num_lists=1)
    raw = write_raw(tmp_path, num_rows=1_000, planted=planted)
    parts = [pl.read_parquet(raw.files[part]) for part in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [800, 100, 100]
    assert pl.concat(parts).equals(planted_frame(1_000, seed=2, num_numeric=2, num_lists=1))
    registry = FeatureRegistry.from_yaml(raw.registry)
    assert {feature.name for feature in registry.features} == set(parts[0].columns) - {"label", TRUTH}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"num_features": 1}, "num_features must be at least 2; found 1"), ({"num_distinct": 1}, "num_distinct must be")],
)
def test_sizes_that_cannot_be(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planted_frame(10, **sizes)


def test_the_command_makes_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--rows", "2000", "--features", "3", "--distinct", "9", "--numeric", "1"]
    for expected in ("synthetic is ready", "nothing done"):
        with pytest.raises(SystemExit) as stop:
            common.run(synthetic.main, arguments)
        output = capsys.readouterr().out
        assert stop.value.code == 0
        assert expected in output
        assert "best possible on 200 test rows: AUC 0." in output
    info, _ = read_dataset(tmp_path, verify=True)
    assert info.unknown_columns == (TRUTH,)
    assert info.splits["train"].rows == 1_600
