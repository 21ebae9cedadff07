"""What docs/results holds: a page and a figure a study, and results.csv with one line a run.

Spread is the standard deviation between seeds (n - 1). Two cells are compared by Welch's t-test on their test AUCs:
two-sided, unequal variances (Welch, "The generalization of 'Student's' problem ...", Biometrika 1947).
"""

import csv
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")  # figures are files; no screen is needed, and none is assumed

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.table_kinds import WIDTH, Cell, Facts, Study, yaml_text
from features.files import write_text
from recsys.config import flatten
from recsys.evaluation.significance import p_text, welch
from recsys.report.text import csv_text, markdown_table

COLORS = ("#2a6f97", "#e07a3f", "#5a9367", "#8d5a97", "#8d99ae")
METRICS = {"auc": "test AUC", "gauc": "gAUC", "logloss": "log loss", "ece": "ECE"}
COLUMNS = (
    *("study", "data", "model", "label", "budget", "seed"),
    *("test_auc", "test_logloss", "test_gauc", "test_ece", "valid_auc"),
    *("rows", "width", "probes", "table_bytes", "network_parameters", "epochs", "samples_per_s", "command"),
)

SIZES = (
    f"Size is the table's weights in fp32, and in units of the collisionless table of the same model: a row of {WIDTH} "
    "floats for each value seen in train, and two more, for each feature of each view, those of gates included. The "
    "values that a collisionless table has to keep beside its rows are not counted. `unified 4x4` reads 4 rows of 4 "
    "floats for a value."
)


class Result(NamedTuple):
    """A cell and its finished runs."""

    cell: Cell
    records: Mapping[int, Mapping[str, Any]]
    """Seed to a line of results.jsonl."""

    def values(self, metric: str) -> list[float]:
        """The metric of every run that has it, on test, or on valid where there is no test split."""
        splits = [record["metrics"].get("test") or record["metrics"]["valid"] for record in self.records.values()]
        return [split[metric] for split in splits if metric in split]

    @property
    def last(self) -> Mapping[str, Any]:
        """The record of the last seed; sizes are the same in all."""
        return list(self.records.values())[-1]


class Comparison(NamedTuple):
    """Two cells, and how their test AUCs differ."""

    result: Result
    reference: Result
    difference: float
    p: float | None


def write_results(
    out: Path, studies: Mapping[str, Study], results: Mapping[str, Sequence[Result]], facts: Mapping[str, Facts]
) -> None:
    """Write `NAME.md` and `NAME.png` of each study that has a finished run, and results.csv.

    Lines of results.csv that belong to other studies stay.
    """
    out.mkdir(parents=True, exist_ok=True)
    done = {name: [result for result in results[name] if result.records] for name in studies}
    for name, study in studies.items():
        if done[name]:
            write_text(out / f"{name}.md", study_page(name, study, results[name], facts))
            draw(out / f"{name}.png", done[name])
    _write_csv(out / "results.csv", done)


def comparisons(results: Sequence[Result]) -> list[Comparison]:
    """Each cell with those that it names: of the same data and model, at its own budget where there is such a one."""
    found = []
    for result in results:
        for label in result.cell.against:
            same = [
                other
                for other in results
                if (other.cell.panel, other.cell.label) == (result.cell.panel, label) and other.records
            ]
            same.sort(key=lambda other: other.cell.budget != result.cell.budget)
            if same and result.records:
                ours, theirs = result.values("auc"), same[0].values("auc")
                difference = statistics.fmean(ours) - statistics.fmean(theirs)
                found.append(Comparison(result, same[0], difference, welch(ours, theirs)))
    return found


def study_page(name: str, study: Study, results: Sequence[Result], facts: Mapping[str, Facts]) -> str:
    """The page of a study, as Markdown."""
    done = [result for result in results if result.records]
    absent = [result.cell.name for result in results if not result.records]
    given = " ".join(f"--data work/{data}" for data in study.data)
    parts = [
        f"# {study.title}",
        study.question,
        f"![Test AUC of each cell; the numbers are in the table below.]({name}.png)",
        markdown_table(*_cells_table(done)),
    ]
    if absent:
        parts.append(f"Not run yet: {', '.join(absent)}.")
    if compared := comparisons(done):
        parts += ["## Differences of test AUC", markdown_table(*_comparisons_table(compared))]
        parts.append("p: Welch's t-test between the seeds of the two cells, two-sided, not corrected for their number.")
    commands = "\n".join(_command(result.cell, min(result.records)) for result in done)
    parts += [
        "## How it was made",
        f"```bash\npython -m experiments.studies.runner {given} --study {name}\n```",
        *([SIZES] if any(result.cell.budget for result in done) else []),
        "Figures are mean ± standard deviation between seeds. Weights are those with the best validation AUC.",
        *[_about(facts[data]) for data in study.data],
        *[_shared_settings(panel, own) for panel, own in _by(done, lambda cell: cell.panel).items()],
        "The first run of each row of the table (other seeds by `seed=`; every run is a line of "
        "[results.csv](results.csv)):",
        f"```bash\n{commands}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _cells_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    metrics = [metric for metric in METRICS if any(result.values(metric) for result in results)]
    header = ["data, model", "cell", "size", "table", "network", "runs", *(METRICS[metric] for metric in metrics)]
    rows = []
    for result in results:
        cell, record = result.cell, result.last
        budget = "" if cell.budget is None else f"{cell.budget:g}x"
        sizes = [kilobytes(record["table_bytes"]), f"{record['network_parameters']:,}", str(len(result.records))]
        rows.append([cell.panel, cell.label, budget, *sizes, *(_spread(result.values(m)) for m in metrics)])
    return header, rows


def _comparisons_table(compared: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    header = ["data, model", "cell", "size", "against", "its size", "difference", "p"]
    rows = []
    for one in compared:
        cell, other = one.result.cell, one.reference.cell
        sizes = ["" if budget is None else f"{budget:g}x" for budget in (cell.budget, other.budget)]
        rows.append([cell.panel, cell.label, sizes[0], other.label, sizes[1], f"{one.difference:+.4f}", p_text(one.p)])
    return header, rows


def kilobytes(count: int) -> str:
    """A number of bytes for a table.

    >>> kilobytes(131_072)
    '131 kB'
    """
    return f"{count / 1000:,.0f} kB"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def _about(facts: Facts) -> str:
    """A paragraph on the data: where from, on what terms, how many rows and values."""
    info = facts.info
    rows = ", ".join(
        f"{name} {split.rows:,} (label rate {split.label_rate:.4f})" for name, split in info.splits.items()
    )
    values = ", ".join(f"{name} {count:,}" for name, count in facts.num_values.items())
    return (
        f"**Data: {info.name}.** {info.source}. Split: {info.split_rule}. Rows: {rows}. "
        f"Distinct training values: {values}. Digest {info.digest}. Terms: {info.licence}."
    )


def _shared_settings(panel: str, results: Sequence[Result]) -> str:
    """A paragraph with every setting that is the same in all runs of a panel; the others stand in the commands."""
    flat = [flatten(record["experiment"]) for result in results for record in result.records.values()]
    same = {key: value for key, value in flat[0].items() if all(one.get(key) == value for one in flat)}
    words = [f"`{key}={yaml_text(value)}`" for key, value in same.items() if key not in ("name", "seed")]
    return f"**Settings of all runs: {panel}.** {' '.join(words)}"


def _command(cell: Cell, seed: int) -> str:
    """The command of one run; the data stand where docs/results/README.md makes them."""
    return f"muxrec train {shlex.join(cell.arguments(seed))} --data work/{cell.data} --out work/run --no-track"


def csv_lines(study: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """One line a run."""
    lines = []
    for cell, records in results:
        for seed, record in records.items():
            metrics = record["metrics"]
            figures = {
                f"{split}_{metric}": _digits(metrics.get(split, {}).get(metric))
                for split, metric in (
                    column.split("_", 1) for column in COLUMNS if column.startswith(("test", "valid"))
                )
            }
            sizes = {key: record[key] for key in ("rows", "width", "probes", "table_bytes", "network_parameters")}
            speed = {"epochs": metrics["perf"]["epochs"], "samples_per_s": round(metrics["perf"]["samples_per_s"])}
            what = {"study": study, "data": cell.data, "model": cell.model, "label": cell.label, "budget": cell.budget}
            lines.append({**what, "seed": seed, **figures, **sizes, **speed, "command": _command(cell, seed)})
    return lines


def _digits(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6f}"


def _write_csv(path: Path, results: Mapping[str, Sequence[Result]]) -> None:
    lines: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            lines = [line for line in csv.DictReader(file) if line["study"] not in results]
    for study, own in results.items():
        lines += csv_lines(study, own)
    lines.sort(key=lambda line: line["study"])  # stable, and the same whichever studies are written together
    write_text(path, csv_text(lines, COLUMNS))


def draw(path: Path, results: Sequence[Result]) -> None:
    """A panel a model with test AUC against size, and one panel with a dot a cell for the rest."""
    curves = {panel: own for panel, own in _by(results, lambda cell: cell.panel).items() if _budgets(own) > 1}
    labels = {panel: _by(own, lambda cell: cell.label) for panel, own in curves.items()}
    drawn = [id(one) for lines in labels.values() for line in lines.values() if _is_curve(line) for one in line]
    dots = [result for result in results if id(result) not in drawn]
    height = max(3.8 if curves else 1.5, 0.9 + 0.28 * len(dots))
    figure = Figure(figsize=(4.8 * len(curves) + (6.4 if dots else 0), height), layout="constrained")
    axes = figure.subplots(1, len(curves) + bool(dots), squeeze=False)[0]
    for axis, (panel, lines) in zip(axes, labels.items(), strict=False):
        _draw_curves(axis, panel, [line for line in lines.values() if _is_curve(line)])
    if dots:
        _draw_dots(axes[-1], dots)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _by(results: Sequence[Result], key: Any) -> dict[Any, list[Result]]:
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result.cell), []).append(result)
    return groups


def _budgets(results: Sequence[Result]) -> int:
    return len({result.cell.budget for result in results})


def _is_curve(line: Sequence[Result]) -> bool:
    """Whether a label has a place in the panel of curves: several sizes, or the level that the others come near."""
    return _budgets(line) > 1 or line[0].cell.settings.get("embedding.kind") == "collisionless"


def _draw_curves(axes: Axes, title: str, lines: Sequence[Sequence[Result]]) -> None:
    for line, color in zip(lines, COLORS * len(lines), strict=False):
        means, errors = _means_and_errors(line)
        label = line[0].cell.label
        if _budgets(line) == 1:
            axes.axhline(means[0], color=color, linestyle="--", label=label)
            axes.axhspan(means[0] - errors[0], means[0] + errors[0], color=color, alpha=0.15, linewidth=0)
        else:
            budgets = [result.cell.budget or 0.0 for result in line]
            axes.errorbar(budgets, means, yerr=errors, color=color, marker="o", markersize=4, capsize=3, label=label)
    axes.set_xscale("log")
    ticks = sorted({result.cell.budget or 0.0 for line in lines for result in line})
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.set(title=title, xlabel="bytes, in units of the collisionless table", ylabel="test AUC")
    axes.legend(frameon=False, fontsize="small")


def _draw_dots(axes: Axes, results: Sequence[Result]) -> None:
    means, errors = _means_and_errors(results)
    names = [f"{result.cell.panel} {result.cell.label}" for result in results]
    axes.errorbar(means, range(len(names)), xerr=errors, color=COLORS[0], fmt="o", markersize=4, capsize=3)
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="test AUC")


def _means_and_errors(results: Sequence[Result]) -> tuple[list[float], list[float]]:
    values = [result.values("auc") for result in results]
    return [statistics.fmean(one) for one in values], [statistics.stdev(one) if len(one) > 1 else 0.0 for one in values]
