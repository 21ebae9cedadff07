"""What docs/results holds of the frontier: for each dataset a page, a figure and a csv with one line a run.

Validation chooses, test judges: at each budget the type of rows that a method is shown with, and the method that is
called best, have the best mean validation AUC. Spread is the standard deviation between seeds (n - 1). The two best
methods are compared by Welch's t-test on their test AUCs, after they were chosen among many.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")  # figures are files; no screen is needed, and none is assumed

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.page import kilobytes, welch
from experiments.studies.table_kinds import Facts
from features.files import write_text
from recsys.report.text import csv_text, markdown_table

REFERENCE = "collisionless"
TARGETS = {"movielens": 0.0005, "frappe": 0.002}
"""What a tenth of the bytes may cost in test AUC."""
NEAR = 0.015
"""How far below the collisionless table the second panel of a figure reaches."""
COLUMNS = (
    *("data", "method", "table_dtype", "budget", "target_bytes", "seed", "reached"),
    *("test_auc", "test_logloss", "valid_auc", "valid_logloss"),
    *("embedding_bytes", "bundle_bytes", "seconds", "base_seconds", "scorer_us_per_row"),
)
# Told apart without colour: by marker, by dashes, and by a grey of its own.
STYLES = (
    ("#1b3a57", "o", "-"),
    ("#c8553d", "s", "-"),
    ("#5a9367", "^", "-"),
    ("#8d5a97", "D", "--"),
    ("#e0a23f", "v", "--"),
    ("#2a9fb7", "P", "--"),
    ("#7d7d7d", "X", ":"),
    ("#b5838d", "<", ":"),
    ("#9aa36b", ">", ":"),
    ("#444444", "*", "-."),
    ("#6b4226", "h", "-."),
    ("#3d6f3d", "p", "-."),
)

Records = Mapping[int, Mapping[str, Any]]
"""Seed to a line of results.jsonl."""


class Curve(NamedTuple):
    """A method with one type of rows."""

    data: str
    method: str
    dtype: str
    records: dict[float, dict[int, Mapping[str, Any]]]
    """Budget to seed to record."""


class Dot(NamedTuple):
    """A method at a budget, with the type of rows that was best for it."""

    method: str
    dtype: str
    budget: float
    records: Records

    def values(self, split: str, metric: str) -> list[float]:
        """A metric of every seed."""
        return [record["metrics"][split][metric] for record in self.records.values()]

    def mean(self, key: str) -> float | None:
        """Mean of a figure that stands in the records themselves, over those that have it."""
        known = [record[key] for record in self.records.values() if record.get(key) is not None]
        return statistics.fmean(known) if known else None

    @property
    def auc(self) -> float:
        """Mean test AUC."""
        return statistics.fmean(self.values("test", "auc"))

    @property
    def spread(self) -> float:
        """Standard deviation of the test AUC; 0 for one seed."""
        values = self.values("test", "auc")
        return statistics.stdev(values) if len(values) > 1 else 0.0


def write_frontier(out: Path, curves: Sequence[Curve], facts: Mapping[str, Facts]) -> None:
    """Write `frontier_DATA.md`, `.svg` and `.csv` of each dataset whose reference run is done."""
    out.mkdir(parents=True, exist_ok=True)
    for data, own in facts.items():
        found = [curve for curve in curves if curve.data == data]
        reference = next((dot for dot in dots_of(found) if dot.method == REFERENCE), None)
        if reference is None:
            continue
        write_text(out / f"frontier_{data}.md", page(data, found, reference, own))
        write_text(out / f"frontier_{data}.csv", csv_of(found))
        draw(out / f"frontier_{data}.svg", data, found, reference)


def dots_of(curves: Sequence[Curve]) -> list[Dot]:
    """The best type of rows of each method at each budget, by validation AUC; a budget out of reach has no dot."""
    best: dict[tuple[str, float], Dot] = {}
    for curve in curves:
        for budget, records in curve.records.items():
            reached = {seed: record for seed, record in records.items() if "metrics" in record}
            if reached:
                dot = Dot(curve.method, curve.dtype, budget, reached)
                other = best.get((curve.method, budget))
                if other is None or _score(dot) > _score(other):
                    best[curve.method, budget] = dot
    return sorted(best.values(), key=lambda dot: -dot.budget)


def _score(dot: Dot) -> tuple[int, float]:
    """More seeds before a better validation score: one lucky run is no curve."""
    return len(dot.records), statistics.fmean(dot.values("valid", "auc"))


def page(data: str, curves: Sequence[Curve], reference: Dot, facts: Facts) -> str:
    """The page of a dataset, as Markdown."""
    dots = [dot for dot in dots_of(curves) if dot.method != REFERENCE]
    parts = [
        f"# {data.capitalize()}: quality against bytes",
        "What does each way to make the embedding table smaller cost at equal bytes on the disk?",
        f"![Test AUC against bytes of the embedding files; the numbers are in the tables.](frontier_{data}.svg)",
        _unit(reference),
        markdown_table(*_by_budget(curves, dots)),
        "Mean test AUC ± standard deviation between seeds, and the type of rows that was best on validation at that "
        "budget, of those that were tried; bold: the best of its column on validation, among those with most seeds. "
        "`cannot`: no table, or no mask, of this method is as small.",
        _types(curves),
        "`OptEmbed` is the paper's procedure: supernet, search, training again from the first weights. `width search` "
        "is its second stage alone, after plain training, from whose weights the result is tuned.",
        *_verdicts(data, dots, reference),
        "## What each point takes",
        markdown_table(*_costs(dots, reference)),
        "Bytes are those of the files: `embedding` is the table and, where there is one, the vocabulary; `bundle` is "
        "all of it. `training` is the wall time of `muxrec prune`, beside another run, without runs that were cut off "
        "and resumed; `base` that of the run that it started from. `scorer` is one thread on 4,096 made-up raw rows at "
        "a time, encoding included. Where all rows fit, a method that removes rows does the same at every larger "
        "budget, and one run stands for both.",
        "## How to do it again",
        f"```bash\npython -m experiments.studies.compression --data work/{data}\n```",
        f"Every run is a line of [frontier_{data}.csv](frontier_{data}.csv). Data: {facts.info.name}, "
        f"{facts.info.source}; digest {facts.info.digest}; terms: {facts.info.licence}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _unit(reference: Dot) -> str:
    record = next(iter(reference.records.values()))
    own, full = record["embedding_bytes"], record["target_bytes"]
    return (
        f"The unit is the collisionless fp32 table of {kilobytes(full)}, 16 floats for each value seen in train; with "
        f"its vocabulary it takes {kilobytes(own)}. Its test AUC is {_auc(reference)}."
    )


def _by_budget(curves: Sequence[Curve], dots: Sequence[Dot]) -> tuple[list[str], list[list[str]]]:
    budgets = sorted(
        {budget for curve in curves for budget in curve.records if curve.method != REFERENCE}, reverse=True
    )
    found = {(dot.method, dot.budget): dot for dot in dots}
    best = {budget: max((dot for dot in dots if dot.budget == budget), key=_score, default=None) for budget in budgets}
    methods = [method for method in dict.fromkeys(curve.method for curve in curves) if method != REFERENCE]

    def cell(method: str, budget: float) -> str:
        dot = found.get((method, budget))
        if dot is not None:
            text = f"{_auc(dot)} {dot.dtype}"
            return f"**{text}**" if dot is best[budget] else text
        tried = [curve for curve in curves if curve.method == method and curve.records.get(budget)]
        return "cannot" if tried else "not run"

    rows = [[method, *(cell(method, budget) for budget in budgets)] for method in methods]
    rows = [row for row in rows if any(text != "not run" for text in row[1:])]
    return ["method", *(_share(budget) for budget in budgets)], rows


def _types(curves: Sequence[Curve]) -> str:
    """Which types of rows were tried with which methods."""
    tried: dict[str, list[str]] = {}
    for curve in curves:
        if curve.method != REFERENCE and curve.records:
            tried.setdefault(curve.method, []).append(curve.dtype)
    methods: dict[str, list[str]] = {}
    for method, types in tried.items():
        methods.setdefault(" and ".join(sorted(types)), []).append(method)
    parts = [
        f"{types} ({', '.join(names)})" for types, names in sorted(methods.items(), key=lambda part: -len(part[1]))
    ]
    return f"Types of rows that were tried: {'; '.join(parts)}."


def _share(budget: float) -> str:
    """A budget as a fraction.

    >>> _share(0.02)
    '1/50'
    """
    return f"1/{1 / budget:g}"


def _auc(dot: Dot) -> str:
    spread = f" ± {dot.spread:.4f}" if len(dot.records) > 1 else ""
    return f"{dot.auc:.4f}{spread}"


def _verdicts(data: str, dots: Sequence[Dot], reference: Dot) -> Iterator[str]:
    """The best method of each budget beside the next one, and whether a tenth of the bytes keeps the target."""
    lines = []
    for budget in sorted({dot.budget for dot in dots}, reverse=True):
        first, *others = sorted((dot for dot in dots if dot.budget == budget), key=_score, reverse=True)
        line = f"- {_share(budget)}: {first.method} in {first.dtype}, {_gap(first, reference):+.4f} of collisionless"
        if others:
            p = welch(first.values("test", "auc"), others[0].values("test", "auc"))
            chance = "" if p is None else f", p {p:.2g}"
            line += f"; {others[0].method} in {others[0].dtype} comes next ({_gap(others[0], first):+.4f}{chance})"
        lines.append(line + ".")
    if lines:
        yield (
            "Best at each budget by validation, with what it does on test, over the seeds that both sides have; p is "
            "Welch's on the test AUCs, post hoc: of two methods that were chosen among many.\n\n" + "\n".join(lines)
        )
    tenth = [dot for dot in dots if dot.budget == 0.1]
    if tenth:
        best = max(tenth, key=_score)
        loss, allowed = -_gap(best, reference), TARGETS[data]
        outcome, given_up = "met" if loss <= allowed else "missed", f"{loss:.4f}" if loss > 0 else "nothing"
        verdict = f"is {outcome}: {best.method} in {best.dtype} gives up {given_up}."
        yield f"The target, a tenth of the bytes for at most {allowed:g} of AUC, {verdict}"


def _gap(dot: Dot, other: Dot) -> float:
    """By how much the test AUC of one is above that of the other: means over the seeds that both have, if any."""
    seeds = dot.records.keys() & other.records.keys()
    ours, theirs = (
        one._replace(records={seed: one.records[seed] for seed in seeds or one.records}).auc for one in (dot, other)
    )
    return ours - theirs


def _costs(dots: Sequence[Dot], reference: Dot) -> tuple[list[str], list[list[str]]]:
    header = [
        "method",
        "budget",
        "rows",
        "runs",
        "test AUC",
        "log loss",
        "embedding",
        "bundle",
        "training",
        "base",
        "scorer",
    ]
    rows = []
    for dot in [reference, *dots]:
        seconds = [_mean(dot, key, "s", 0) for key in ("seconds", "base_seconds")]
        if dot is reference:
            seconds[0] = ""
        rows.append(
            [
                dot.method,
                "" if dot is reference else _share(dot.budget),
                dot.dtype,
                str(len(dot.records)),
                _auc(dot),
                f"{statistics.fmean(dot.values('test', 'logloss')):.4f}",
                kilobytes(round(dot.mean("embedding_bytes") or 0)),
                kilobytes(round(dot.mean("bundle_bytes") or 0)),
                *seconds,
                _mean(dot, "scorer_us_per_row", "µs", 1),
            ]
        )
    return header, rows


def _mean(dot: Dot, key: str, unit: str, digits: int) -> str:
    """A mean figure, or nothing where no run has it."""
    value = dot.mean(key)
    return "" if value is None else f"{value:,.{digits}f} {unit}"


def csv_of(curves: Sequence[Curve]) -> str:
    """One line a run, those included that could not be: they have no figures."""
    lines = []
    for curve in curves:
        for budget, records in sorted(curve.records.items(), reverse=True):
            for seed, record in sorted(records.items()):
                metrics = record.get("metrics", {})
                figures = {
                    f"{split}_{name}": f"{metrics[split][name]:.6f}"
                    for split in ("test", "valid")
                    for name in ("auc", "logloss")
                    if split in metrics
                }
                what = {"data": curve.data, "method": curve.method, "table_dtype": curve.dtype, "budget": f"{budget:g}"}
                numbers = {name: round(value, 1) for name, value in record.items() if isinstance(value, int | float)}
                lines.append({**what, "seed": seed, "reached": bool(metrics), **numbers, **figures})
    return csv_text(lines, COLUMNS)


def draw(path: Path, data: str, curves: Sequence[Curve], reference: Dot) -> None:
    """Test AUC against the bytes of the embedding files, a line a method, bars for the spread between seeds.

    The second panel is the first near the collisionless table, where a thousandth counts.
    """
    dots, methods = dots_of(curves), list(dict.fromkeys(curve.method for curve in curves))
    full = next(iter(reference.records.values()))["target_bytes"]
    budgets = sorted({budget for curve in curves for budget in curve.records if curve.method != REFERENCE})
    names = [f"{_share(budget)}\n{kilobytes(int(budget * full))}" for budget in budgets]
    with mpl.rc_context({"svg.hashsalt": "muxrec", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(12.5, 5.2), layout="constrained")
        whole, near = figure.subplots(1, 2)
        for axes in (whole, near):
            _draw_curves(axes, dots, methods)
            axes.axhline(reference.auc, color="black", linewidth=1, linestyle=(0, (6, 2)), label=f"{REFERENCE} fp32")
            axes.axhspan(reference.auc - reference.spread, reference.auc + reference.spread, color="0.85", linewidth=0)
            axes.set_xscale("log")
            axes.set_xticks([budget * full for budget in budgets], names)
            axes.minorticks_off()
            axes.grid(axis="x", color="0.9")
            axes.set(xlabel="bytes of the embedding files on disk", ylabel="test AUC")
            axes.spines[["top", "right"]].set_visible(False)
        near.set_ylim(reference.auc - NEAR, reference.auc + NEAR / 5)
        near.axhline(reference.auc - TARGETS[data], color="0.5", linewidth=1, linestyle=":", label="target at 1/10")
        whole.set_title(f"{data}: quality against bytes")
        near.set_title("the same, near the collisionless table")
        near.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def _draw_curves(axes: Axes, dots: Sequence[Dot], methods: Sequence[str]) -> None:
    shown = [method for method in methods if method != REFERENCE]
    for method, (color, marker, dashes) in zip(shown, STYLES * len(shown), strict=False):
        own = [dot for dot in dots if dot.method == method]
        if own:
            sizes = [dot.mean("embedding_bytes") or 0.0 for dot in own]
            errors = [dot.spread for dot in own]
            style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": dashes, "markersize": 5}
            axes.errorbar(sizes, [dot.auc for dot in own], yerr=errors, capsize=2, linewidth=1.4, label=method, **style)
