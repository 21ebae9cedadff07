"""The pages of docs/results: tables, comparisons and a figure for each study, and a csv with one line per run.

Spread is the standard deviation between seeds (n - 1). Two cells are compared by Welch's t-test on their test AUCs:
two-sided, unequal variances (`recsys.evaluation.significance`).
"""

import csv
import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")  # figures are files: no screen is needed

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.table_kinds import WIDTH, Cell, Study, StudyData, yaml_text
from features.files import write_text
from recsys.evaluation.significance import p_text, welch
from recsys.report.text import csv_text, markdown_table

Record = Mapping[str, Any]
"""One run: its figures by column of the csv files, and its resolved `settings`; or why it is `unreachable`."""

METRICS = {"auc": "test AUC", "gauc": "gAUC", "logloss": "log loss", "ece": "ECE"}
COLORS = ("#2a6f97", "#e07a3f", "#5a9367", "#8d5a97", "#8d99ae")
COLUMNS = (
    *("study", "data", "model", "label", "budget", "seed"),
    *("test_auc", "test_logloss", "test_gauc", "test_ece", "valid_auc"),
    *("rows", "width", "probes", "table_bytes", "network_parameters", "epochs", "samples_per_s", "command"),
)
SIZES = (
    f"Size is the table's weights in fp32, and in units of the collisionless table of the same model: a row of {WIDTH} "
    "floats for each value seen in train, and two more, for each feature of each view, those of gates included. The "
    "list of values that a collisionless table needs as well is not counted. `unified 4x4` reads 4 rows of 4 floats "
    "for a value."
)


WELCH = "p: Welch's t-test between the seeds of the two cells, two-sided, not corrected for their number."


class Result(NamedTuple):
    """A cell and its finished runs."""

    cell: Cell
    records: Mapping[int, Record]

    def values(self, name: str) -> list[float]:
        """A figure of every run that has it."""
        return [record[name] for record in self.records.values() if record.get(name) is not None]

    def mean(self, name: str) -> float | None:
        """Mean of a figure over the runs that have it; None if no run does."""
        values = self.values(name)
        return statistics.fmean(values) if values else None

    @property
    def auc(self) -> float:
        """Mean test AUC."""
        return statistics.fmean(self.values("test_auc"))

    @property
    def spread(self) -> float:
        """Standard deviation of the test AUC between seeds; 0 for one seed."""
        values = self.values("test_auc")
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def text(self, name: str) -> str:
        """Mean of a figure, ± its spread where there are several runs."""
        values = self.values(name)
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.4f}{spread}" if values else ""


class Comparison(NamedTuple):
    """Two cells, and how their test AUCs differ."""

    result: Result
    reference: Result
    difference: float
    p: float | None


def write_study(out: Path, name: str, study: Study, results: Sequence[Result], data: Mapping[str, StudyData]) -> None:
    """Write the page of a study, its figure, and its lines of a csv; nothing if no run has finished.

    `NAME.md` and `NAME.png` of a study of table kinds; results.csv keeps its lines of other studies.
    """
    done = [result for result in results if result.records]
    if not done:
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.md", study_page(name, study, results, data))
    draw(out / f"{name}.png", done)
    path = out / "results.csv"
    lines = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []
    lines = [line for line in lines if line["study"] != name] + csv_lines(name, done)
    lines.sort(key=lambda line: line["study"])  # stable
    write_text(path, csv_text(lines, COLUMNS))


def comparisons(results: Sequence[Result]) -> list[Comparison]:
    """Each cell with those that it names: of the same data and model, at its own budget where there is one."""
    found = []
    done = [result for result in results if result.records]
    for result in done:
        for label in result.cell.against:
            same = [other for other in done if (other.cell.panel, other.cell.label) == (result.cell.panel, label)]
            same.sort(key=lambda other: other.cell.budget != result.cell.budget)
            if same:
                p = welch(result.values("test_auc"), same[0].values("test_auc"))
                found.append(Comparison(result, same[0], result.auc - same[0].auc, p))
    return found


def study_page(name: str, study: Study, results: Sequence[Result], data: Mapping[str, StudyData]) -> str:
    """The page of a study of table kinds, as Markdown."""
    done = [result for result in results if result.records]
    absent = [result.cell.name for result in results if not result.records]
    compared = comparisons(done)
    commands = "\n".join(_command(result.cell, min(result.records)) for result in done)
    parts = [
        f"# {study.title}",
        study.question,
        f"![Test AUC of each cell; the numbers are in the table below.]({name}.png)",
        _cells_table(done),
        f"Not run yet: {', '.join(absent)}." if absent else "",
        *(["## Differences of test AUC", _comparisons_table(compared), WELCH] if compared else []),
        "## How it was made",
        f"```bash\n{study_command(name, study)}\n```",
        SIZES if any(result.cell.budget for result in done) else "",
        "Figures are mean ± standard deviation between seeds. Weights are those with the best validation AUC.",
        *[_about(data[one]) for one in study.data],
        *[_shared_settings(panel, own) for panel, own in grouped(done, lambda cell: cell.panel).items()],
        "The first run of each row of the table (other seeds by `seed=`; every run is a line of "
        "[results.csv](results.csv)):",
        f"```bash\n{commands}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def study_command(name: str, study: Study) -> str:
    """The command that trains what a study lacks and writes its page."""
    given = " ".join(f"--data work/{data}" for data in study.data)
    return f"python -m experiments.studies.runner {given} --study {name}"


def _cells_table(results: Sequence[Result]) -> str:
    header = ["data, model", "cell", "size", "table", "network", "runs", *METRICS.values()]
    rows = []
    for result in results:
        cell, record = result.cell, list(result.records.values())[-1]  # sizes are the same for all seeds
        sizes = [kilobytes(record["table_bytes"]), f"{record['network_parameters']:,}", str(len(result.records))]
        metrics = [result.text(f"test_{metric}") for metric in METRICS]
        rows.append([cell.panel, cell.label, _times(cell.budget), *sizes, *metrics])
    return markdown_table(header, rows)


def _comparisons_table(compared: Sequence[Comparison]) -> str:
    header = ["data, model", "cell", "size", "against", "its size", "difference", "p"]
    rows = []
    for result, reference, difference, p in compared:
        cell, other = result.cell, reference.cell
        row = [cell.panel, cell.label, _times(cell.budget), other.label, _times(other.budget)]
        rows.append([*row, f"{difference:+.4f}", p_text(p)])
    return markdown_table(header, rows)


def _times(budget: float | None) -> str:
    return "" if budget is None else f"{budget:g}x"


def kilobytes(count: float) -> str:
    """A number of bytes for a table.

    >>> kilobytes(131_072)
    '131 kB'
    """
    return f"{count / 1000:,.0f} kB"


def _about(data: StudyData) -> str:
    """A paragraph on the data: source, terms, number of rows and values."""
    info = data.info
    rows = ", ".join(
        f"{name} {split.rows:,} (label rate {split.label_rate:.4f})" for name, split in info.splits.items()
    )
    values = ", ".join(f"{name} {count:,}" for name, count in data.num_values.items())
    return (
        f"**Data: {info.name}.** {info.source}. Split: {info.split_rule}. Rows: {rows}. "
        f"Distinct training values: {values}. Digest {info.digest}. Terms: {info.licence}."
    )


def _shared_settings(panel: str, results: Sequence[Result]) -> str:
    """A paragraph with every setting that all runs of a panel share; the others are in the commands."""
    flat = [record["settings"] for result in results for record in result.records.values()]
    same = {key: value for key, value in flat[0].items() if all(one.get(key) == value for one in flat)}
    words = [f"`{key}={yaml_text(value)}`" for key, value in same.items() if key not in ("name", "seed")]
    return f"**Settings of all runs: {panel}.** {' '.join(words)}"


def _command(cell: Cell, seed: int) -> str:
    """The command of one run, on the data where docs/results/README.md prepares it."""
    return f"muxrec train {shlex.join(cell.train_arguments(seed))} --data work/{cell.data} --out work/run --no-track"


def csv_lines(study: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """One line per run, by column."""
    return [
        {
            "study": study,
            **result.cell._asdict(),
            "seed": seed,
            **{name: _digits(name, value) for name, value in record.items()},
            "command": _command(result.cell, seed),
        }
        for result in results
        for seed, record in sorted(result.records.items())
    ]


def _digits(name: str, value: Any) -> Any:
    """A figure with the digits that a csv file shows: six for metrics, one for times."""
    if not isinstance(value, float):
        return value
    is_metric = name.startswith(("test_", "valid_"))
    return "" if math.isnan(value) else f"{value:.6f}" if is_metric else round(value, 1)


def draw(path: Path, results: Sequence[Result]) -> None:
    """A panel per model with test AUC against size, and one panel with a dot per cell for the rest."""
    panels: dict[str, list[list[Result]]] = {}
    for panel, own in grouped(results, lambda cell: cell.panel).items():
        if len({result.cell.budget for result in own}) > 1:
            lines = grouped(own, lambda cell: cell.label).values()
            # Several sizes make a curve; the collisionless table is the level that the others approach.
            panels[panel] = [
                line
                for line in lines
                if len({result.cell.budget for result in line}) > 1
                or line[0].cell.settings.get("embedding.kind") == "collisionless"
            ]
    drawn = [id(result) for lines in panels.values() for line in lines for result in line]
    dots = [result for result in results if id(result) not in drawn]
    height = max(3.8 if panels else 1.5, 0.9 + 0.28 * len(dots))
    figure = Figure(figsize=(4.8 * len(panels) + (6.4 if dots else 0), height), layout="constrained")
    axes = figure.subplots(1, len(panels) + bool(dots), squeeze=False)[0]
    for axis, (panel, lines) in zip(axes, panels.items(), strict=False):
        _draw_curves(axis, panel, lines)
    if dots:
        _draw_dots(axes[-1], dots)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def grouped(results: Sequence[Result], key: Callable[[Cell], Any]) -> dict[Any, list[Result]]:
    """Results by a property of their cells, in order of first appearance."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result.cell), []).append(result)
    return groups


def _draw_curves(axes: Axes, title: str, lines: Sequence[Sequence[Result]]) -> None:
    for line, color in zip(lines, COLORS * len(lines), strict=False):
        label = line[0].cell.label
        if len(line) == 1:
            draw_level(axes, line[0], color=color, linestyle="--", label=label)
        else:
            sizes = [result.cell.budget or 0.0 for result in line]
            draw_line(axes, sizes, line, color=color, marker="o", markersize=4, capsize=3, label=label)
    axes.set_xscale("log")
    ticks = sorted({result.cell.budget or 0.0 for line in lines for result in line})
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.set(title=title, xlabel="bytes, in units of the collisionless table", ylabel="test AUC")
    axes.legend(frameon=False, fontsize="small")


def draw_line(axes: Axes, sizes: Sequence[float], results: Sequence[Result], **style: Any) -> None:
    """Test AUC against size, with bars for the spread between seeds."""
    axes.errorbar(sizes, [result.auc for result in results], yerr=[result.spread for result in results], **style)


def draw_level(axes: Axes, result: Result, band: Mapping[str, Any] | None = None, **style: Any) -> None:
    """A horizontal line at a test AUC, in a band of its spread between seeds."""
    axes.axhline(result.auc, **style)
    band = band or {"color": style["color"], "alpha": 0.15}
    axes.axhspan(result.auc - result.spread, result.auc + result.spread, linewidth=0, **band)


def _draw_dots(axes: Axes, results: Sequence[Result]) -> None:
    names = [f"{result.cell.panel} {result.cell.label}" for result in results]
    means, errors = [result.auc for result in results], [result.spread for result in results]
    axes.errorbar(means, range(len(names)), xerr=errors, color=COLORS[0], fmt="o", markersize=4, capsize=3)
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set(xlabel="test AUC")
