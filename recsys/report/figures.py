"""Figures of a run. Each function draws on given axes; `save` makes them and writes the file.

n examples, M table rows. Margins are fixed: matplotlib's own layout engines double the time that a figure takes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

mpl.use("Agg")  # figures are files and need no screen

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recsys.evaluation.collisions import CollisionReport
from recsys.evaluation.curves import gain_curve, reliability_curve, roc_curve
from recsys.evaluation.metrics import CORRECTED, METRICS
from recsys.evaluation.permutation_importance import Importance
from recsys.evaluation.predictions import Predictions
from serving.svg import shortened

if TYPE_CHECKING:
    from recsys.compression.kept import KeptColumns

BLUE, ORANGE, GREY = "#2a6f97", "#e07a3f", "#8d99ae"
WIDTH, HEIGHT = 5.2, 3.8
"""Inches of one pair of axes."""
PLAIN, NAMES = 0.82, 1.8
"""Inches to the left of the axes, for numbers and for names."""
FEW, LETTERS = 15, {9: 21, 6: 30}
"""Names that are shown in a large font, and the letters of a name that each font has room for."""
CURVES = ((0, "logloss", BLUE), (1, "auc", BLUE), (1, "gauc", ORANGE))
"""Axes, metric and colour of each line of validation metrics by epoch."""
MOST_SHARING = 40
"""Most entries per row that its figure shows apart."""
MOST_BARS = 30
"""Features that a figure has room for; its table has all."""


def save(path: Path, draw: Callable[..., None], *contents: Any, num_axes: int = 1, left: float = PLAIN) -> None:
    """Draw `contents` on axes, or on several side by side, and write a PNG; `left` is a margin, PLAIN or NAMES."""
    width = WIDTH * num_axes
    figure = Figure(figsize=(width, HEIGHT))
    axes = list(figure.subplots(1, num_axes, squeeze=False)[0])
    figure.subplots_adjust(left=left / width, right=1 - 0.15 / width, bottom=0.14, top=0.91, wspace=0.25)
    draw(axes if num_axes > 1 else axes[0], *contents)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def curves(axes: Sequence[Axes], history: Sequence[Mapping[str, Any]], best_epoch: int) -> None:
    """Losses and ranking by epoch; the best epoch, whose weights are kept, is 0 if no epoch improved on the start."""
    epochs = [record["epoch"] for record in history]
    shown = [best_epoch, *epochs]  # none where nothing was trained, as for low-bit rows
    lines = [
        (axes[0], "train_loss", GREY, "train loss"),
        *((axes[number], f"valid_{name}", color, f"valid {METRICS[name].title}") for number, name, color in CURVES),
    ]
    for one, key, color, name in lines:
        if all(key in record for record in history):
            # A single epoch has no line, and is seen by its dot alone.
            one.plot(epochs, [record[key] for record in history], color=color, label=name, marker="o", markersize=2.5)
    for one, title, label in zip(axes, ("loss", "ranking"), ("log loss", "area under the curve"), strict=True):
        one.axvline(best_epoch, color=GREY, linestyle=":", label=f"best epoch: {best_epoch}")
        one.set(xlabel="epoch", ylabel=label, title=title, xlim=(min(shown) - 0.5, max(shown) + 0.5))
        _whole_numbers(one)
        one.legend(frameon=False)


def _whole_numbers(axes: Axes) -> None:
    """Ticks of the x axis at integers alone: epochs, trials and counts have no halves."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def roc(axes: Axes, predictions: Predictions, metrics: Mapping[str, float]) -> None:
    """The ROC curve with its AUC."""
    false_positives, true_positives = roc_curve(predictions)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="by chance")
    axes.plot(false_positives, true_positives, color=BLUE)
    title = "ROC: " + ", ".join(_shown(name, metrics) for name in ("auc", "gauc") if name in metrics)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title=title)
    axes.legend(frameon=False)


def reliability(axes: Axes, predictions: Predictions, metrics: Mapping[str, float]) -> None:
    """Mean label against mean probability, in bins of about equal frequency."""
    curve = reliability_curve(predictions)
    top = float(max(curve.mean_probability.max(), curve.mean_label.max())) * 1.05
    axes.plot([0, top], [0, top], color=GREY, linestyle=":", label="perfectly calibrated")
    axes.plot(curve.mean_probability, curve.mean_label, color=BLUE, marker="o", markersize=3, label="rows in bins")
    title = f"reliability: {_shown('ece', metrics)}"
    title += ", before prior correction" if CORRECTED in metrics else ""
    axes.set(xlabel="mean probability", ylabel="mean label", title=title)
    axes.legend(frameon=False)


def _shown(name: str, metrics: Mapping[str, float]) -> str:
    return f"{METRICS[name].title} {METRICS[name].text(metrics[name])}"


def scores(axes: Axes, predictions: Predictions) -> None:
    """Histograms of the scores of each class, each of area 1."""
    labels, probabilities, _, weights = predictions
    edges = np.linspace(0, max(float(probabilities.max()), 1e-6), 41)
    for value, color, name in ((0, GREY, "label 0"), (1, BLUE, "label 1")):
        rows = labels == value
        own = None if weights is None else weights[rows]
        density, _ = np.histogram(probabilities[rows], edges, density=True, weights=own)
        axes.stairs(density, edges, color=color, fill=True, alpha=0.55, label=name)
    axes.set(xlabel="probability", ylabel="density", title="scores by class")
    axes.legend(frameon=False)


def gain_lift(axes: Sequence[Axes], predictions: Predictions) -> None:
    """Share of all positives among the examples of highest score, and its ratio to a random draw."""
    share, gain = gain_curve(predictions)
    axes[0].plot([0, 1], [0, 1], color=GREY, linestyle=":", label="by chance")
    axes[0].plot(share, gain, color=BLUE)
    axes[0].set(xlabel="share of examples, best first", ylabel="share of positives", title="gain")
    axes[1].axhline(1, color=GREY, linestyle=":", label="by chance")
    axes[1].plot(share[1:], gain[1:] / share[1:], color=BLUE)
    axes[1].set(xlabel="share of examples, best first", ylabel="times the mean label", title="lift")
    for one in axes:
        one.legend(frameon=False)


def importance(axes: Axes, found: Sequence[Importance]) -> None:
    """Loss of AUC where a feature is shuffled."""
    shown = found[:MOST_BARS]
    _bars(axes, [one.feature for one in shown], [[one.auc_loss for one in shown]], [BLUE])
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="loss of AUC", title="where a feature is shuffled")
    if not shown:
        axes.text(0.5, 0.5, "the sample has one class alone", transform=axes.transAxes, ha="center")


def row_usage(axes: Axes, usage: npt.NDArray[Any], report: CollisionReport) -> None:
    """Number of rows by the number of entries that read them, `usage` [M]."""
    most = int(min(usage.max(initial=0), MOST_SHARING))
    counts = np.bincount(np.minimum(usage, most), minlength=most + 1)
    axes.bar(np.arange(len(counts)), counts, color=BLUE)
    read = f"{report.occupied:,} of {report.num_rows:,} rows read ({report.expected_occupied:,.0f} expected)"
    more = f" (last bar: {most} or more)" if most == MOST_SHARING else ""
    axes.set(xlabel=f"entries that share a row{more}", ylabel="rows", title=f"{read}, load {report.load_factor:.2f}")
    axes.title.set_fontsize(10)
    _whole_numbers(axes)


def collisions(axes: Axes, report: CollisionReport) -> None:
    """Share of each feature's values whose row another value reads, of its own feature and of others."""
    shown = sorted(report.features, key=lambda one: -one.distinct)[:MOST_BARS]
    names = [one.feature for one in shown]
    shares = [[one.measured_intra for one in shown], [one.measured_inter for one in shown]]
    expected = [[one.expected_intra for one in shown], [one.expected_inter for one in shown]]
    handles = _bars(axes, names, shares, [BLUE, ORANGE], expected)
    axes.set(xlabel="share of values whose row is shared", xlim=(0, None))
    texts = ["inside the feature", "with other features", "expected of uniform hashing"]
    figure = axes.get_figure()
    assert figure is not None
    figure.legend(
        handles, texts, loc="upper center", ncols=3, fontsize="small", frameon=False, columnspacing=1, handlelength=1.5
    )


def kept(axes: Sequence[Axes], shown: "Sequence[KeptColumns]") -> None:
    """Rows and columns of each feature that a pruned table stores."""
    shown = shown[:MOST_BARS]
    names = [one.feature for one in shown]
    _bars(axes[0], names, [[one.rows / max(one.of_rows, 1) for one in shown]], [BLUE])
    axes[0].set(xlabel="share of rows kept", xlim=(0, 1), title="rows")
    _bars(axes[1], [""] * len(names), [[one.columns for one in shown]], [BLUE])
    axes[1].set(xlabel="columns kept", title="width")


def _bars(
    axes: Axes,
    names: Sequence[str],
    series: Sequence[Sequence[float]],
    colors: Sequence[str],
    expected: Sequence[Sequence[float]] = (),
) -> list[Any]:
    """Horizontal bars, the first name on top, one bar per series; needs the margin NAMES.

    Returns the handles for a legend: the bars of each series, and the strokes at their `expected` lengths.
    """
    thickness = 0.8 / len(series)
    handles: list[Any] = []
    strokes: Any = []
    for number, (values, color) in enumerate(zip(series, colors, strict=True)):
        places = np.arange(len(names)) + (number - (len(series) - 1) / 2) * thickness
        handles.append(axes.barh(places, values, thickness, color=color))
        if expected:
            ends = places - 0.4 * thickness, places + 0.4 * thickness
            strokes = [axes.vlines(expected[number], *ends, color="black", linewidth=1.5)]
    size = 9 if len(names) <= FEW else 6
    axes.set_yticks(range(len(names)), [shortened(name, LETTERS[size]) for name in names], fontsize=size)
    axes.invert_yaxis()
    return handles + strokes


def setting_importance(axes: Axes, shares: Mapping[str, float]) -> None:
    """Share of each setting of a sweep in the quality of its trials."""
    _bars(axes, list(shares)[:MOST_BARS], [list(shares.values())[:MOST_BARS]], [BLUE])
    axes.set(xlabel="share", xlim=(0, 1), title="what mattered (PED-ANOVA)")


def sweep_progress(axes: Axes, scores: Sequence[tuple[int, float, str]], monitor: str) -> None:
    """Score by trial, and the best so far; `scores` are (number, score, state)."""
    metric = METRICS[monitor]
    for state, color in (("complete", BLUE), ("pruned", GREY), ("failed", ORANGE)):
        shown = [(number, score) for number, score, own in scores if own == state]
        if shown:
            axes.scatter(*zip(*shown, strict=True), color=color, s=14, label=state)
    complete = [(number, score) for number, score, state in scores if state == "complete"]
    if complete:
        so_far = (np.maximum if metric.higher_is_better else np.minimum).accumulate([score for _, score in complete])
        axes.step([number for number, _ in complete], so_far, where="post", color=BLUE, label="best so far")
    axes.set(xlabel="trial", ylabel=f"validation {metric.title}", title="trials")
    _whole_numbers(axes)
    axes.legend(frameon=False, fontsize="small")
