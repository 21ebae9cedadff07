"""The pages of docs/results: the means of each cell, their differences, a figure, and a csv with one line per run.

Spread is the standard deviation between seeds (n - 1); the intervals of differences are those of Welch's t-test.
"""

import csv
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")  # figures are files: no screen is needed

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

from experiments.studies.table_kinds import Cell, Study, StudyData
from features.files import write_text
from recsys.evaluation.significance import spread, welch_interval
from recsys.report.text import csv_text, markdown_table

Record = Mapping[str, Any]
"""One run: its figures by column of the csv files; or why it is `unreachable`."""

METRICS = {"auc": "test AUC", "gauc": "gAUC", "logloss": "log loss", "ece": "ECE"}
NOTES = (
    "Figures are mean ± standard deviation between seeds, of the weights with the best validation AUC. Size is the "
    "table's weights, without a vocabulary, in units of the collisionless fp32 table of the same model: a row of 16 "
    "floats for each value seen in train, and two more, for each feature of each view. `embedding` is the bytes of "
    "the table's files, with the vocabulary where there is one, `bundle` those of all files. `cannot`: the method "
    "cannot make a table or mask that small."
)
INTERVALS = (
    "Differences of test AUC with their 95% interval by Welch's t-test between the seeds of the two cells, not "
    "corrected for their number."
)
MARKERS = "os^DvPX<>*hp"


class Result(NamedTuple):
    """A cell and its finished runs, by seed."""

    cell: Cell
    records: Mapping[int, Record]

    def values(self, name: str) -> list[float]:
        """A figure of every run that has it."""
        return [record[name] for record in self.records.values() if record.get(name) is not None]

    def mean(self, name: str) -> float:
        """Mean of a figure over these runs; 0 where none has it."""
        return statistics.fmean(self.values(name) or [0.0])

    def text(self, name: str) -> str:
        """Mean of a metric, ± its spread where there are several runs."""
        values = self.values(name)
        deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        return f"{self.mean(name):.4f}{deviation}" if values else ""


def write_study(out: Path, name: str, study: Study, results: Sequence[Result], data: Mapping[str, StudyData]) -> None:
    """Write the page of a study, its figure, and its lines of a csv; nothing if no run has finished.

    `NAME.md`, `NAME.png` and `NAME.csv`; those of table kinds share results.csv, which keeps the lines of the others.
    """
    if not any(result.records for result in results):
        return
    out.mkdir(parents=True, exist_ok=True)
    path = out / (f"{name}.csv" if any(one.cell.compression for one in results) else "results.csv")
    write_text(out / f"{name}.md", study_page(name, study, results, data, path.name))
    draw(out / f"{name}.png", results)
    lines = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []
    lines = [line for line in lines if line.get("study", name) != name] + csv_lines(name, results)
    write_text(path, csv_text(sorted(lines, key=lambda line: line["study"])))


def study_page(
    name: str, study: Study, results: Sequence[Result], data: Mapping[str, StudyData], csv_name: str = "results.csv"
) -> str:
    """The page of a study, as Markdown."""
    # Cells of one model and size together, as they are what is compared: the best on validation first.
    done = [result for result in results if result.records]
    done.sort(key=lambda one: (one.cell.panel, -(one.cell.budget or 0), -one.mean("valid_auc")))
    absent = [result.cell.name for result in results if not result.records]
    differences = _differences(done)
    given = " ".join(f"--data work/{one}" for one in study.data)
    parts = [
        f"# {study.title}",
        study.question,
        f"![Test AUC of each cell; the numbers are in the table below.]({name}.png)",
        _means(done),
        f"Not run yet: {', '.join(absent)}." if absent else "",
        NOTES,
        *(["## Differences", differences, INTERVALS] if differences else []),
        "## How it was made",
        f"```bash\npython -m experiments.studies.runner {given} --study {name}\n```",
        f"Every run is a line of [{csv_name}]({csv_name}), with the command that does it alone.",
        *[_about(data[one]) for one in study.data],
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _means(done: Sequence[Result]) -> str:
    header = ["data, model", "cell", "size", "embedding", "bundle", "runs", *METRICS.values()]
    rows = []
    for result in done:
        sizes = [kilobytes(result.mean(f"{files}_bytes")) for files in ("embedding", "bundle")]
        metrics = [result.text(f"test_{metric}") for metric in METRICS]
        metrics[0] = metrics[0] or "cannot"
        row = [result.cell.panel, result.cell.variant, _times(result.cell)]
        rows.append([*row, *sizes, str(len(result.records)), *metrics])
    return markdown_table(header, rows)


def _differences(done: Sequence[Result]) -> str:
    """A table of each cell against those that it names, at its own size where there is one; may be empty."""
    header = ["data, model", "cell", "size", "against", "its size", "difference", "95% interval"]
    rows = []
    reached = [one for one in done if one.values("test_auc")]
    for result, label in [(one, label) for one in reached for label in one.cell.against]:
        same = [one for one in reached if (one.cell.panel, one.cell.label) == (result.cell.panel, label)]
        same.sort(key=lambda one: one.cell.budget != result.cell.budget)
        for other in same[:1]:
            interval = welch_interval(result.values("test_auc"), other.values("test_auc"))
            row = [result.cell.panel, result.cell.variant, _times(result.cell), other.cell.label, _times(other.cell)]
            row.append(f"{result.mean('test_auc') - other.mean('test_auc'):+.4f}")
            rows.append([*row, f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else ""])
    return markdown_table(header, rows) if rows else ""


def _times(cell: Cell) -> str:
    return "" if cell.budget is None else f"{cell.budget:g}x"


def kilobytes(count: float) -> str:
    """A number of bytes for a table; nothing for none.

    >>> kilobytes(131_072), kilobytes(0)
    ('131 kB', '')
    """
    return f"{count / 1000:,.0f} kB" if count else ""


def _about(data: StudyData) -> str:
    """A paragraph on the data: source, terms, number of rows and values."""
    info = data.info
    rows = ", ".join(f"{name} {split.rows:,}" for name, split in info.splits.items())
    values = ", ".join(f"{name} {count:,}" for name, count in data.num_values.items())
    return (
        f"**Data: {info.name}.** {info.source}. Split: {info.split_rule}. Rows: {rows}. "
        f"Distinct training values: {values}. Digest {info.digest}. Terms: {info.licence}."
    )


def csv_lines(study: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """One line per run, by column."""
    return [
        {
            "study": study,
            **{name: getattr(result.cell, name) for name in ("data", "model", "label", "table_dtype", "budget")},
            "seed": seed,
            **{name: round(value, 6) if isinstance(value, float) else value for name, value in record.items()},
            "command": command(result.cell, seed),
        }
        for result in results
        for seed, record in sorted(result.records.items())
    ]


def command(cell: Cell, seed: int) -> str:
    """The command of one run, on the data where docs/results/README.md prepares it."""
    words = shlex.join(cell.train_arguments(seed))
    text = f"muxrec train {words} --data work/{cell.data} --out work/run --no-track"
    if cell.compression:
        text += f" && muxrec prune work/run {shlex.join(cell.prune_arguments())} --out work/pruned --no-track"
    return text


def draw(path: Path, results: Sequence[Result]) -> None:
    """A panel per model: a line per variant, test AUC against size, with bars for the spread between seeds."""
    panels: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda one: -(one.cell.budget or 0)):
        if result.values("test_auc"):
            panels.setdefault(result.cell.panel, []).append(result)
    if not panels:
        return
    figure = Figure(figsize=(7.5 * len(panels), 4.6), layout="constrained")
    for axes, (title, own) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _draw_panel(axes, own)
        axes.set_title(title)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_panel(axes: Axes, own: Sequence[Result]) -> None:
    sizes = list(dict.fromkeys(_times(result.cell) for result in own))
    variants = list(dict.fromkeys(result.cell.variant for result in own))
    for number, variant in enumerate(variants):
        line = [result for result in own if result.cell.variant == variant]
        aside = 0.6 * (number / len(variants) - 0.5)  # points of one size do not hide each other
        places = [sizes.index(_times(result.cell)) + aside for result in line]
        means = [result.mean("test_auc") for result in line]
        errors = [spread(result.values("test_auc")) or 0.0 for result in line]
        look: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "color": mpl.colormaps["tab20"](number % 20)}
        axes.errorbar(places, means, yerr=errors, capsize=2, markersize=5, linewidth=0.8, label=variant, **look)
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_xlim(-0.5, len(sizes) - 0.5)
    axes.set_yscale("logit")  # a thousandth near 1 is as wide as a hundredth at .9
    axes.yaxis.set_major_locator(MaxNLocator(8))
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", alpha=0.3)
    axes.set(xlabel="size of the table, in units of the collisionless one", ylabel="test AUC")
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
