"""Figures and tables of a run, as files: curves, ROC, reliability, collisions, the table's use.

n examples, M table rows.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np

mpl.use("Agg")  # figures are files; no screen is needed, and none is assumed

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.evaluate import CORRECTED
from recsys.collisions import CollisionReport
from recsys.curves import reliability_curve, roc_curve
from recsys.metrics import Predictions
from recsys.segments import Segment

BLUE, ORANGE, GREY = "#2a6f97", "#e07a3f", "#8d99ae"


class Judged(NamedTuple):
    """The split that the report is about: the test split, or the validation split where there is no other."""

    split: str
    predictions: Predictions
    metrics: Mapping[str, float]
    segments: Sequence[Segment]


def write_report(
    directory: Path,
    history: Sequence[Mapping[str, Any]],
    judged: Judged,
    collisions: CollisionReport,
    usage: np.ndarray,
) -> None:
    """Write all figures and tables of a run; `usage` holds the entries that read each row [M]."""
    directory.mkdir(parents=True, exist_ok=True)
    _save(directory / "curves.png", 2, lambda axes: _curves(axes, history))
    _save(directory / "roc.png", 1, lambda axes: _roc(axes[0], judged))
    _save(directory / "reliability.png", 1, lambda axes: _reliability(axes[0], judged))
    _save(directory / "row_usage.png", 1, lambda axes: _row_usage(axes[0], usage, collisions))
    _write_csv(directory / "segments.csv", [segment._asdict() for segment in judged.segments])
    (directory / "collisions.json").write_text(json.dumps(collisions.model_dump(), indent=1), encoding="utf-8")
    _write_csv(directory / "collisions.csv", collisions.rows())


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["feature"])
        writer.writeheader()
        writer.writerows(rows)


def _save(path: Path, columns: int, draw: Any) -> None:
    figure = Figure(figsize=(5.2 * columns, 3.8), layout="constrained")
    axes = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    draw(axes)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _curves(axes: Sequence[Axes], history: Sequence[Mapping[str, Any]]) -> None:
    epochs = [record["epoch"] for record in history]
    axes[0].plot(epochs, [record["train_loss"] for record in history], color=GREY, label="train loss")
    axes[0].plot(epochs, [record["valid_logloss"] for record in history], color=BLUE, label="valid logloss")
    axes[0].set(xlabel="epoch", title="loss")
    axes[0].legend(frameon=False)
    axes[1].plot(epochs, [record["valid_auc"] for record in history], color=BLUE, label="valid AUC")
    if all("valid_gauc" in record for record in history):
        axes[1].plot(epochs, [record["valid_gauc"] for record in history], color=ORANGE, label="valid gAUC")
    axes[1].set(xlabel="epoch", title="ranking")
    axes[1].legend(frameon=False)


def _roc(axes: Axes, judged: Judged) -> None:
    labels, probabilities, _, weights = judged.predictions
    false_positives, true_positives = roc_curve(labels, probabilities, weights=weights)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    axes.plot(false_positives, true_positives, color=BLUE)
    title = f"ROC, {judged.split}: AUC {judged.metrics['auc']:.4f}"
    title += f", gAUC {judged.metrics['gauc']:.4f}" if "gauc" in judged.metrics else ""
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title=title)


def _reliability(axes: Axes, judged: Judged) -> None:
    labels, probabilities, _, weights = judged.predictions
    curve = reliability_curve(labels, probabilities, weights=weights)
    top = float(max(curve.mean_probability.max(), curve.mean_label.max())) * 1.05
    axes.plot([0, top], [0, top], color=GREY, linestyle=":")
    axes.plot(curve.mean_probability, curve.mean_label, color=BLUE, marker="o", markersize=3)
    title = f"reliability, {judged.split}: ECE {judged.metrics['ece']:.4f}"
    title += ", before prior correction" if CORRECTED in judged.metrics else ""
    axes.set(xlabel="mean probability", ylabel="mean label", title=title)


def _row_usage(axes: Axes, usage: np.ndarray, collisions: CollisionReport) -> None:
    most = int(min(usage.max(initial=0), 40))
    counts = np.bincount(np.minimum(usage, most), minlength=most + 1)
    axes.bar(np.arange(len(counts)), counts, color=BLUE)
    title = f"{collisions.occupied:,} of {collisions.num_rows:,} rows read, load {collisions.load_factor:.2f}"
    axes.set(xlabel="entries that share a row", ylabel="rows", title=title)
