"""Output of `train`, `evaluate` and `export` beyond the metrics of a split: segments, and the prior correction."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data.synthetic import planted_frame
from experiments.runs import RUNS
from features.registry import FeatureRegistry
from recsys.config import with_overrides
from recsys.evaluation.metrics import auc, evaluate
from recsys.evaluation.predictions import Predictions
from recsys.runs.evaluate import CORRECTED, metrics_of
from recsys.runs.train import train_run
from tests.conftest import SMALL, read_scores
from tests.planted import write_dataset

RATE = 0.2


def test_the_report_has_segments_of_the_test_split(run):
    segments = pl.read_csv(run / "report" / "segments.csv")
    assert segments["feature"].unique(maintain_order=True).to_list() == ["f00", "f01", "f02", "f03", "l00"]
    assert segments.group_by("feature").agg(pl.col("rows").sum())["rows"].to_list() == [500] * 5
    whole = json.loads((run / "metrics.json").read_text())["test"]
    for figure in ("logloss", "calibration_ratio"):
        assert segments[figure].min() <= whole[figure] <= segments[figure].max()


def test_evaluate_by_a_feature(run, project, muxrec):
    result = muxrec("evaluate", run, "--by", "f03", "--json")
    segments = json.loads(result.out)["segments"]
    seen = pl.read_parquet(project / "train.parquet")["f03"].value_counts()
    rows = pl.read_parquet(project / "test.parquet").join(seen, on="f03", how="left")
    names = {"0": (0, 0), "1-9": (1, 9), "10-99": (10, 99), "100+": (100, 10**9)}
    inside = {name: pl.col("count").fill_null(0).is_between(*bounds) for name, bounds in names.items()}
    expected = {name: rows.filter(condition) for name, condition in inside.items()}
    assert {one["seen_in_train"]: (one["rows"], one["label_rate"]) for one in segments} == {
        name: (len(part), pytest.approx(part["label"].mean())) for name, part in expected.items() if len(part)
    }
    text = muxrec("evaluate", run, "--by", "f03").out
    assert "gAUC" in text
    assert "100+" in text
    assert "segments" not in json.loads(muxrec("evaluate", run, "--json").out)


@pytest.mark.parametrize("name", ["x00", "nobody"])
def test_segments_are_those_of_a_feature_with_tokens(name, run, muxrec):
    result = muxrec("evaluate", run, "--by", name)
    assert result.code == 2
    expected = f"muxrec: unknown categorical feature; found '{name}'; use one of f00, f01, f02, f03, l00"
    assert result.err.splitlines() == [expected]


def test_a_run_from_before_the_setting_is_the_same_run(run, dataset, muxrec):
    text = (run / "experiment.yaml").read_text()
    try:
        (run / "experiment.yaml").write_text(text.replace("negative_rate: 1.0\n", ""))
        assert "negative_rate" not in (run / "experiment.yaml").read_text()
        result = muxrec("train", "final_mlp", "--data", dataset, "--out", run, "--no-track", "--json", *SMALL)
        assert result.code == 0, result.err
    finally:
        (run / "experiment.yaml").write_text(text)


def test_the_corrected_ratio_by_hand():
    labels, groups, weights = np.float32([1, 0, 0]), None, np.float32([2, 1, 3])
    probabilities = np.array([0.5, 0.8, 0.2])
    corrected = [0.5 * 0.25 / 0.625, 0.8 * 0.25 / 0.4, 0.2 * 0.25 / 0.85]  # 1 - p + p r below
    expected = (2 * corrected[0] + 4 * corrected[1] + 12 * corrected[2]) / 2
    predictions = Predictions(labels, probabilities, groups, weights)
    found = metrics_of(predictions, 0.25)
    assert found.pop(CORRECTED) == pytest.approx(expected)
    assert found == metrics_of(predictions, 1.0) == evaluate(predictions)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> Path:
    """Planted rows, of whose negatives one in five is left, as `data`, a `run` on them, and `whole.parquet`."""
    directory = tmp_path_factory.mktemp("sampled")
    rows = planted_frame(60_000, seed=5, num_features=5, num_distinct=20)
    is_kept = (rows["label"] == 1).to_numpy() | (np.random.default_rng(6).random(len(rows)) < RATE)
    rows[40_000:].write_parquet(directory / "whole.parquet")
    registry = FeatureRegistry.of(features={f"f{number:02d}": "categorical" for number in range(5)})
    bounds = {"train": (0, 36_000), "valid": (36_000, 40_000), "test": (40_000, 60_000)}
    splits = {name: rows[start:stop].filter(is_kept[start:stop]) for name, (start, stop) in bounds.items()}
    data = write_dataset(directory, registry, splits)
    settings = ["trainer.epochs=4", "embedding.num_rows=4096", f"negative_rate={RATE}"]
    train_run(with_overrides(RUNS["logistic_regression"](), settings), data, directory / "run", track=False)
    return directory


def scores(muxrec, bundle: Path, sampled: Path, out: Path) -> np.ndarray:
    assert muxrec("score", bundle, "--input", sampled / "whole.parquet", "--out", out, "--json").code == 0
    return read_scores(out)["score"].to_numpy()


def test_a_model_of_down_sampled_negatives_scores_at_the_original_rate(sampled, muxrec, tmp_path):
    run, plain = sampled / "run", tmp_path / "plain"
    assert muxrec("export", run, "--out", plain, "--negative-rate", "1", "--json").code == 0
    labels = pl.read_parquet(sampled / "whole.parquet")["label"].to_numpy()
    corrected = scores(muxrec, run / "bundle", sampled, tmp_path / "corrected")
    uncorrected = scores(muxrec, plain, sampled, tmp_path / "uncorrected")
    assert corrected.mean() == pytest.approx(labels.mean(), rel=0.05)
    assert uncorrected.mean() > 1.5 * labels.mean()
    assert auc(Predictions.of(labels, corrected)) == pytest.approx(auc(Predictions.of(labels, uncorrected)), abs=1e-9)
    for bundle in (run / "bundle", plain):
        assert muxrec("verify", bundle).code == 0
        parity = muxrec("parity", run, bundle, "--input", sampled / "whole.parquet", "--json")
        assert parity.code == 0, parity.out
        assert json.loads(parity.out)["max_abs_diff"] < 1e-5


def test_metrics_are_of_the_sampled_split_but_for_one_that_estimates_the_whole(sampled, muxrec, tmp_path):
    metrics = json.loads((sampled / "run" / "metrics.json").read_text())["test"]
    assert metrics["calibration_ratio"] == pytest.approx(1, abs=0.05)
    whole = scores(muxrec, sampled / "run" / "bundle", sampled, tmp_path / "scores")
    labels = pl.read_parquet(sampled / "whole.parquet")["label"]
    assert metrics[CORRECTED] == pytest.approx(whole.sum() / labels.sum(), rel=0.03)
    again = json.loads(muxrec("evaluate", sampled / "run", "--json").out)
    assert {name: again[name] for name in metrics} == pytest.approx(metrics)


def test_segments_are_counted_in_the_data_of_training_whatever_is_evaluated(sampled, muxrec, tmp_path):
    few = {name: pl.read_parquet(sampled / f"{name}.parquet").head(300) for name in ("train", "valid")}
    registry = FeatureRegistry.from_json((sampled / "dataset" / "registry.json").read_text())
    data = write_dataset(tmp_path, registry, few)
    arguments = ("--split", "train", "--by", "f02", "--json")
    expected = json.loads(muxrec("evaluate", sampled / "run", *arguments).out)["segments"]
    found = json.loads(muxrec("evaluate", sampled / "run", *arguments, "--data", data).out)["segments"]
    assert {one["seen_in_train"] for one in found} <= {one["seen_in_train"] for one in expected} <= {"10-99", "100+"}
    moved = (sampled / "dataset").rename(sampled / "moved")
    try:
        assert muxrec("evaluate", sampled / "run", *arguments, "--data", moved).code == 0
        result = muxrec("evaluate", sampled / "run", *arguments, "--data", data)
        assert (result.code, len(result.err.splitlines())) == (2, 1)
    finally:
        moved.rename(sampled / "dataset")


def test_an_impossible_rate_is_one_line(run, dataset, muxrec, tmp_path):
    result = muxrec("export", run, "--out", tmp_path / "b", "--negative-rate", "0")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "negative_rate must be above 0 and at most 1; found 0.0" in result.err
    result = muxrec("train", "mlp", "--data", dataset, "--out", tmp_path / "r", "negative_rate=1.5")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "negative_rate" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_draft_of_a_registry_as_json(project, muxrec):
    text = muxrec("prepare", "--infer", project / "train.parquet").out
    result = muxrec("prepare", "--infer", project / "train.parquet", "--json")
    assert json.loads(result.out) == {"registry": text}
    assert "f03: categorical" in text
