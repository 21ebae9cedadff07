"""The report of a run: importance, figures, the model card, and what serving it costs."""

import csv
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from features.addressing import rows_of
from features.encode import encode_frame
from features.layout import TableLayout
from features.registry import FeatureRegistry
from recsys.batch import Batch
from recsys.compression.kept import KeptColumns, kept_by_feature
from recsys.config import Experiment
from recsys.dataset import Split, jagged
from recsys.embedding.mask import Mask
from recsys.evaluation.collisions import CollisionReport, FeatureCollisions
from recsys.evaluation.metrics import evaluate
from recsys.evaluation.permutation_importance import Importance, feature_importance, with_shuffled
from recsys.evaluation.predictions import Predictions
from recsys.evaluation.segments import Segment
from recsys.report import figures
from recsys.report.model_card import model_card
from recsys.report.write import EvaluatedSplit, write_report
from recsys.runs.process import ResourceMeter
from recsys.runs.run_directory import RunDirectory
from recsys.runs.serving_cost import serving_cost
from serving.scorer import Scorer
from tests.planted import write_dataset

# Importance


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_shuffling_moves_whole_bags_of_one_feature(bags, random):
    order = list(range(len(bags)))
    random.shuffle(order)
    lengths = np.array([len(bag) for bag in bags])
    values = np.array([value for bag in bags for value in bag], dtype=np.int64)
    ones = np.arange(len(bags)), np.ones(len(bags), dtype=np.int64)
    shuffled = with_shuffled(jagged(["l", "s"], [(values, lengths), ones], len(bags)), "l", np.array(order)).to_dict()
    ends = shuffled["l"].lengths().cumsum(0).tolist()
    found = [
        shuffled["l"].values().tolist()[end - n : end] for end, n in zip(ends, shuffled["l"].lengths(), strict=True)
    ]
    assert found == [bags[place] for place in order]
    assert shuffled["s"].values().tolist() == list(range(len(bags)))


class KnowsOne(torch.nn.Module):
    """A ranker whose logit is the parity of one feature's token, or a float column."""

    def __init__(self, feature: str) -> None:
        super().__init__()
        self.feature = feature

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits [B]."""
        if self.feature == "number":
            return batch.dense_features[:, 0]
        return (batch.sparse_features[self.feature].values() & 1).float() * 2 - 1


@pytest.fixture(scope="module")
def parity_data(tmp_path_factory) -> Path:
    """Rows whose label is the parity of `a`'s token nine times out of ten."""
    directory = tmp_path_factory.mktemp("parity")
    random = np.random.default_rng(0)
    registry = FeatureRegistry.of(features={"a": "categorical", "b": "categorical", "number": "numeric"})
    a, b = (random.integers(40, size=3000).astype(str) for _ in range(2))
    frame = pl.DataFrame({"a": a, "b": b, "number": random.normal(size=3000)})
    of_a = FeatureRegistry.of(features={"a": "categorical"})
    parity = (encode_frame(frame, of_a)["a"].to_numpy() & np.uint64(1)).astype(np.int8)
    label = np.where(random.random(3000) < 0.9, parity, 1 - parity)
    rows = frame.with_columns(label=pl.Series(label))
    return write_dataset(directory, registry, {"train": rows[:1000], "valid": rows[1000:]})


def test_only_what_a_ranker_reads_is_important(parity_data):
    """Of the known feature AUC falls from .9 to .5, as half of the pairs is what lots give; of the others nothing."""
    found = feature_importance(KnowsOne("a"), Split(parity_data, "valid"))
    assert found[0].feature == "a"
    assert found[0].auc_loss == pytest.approx(0.4, abs=0.04)
    assert found[0].logloss_gain > 0.1
    assert found[1:] == [Importance("b", 0.0, 0.0), Importance("number", 0.0, 0.0)]


def test_a_float_column_is_shuffled_too(parity_data):
    found = {one.feature: one for one in feature_importance(KnowsOne("number"), Split(parity_data, "valid"))}
    assert found["number"].auc_loss != 0
    assert found["a"] == Importance("a", 0.0, 0.0)


def test_of_one_class_nothing_is_said(parity_data):
    """A sample may have one class where clicks are rare."""
    split = Split(parity_data, "valid")
    batch = next(split.batches(100))
    rare = SimpleNamespace(
        registry=split.registry, batches=lambda *_, **__: iter([replace(batch, labels=torch.zeros(100))])
    )
    assert feature_importance(KnowsOne("a"), rare) == []  # type: ignore[arg-type]


# The card and the files


def judged_of(labels: np.ndarray, probabilities: np.ndarray) -> EvaluatedSplit:
    predictions = Predictions(labels.astype(np.float32), probabilities, None, None)
    segments = [
        Segment("user", "0", 30, 0.5, {"auc": 0.61, "logloss": 0.65, "ece": 0.1, "calibration_ratio": 1.2}),
        Segment("user", "1-9", 170, 0.4, {"auc": 0.71, "logloss": 0.6, "ece": 0.1, "calibration_ratio": 1.0}),
        Segment("film", "100+", 200, 0.42, {"auc": 0.7, "logloss": 0.61, "ece": 0.1, "calibration_ratio": 1.02}),
    ]
    importance = [Importance("user", 0.123, 0.2), Importance("film", -0.001, 0.0)]
    return EvaluatedSplit("test", predictions, evaluate(predictions), segments, importance)


REGISTRY = FeatureRegistry.of(label="clicked", features={"user": "categorical", "film": "categorical"})
EXPERIMENT = Experiment(name="films", seed=3, model={"name": "mlp", "hidden": [8]})
PERF = {
    **{"samples_per_s": 51_234.5, "epochs": 7, "best_epoch": 5, "peak_memory_mb": 812.0},
    **{"bundle_bytes": 1_437_000.0, "table_bytes": 8_200.0, "score_ms": 0.3126, "score_100_ms": 1.25},
}
COLLISIONS = CollisionReport(
    num_rows=500,
    entries=260,
    load_factor=0.52,
    expected_occupied=203.0,
    occupied=201,
    features=[
        FeatureCollisions(
            feature=name,
            distinct=distinct,
            load=0.1,
            share_of_reads=0.5,
            expected_intra=0.1,
            measured_intra=0.125,
            expected_inter=0.3,
            measured_inter=0.25,
            indistinguishable=0,
        )
        for name, distinct in (("user", 40), ("film", 25))
    ],
)


def info_of(*splits: str) -> SimpleNamespace:
    sizes = {name: SimpleNamespace(rows=200, label_rate=0.42) for name in splits}
    return SimpleNamespace(
        name="films", source="a shop", licence="ask first", split_rule="by day", digest="d" * 32, splits=sizes
    )


@pytest.fixture(scope="module")
def judged() -> EvaluatedSplit:
    """Two hundred rows whose probabilities are a fifth too high."""
    random = np.random.default_rng(1)
    truth = random.uniform(0.2, 0.6, 200)
    return judged_of(random.random(200) < truth, np.minimum(truth * 1.25, 1))


def card_of(
    judged: EvaluatedSplit, *splits: str, experiment: Experiment = EXPERIMENT, kept: tuple[KeptColumns, ...] = ()
) -> str:
    metrics = {**{name: dict(judged.metrics) for name in splits if name != "train"}, "perf": PERF}
    return model_card(experiment, info_of(*splits), REGISTRY, metrics, judged, COLLISIONS, kept)  # type: ignore[arg-type]


def test_the_card_has_what_a_stranger_must_know(judged):
    card = card_of(judged, "train", "valid", "test")
    headings = re.findall(r"^## (.+)$", card, flags=re.MULTILINE)
    assert headings == [
        *("Data", "Metrics", "Metrics by segment", "Features", "Size and speed", "Limits", "How to score"),
    ]
    for told in ("a shop", "ask first", "by day", "`clicked` is 1", "| train | 200 | 0.4200 |"):
        assert told in card
    assert f"| test | {judged.metrics['auc']:.4f} |" in card
    assert f"{judged.metrics['calibration_ratio']:.4f}" in card
    assert "| user | 0 | 30 | 0.5000 | 0.6100 | 0.6500 | 1.2000 |" in card
    assert "| user | +0.1230 | 40 | 12.5 | 25.0 |" in card
    assert "| bundle on disk | 1,437 kB |" in card
    assert "| training | 51,234 examples/s, 7 epochs |" in card
    assert "muxrec score BUNDLE" in card
    assert "rows kept" not in card  # nothing was pruned


def test_the_card_warns_of_what_the_figures_show(judged):
    card = card_of(judged, "train", "valid", "test")
    limits = card.partition("## Limits")[2].partition("## How")[0]
    assert "Probabilities are high on average" in limits
    assert "15.0 % of test have a `user` that training never saw (AUC 0.6100)" in limits
    assert "no test split" not in limits
    well = judged_of(judged.predictions.labels, judged.predictions.probabilities / 1.25)
    assert "high on average" not in card_of(well, "train", "valid", "test")
    sampled = EXPERIMENT.model_copy(update={"negative_rate": 0.1})
    assert "share 0.1 of the negatives" in card_of(judged, "train", "valid", "test", experiment=sampled)


def test_the_card_of_a_run_without_a_test_split_says_so(judged):
    card = card_of(judged._replace(split="valid"), "train", "valid")
    assert "There is no test split" in card
    assert "| test |" not in card


def test_the_card_of_a_pruned_run_says_what_is_kept(judged):
    card = card_of(judged, "train", "valid", "test", kept=(KeptColumns("user", 10, 40, 4, 16),))
    assert "| user | +0.1230 | 40 | 12.5 | 25.0 | 10 of 40 | 4 of 16 |" in card


def test_what_a_mask_keeps_by_feature():
    """Three values of `a` read rows 0, 1 and 1 by hand; row 1 is removed, and `a` uses one of two columns."""
    registry = FeatureRegistry.of(features={"a": "categorical"})
    layout = TableLayout.of(registry, num_rows=2, width=2, probes=1, views={"main": ("a",)})
    tokens = np.arange(1, 60, dtype=np.uint64)
    rows = rows_of(layout, None, "a", tokens)[0]
    of_row = [tokens[rows == row] for row in (0, 1)]
    chosen = np.sort(np.concatenate([of_row[0][:1], of_row[1][:2]]))
    mask = Mask(torch.tensor([2, 0]), torch.tensor([1]))
    assert kept_by_feature(layout, mask, {"a": (chosen, 3)}, None) == [KeptColumns("a", 1, 2, 1, 2)]
    assert kept_by_feature(layout, mask, {"a": (of_row[1][:2], 2)}, None) == [KeptColumns("a", 0, 1, 1, 2)]


def test_every_figure_and_table_is_written(judged, tmp_path):
    history = [{"epoch": 1, "train_loss": 0.7, "valid_logloss": 0.69, "valid_auc": 0.6}]
    usage = np.array([0, 1, 3, 100])
    write_report(tmp_path / "report", history, 1, judged, COLLISIONS, usage, (KeptColumns("user", 10, 40, 4, 16),))
    found = {path.name: path.stat().st_size for path in (tmp_path / "report").iterdir()}
    names = ("curves", "roc", "reliability", "scores", "gain_lift", "importance", "row_usage", "collisions", "kept")
    assert {name for name in found if name.endswith(".png")} == {f"{name}.png" for name in names}
    assert all(3_000 < found[f"{name}.png"] < 150_000 for name in names)
    with (tmp_path / "report" / "importance.csv").open(newline="") as file:
        assert [line["feature"] for line in csv.DictReader(file)] == ["user", "film"]
    with (tmp_path / "report" / "kept.csv").open(newline="") as file:
        assert next(csv.DictReader(file)) == {
            **{"feature": "user", "rows": "10", "of_rows": "40", "columns": "4", "of_columns": "16"}
        }


def drawn(draw: Callable[..., None], *contents: Any, **options: Any) -> list[Axes]:
    """Axes as `save` draws them, with the places of all they show."""
    kept: list[Axes] = []

    def keep(axes: Axes | Sequence[Axes], *contents: Any) -> None:
        draw(axes, *contents)
        kept.extend([axes] if isinstance(axes, Axes) else axes)

    figures.save(Path(os.devnull), keep, *contents, **options)
    return kept


@pytest.fixture
def no_file(monkeypatch) -> None:
    """Figures are drawn, and not written."""
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: self.draw_without_rendering())


@pytest.mark.parametrize(("num_epochs", "best"), [(1, 1), (2, 1), (3, 0), (40, 16)])
def test_curves_have_whole_epochs_names_on_their_axes_and_the_best_epoch(no_file, num_epochs, best):
    history = [
        {"epoch": epoch, "train_loss": 0.7 / epoch, "valid_logloss": 0.6 / epoch, "valid_auc": 1 - 0.5 / epoch}
        for epoch in range(1, num_epochs + 1)
    ]
    for one in drawn(figures.curves, history, best, num_axes=2):
        low, high = one.get_xlim()
        shown = [tick for tick in one.get_xticks() if low <= tick <= high]
        assert shown
        assert all(tick == int(tick) for tick in shown)
        assert min(low, best) == low < 1
        assert one.get_xlabel() == "epoch"
        assert one.get_ylabel()
        (mark,) = [line for line in one.lines if line.get_linestyle() == ":"]
        assert list(np.array(mark.get_xdata())) == [best, best]
        assert mark.get_label() == f"best epoch: {best}"
        assert all(line.get_marker() == "o" for line in one.lines if line is not mark)  # one epoch has no line to see


@pytest.mark.parametrize("num_features", [1, 2, 30])
def test_collisions_show_the_expected_shares_and_no_legend_covers_a_bar(no_file, num_features):
    features = [
        COLLISIONS.features[0].model_copy(
            update={"feature": f"customer_segment_{k}_of_the_last_week", "measured_inter": 1.0}
        )
        for k in range(num_features)
    ]
    report = COLLISIONS.model_copy(update={"features": features})
    (axes,) = drawn(figures.collisions, report, left=figures.NAMES)
    intra, inter = (one.get_segments() for one in axes.collections if isinstance(one, LineCollection))
    assert [{x for x, _ in stroke} for stroke in intra] == [{0.1}] * num_features
    assert [{x for x, _ in stroke} for stroke in inter] == [{0.3}] * num_features
    figure = axes.get_figure()
    assert figure is not None
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert [text.get_text() for text in legend.get_texts()][2] == "expected of uniform hashing"
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1
    assert not any(bar.get_window_extent().overlaps(box) for bar in axes.patches)
    assert all(text.get_window_extent().x0 >= 0 for text in axes.get_yticklabels())


def test_the_last_bar_of_shared_rows_says_what_it_holds(no_file):
    (few,) = drawn(figures.row_usage, np.array([0, 1, 3]), COLLISIONS)
    assert few.get_xlabel() == "entries that share a row"
    assert "201 of 500 rows read (203 expected)" in few.get_title()
    (many,) = drawn(figures.row_usage, np.array([0, 1, 300]), COLLISIONS)
    assert "last bar: 40 or more" in many.get_xlabel()


# What a run costs


def test_a_run_has_its_card_its_costs_and_its_importance(run):
    directory = RunDirectory(run)
    perf = directory.metrics()["perf"]
    files = {path.name: path.stat().st_size for path in directory.bundle.iterdir()}
    assert perf["table_bytes"] == files["table.safetensors"]
    assert perf["table_bytes"] < perf["bundle_bytes"] <= sum(files.values())
    assert 0 < perf["score_ms"] <= perf["score_100_ms"] * 2  # a hundred rows are not quicker than one, but for noise
    card = (directory.report / "model_card.md").read_text()
    assert f"{perf['bundle_bytes'] / 1000:,.0f} kB" in card
    with (directory.report / "importance.csv").open(newline="") as file:
        features = {line["feature"] for line in csv.DictReader(file)}
    assert features == {feature.name for feature in directory.registry().features}


def test_the_cost_of_a_bundle_needs_the_bundle_alone(run):
    assert set(serving_cost(Scorer(run / "bundle"))) == {"bundle_bytes", "table_bytes", "score_ms", "score_100_ms"}


def test_the_meter_counts_the_work_since_it_was_asked_last():
    meter = ResourceMeter()
    meter.used()
    total = sum(number * number for number in range(400_000))
    used = meter.used()
    assert total > 0
    assert 0.05 < used["system/cores_used"] < 1.5
    assert 10 < used["system/memory_mb"] < 100_000
