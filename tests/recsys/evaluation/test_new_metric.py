"""A new metric is a function and a line in METRICS: from then on a run, its card, comparisons and segments show it."""

import io
import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from recsys.cli.evaluate import segment_table
from recsys.config import Experiment
from recsys.evaluation.metrics import METRICS, Metric, evaluate, monitored
from recsys.evaluation.predictions import Predictions
from recsys.evaluation.segments import Segment, segment_columns
from recsys.sweep.report import TrialResult, in_order
from recsys.tracking.compare_page import LOCAL_UI, comparison_page
from recsys.tracking.compare_runs import TrackedRun, as_plain, compare_runs
from recsys.trainer import TrainerConfig


def hits(predictions: Predictions) -> float:
    """Share of the rows on the right side of one half."""
    return float(((predictions.probabilities > 0.5) == predictions.labels).mean())


@pytest.fixture
def made_up(monkeypatch) -> str:
    monkeypatch.setitem(METRICS, "hits", Metric(hits, True, "share of hits", 2))
    return "hits"


def tracked(number: int, metrics: dict[str, float], **params: str) -> TrackedRun:
    return TrackedRun(f"{number:032x}", "7", f"run {number}", "FINISHED", number, params, metrics, {"stage": "train"})


def test_it_is_evaluated(made_up):
    assert evaluate(Predictions.of([0, 1, 1, 0], [0.2, 0.9, 0.4, 0.1]))[made_up] == 0.75


def test_a_run_has_it_in_its_files(made_up, dataset, muxrec, tmp_path):
    run = tmp_path / "run"
    settings = ("trainer.epochs=1", "embedding.num_rows=64")
    result = muxrec("train", "logistic_regression", "--data", dataset, "--out", run, "--no-track", "--json", *settings)
    assert result.code == 0, result.err
    value = json.loads((run / "metrics.json").read_text())["test"][made_up]
    card = (run / "report" / "model_card.md").read_text()
    assert "share of hits" in card
    assert f"| {value:.2f} |" in card
    assert made_up in (run / "report" / "segments.csv").read_text().splitlines()[0].split(",")


def test_a_segment_table_has_it(made_up):
    assert segment_columns()[-1] == made_up
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(segment_table([Segment("user", "0", 3, 0.5, {**dict.fromkeys(METRICS), made_up: 0.25})]))
    assert "hits" in (text := console.export_text())
    assert "0.25" in text


def test_runs_are_compared_by_it_beside_older_ones_without_it(made_up):
    new = {"val/auc": 0.7, "test/auc": 0.7, "test/hits": 0.625}
    comparison = compare_runs("films", "7", [tracked(1, new, width="4"), tracked(2, {"val/auc": 0.6}, width="8")])
    first, second = as_plain(comparison)["rows"]
    assert first["figures"]["test/hits"]["mean"] == 0.625
    assert "test/hits" not in second["figures"]
    assert "share of hits" in comparison_page(comparison, LOCAL_UI)


def test_training_and_sweeps_can_monitor_it(made_up):
    config = TrainerConfig.model_validate({"monitor": made_up})
    assert monitored({made_up: 0.75}, config.monitor) == 0.75
    experiment = Experiment(name="films", model={"name": "mlp"}, trainer=config)
    trials = [
        TrialResult(number, "complete", score, 1, {}, Path(), {}, None) for number, score in enumerate((0.2, 0.8))
    ]
    assert [one.number for one in in_order(trials, experiment)] == [1, 0]


@pytest.mark.parametrize("name", ["calibration_ratio", "nonsense"])
def test_a_metric_without_a_direction_is_not_monitored(name):
    with pytest.raises(ValidationError, match=r"unknown metric to monitor; found .* use one of auc, gauc, logloss"):
        TrainerConfig.model_validate({"monitor": name})
