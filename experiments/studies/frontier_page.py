"""The frontier pages of docs/results: quality against bytes in tables, a figure, and a csv with one line per run.

Validation chooses, test judges: the type of rows shown for a method at a budget, and the method called best there, have
the best mean validation AUC. The two best methods are compared by Welch's t-test on their test AUCs, after they were
chosen among many.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.studies.compression import REFERENCE
from experiments.studies.page import Result, csv_lines, draw_level, draw_line, grouped, kilobytes, study_command
from experiments.studies.table_kinds import Study, StudyData
from features.files import write_text
from recsys.evaluation.significance import welch
from recsys.report.text import csv_text, markdown_table
from serving.bundle.table_plan import table_bytes

NEAR = 0.015
"""AUC below the collisionless table to which the second panel of the figure reaches."""
COLUMNS = (
    *("data", "method", "table_dtype", "budget", "target_bytes", "seed", "reached"),
    *("test_auc", "test_logloss", "valid_auc", "valid_logloss"),
    *("embedding_bytes", "bundle_bytes", "seconds", "base_seconds", "scorer_us_per_row"),
)
COLORS = (
    *("#1b3a57", "#c8553d", "#5a9367", "#8d5a97", "#e0a23f", "#2a9fb7"),
    *("#7d7d7d", "#b5838d", "#9aa36b", "#444444", "#6b4226", "#3d6f3d"),
)
# Lines can be told apart without colour: each has its own marker.
STYLES = list(zip(COLORS, "os^DvPX<>*hp", ["-"] * 3 + ["--"] * 3 + [":"] * 3 + ["-."] * 3, strict=True))
TEXTS = {
    "chosen": "Mean test AUC ± standard deviation between seeds, with the type of rows that was best on validation at "
    "that budget, of those tried; bold: the best of its column on validation, among those with the most seeds. "
    "`cannot`: the method has no table, or no mask, as small as that.",
    "OptEmbed": "`OptEmbed` is the paper's procedure: supernet, search, training again from the first weights. `width "
    "search` is its second stage alone, after plain training, whose weights are then fine-tuned.",
    "best": "The best at each budget by validation, and its test AUC, over the seeds that both sides have. p is from "
    "Welch's t-test on the test AUCs, post hoc: of two methods that were chosen among many.",
    "costs": "Bytes are those of the files: `embedding` is the table and, where there is one, the vocabulary; `bundle` "
    "is everything. `training` is the wall time of `muxrec prune` while another run shared the machine, without runs "
    "that were interrupted and resumed; `base` is the training time of the run that it started from. `scorer` is one "
    "thread on 4,096 made-up raw rows at a time, encoding included. Where all rows fit, a method that removes rows "
    "gives the same result at every larger budget, so one run is shown for both.",
}


def write_frontier(
    out: Path, name: str, study: Study, results: Sequence[Result], data: Mapping[str, StudyData]
) -> None:
    """Write `NAME.md`, `NAME.svg` and `NAME.csv`; nothing before the reference run has finished."""
    points = [result for result in results if result.cell.label != REFERENCE]
    reference = next((result for result in results if result.cell.label == REFERENCE), None)
    if reference is None or not reference.records:
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{name}.md", frontier_page(name, study, points, reference, data[reference.cell.data]))
    write_text(out / f"{name}.csv", csv_text(_lines(points, reference), COLUMNS))
    draw(out / f"{name}.svg", study, points, reference)


def _lines(points: Sequence[Result], reference: Result) -> list[dict[str, Any]]:
    """A line per run, the unreachable ones included: method by method, the largest budget first."""
    curves = grouped([point for point in points if point.records], lambda cell: (cell.label, cell.dtype)).values()
    return [
        {**line, **(result.cell.compression or {"target_bytes": _full_bytes(reference)}), "method": result.cell.label}
        | {"table_dtype": result.cell.dtype, "budget": f"{_budget(result):g}", "reached": "unreachable" not in line}
        for curve in [[reference], *curves]
        for result in sorted(curve, key=lambda point: -_budget(point))
        for line in csv_lines("", [result])
    ]


def best_types(points: Sequence[Result]) -> list[Result]:
    """Each method at each budget with the type of rows that is best on validation; nothing if none was reached."""
    best: dict[tuple[str, float | None], Result] = {}
    for result in points:
        reached = {seed: record for seed, record in result.records.items() if "unreachable" not in record}
        if reached:
            point = result._replace(records=reached)
            key = (point.cell.label, point.cell.budget)
            best[key] = max(best.get(key, point), point, key=_score)
    return sorted(best.values(), key=lambda point: -_budget(point))


def _score(point: Result) -> tuple[int, float]:
    """More seeds before a better validation AUC: one lucky run is no curve."""
    return len(point.records), point.mean("valid_auc") or 0.0


def _budget(point: Result) -> float:
    assert point.cell.budget is not None
    return point.cell.budget


def frontier_page(name: str, study: Study, points: Sequence[Result], reference: Result, data: StudyData) -> str:
    """The page of a dataset, as Markdown."""
    best = best_types(points)
    full, own = _full_bytes(reference), reference.mean("embedding_bytes") or 0
    info = data.info
    parts = [
        f"# {study.title}",
        study.question,
        f"![Test AUC against bytes of the embedding files; the numbers are in the tables.]({name}.svg)",
        f"The unit is the collisionless fp32 table of {kilobytes(full)}, 16 floats for each value seen in train; with "
        f"its vocabulary it takes {kilobytes(own)}. Its test AUC is {reference.text('test_auc')}.",
        _by_budget(points, best),
        TEXTS["chosen"],
        _types(points),
        TEXTS["OptEmbed"],
        *_verdicts(best, reference, study.target or 0.0),
        "## What each point takes",
        _costs(best, reference),
        TEXTS["costs"],
        "## How to do it again",
        f"```bash\n{study_command(name, study)}\n```",
        f"Every run is a line of [{name}.csv]({name}.csv). Data: {info.name}, {info.source}; digest {info.digest}; "
        f"terms: {info.licence}.",
    ]
    return "\n\n".join(parts) + "\n"


def _full_bytes(reference: Result) -> int:
    """Bytes of the reference's table as a file, without its vocabulary: the unit of budgets."""
    record = next(iter(reference.records.values()))
    return table_bytes(record["rows"], record["width"], "fp32")


def _budgets(points: Sequence[Result]) -> list[float]:
    """Budgets that something was tried at, the largest first."""
    return sorted({_budget(point) for point in points if point.records}, reverse=True)


def _at(best: Sequence[Result], budget: float) -> list[Result]:
    """The methods at a budget, the best first."""
    return sorted((point for point in best if _budget(point) == budget), key=_score, reverse=True)


def _by_budget(points: Sequence[Result], best: Sequence[Result]) -> str:
    texts = {(point.cell.label, _budget(point)): "cannot" for point in points if point.records}
    for budget in _budgets(best):
        for place, point in enumerate(_at(best, budget)):
            text = f"{point.text('test_auc')} {point.cell.dtype}"
            texts[point.cell.label, budget] = text if place else f"**{text}**"
    budgets, methods = _budgets(points), dict.fromkeys(method for method, _ in texts)
    rows = [[method, *(texts.get((method, budget), "not run") for budget in budgets)] for method in methods]
    return markdown_table(["method", *map(share, budgets)], rows)


def _types(points: Sequence[Result]) -> str:
    methods: dict[str, list[str]] = {}
    for label, own in grouped([point for point in points if point.records], lambda cell: cell.label).items():
        methods.setdefault(" and ".join(sorted({point.cell.dtype for point in own})), []).append(label)
    by_number = sorted(methods.items(), key=lambda part: -len(part[1]))
    parts = [f"{types} ({', '.join(names)})" for types, names in by_number]
    return f"Types of rows that were tried: {'; '.join(parts)}."


def share(budget: float) -> str:
    """A budget as a fraction.

    >>> share(0.02)
    '1/50'
    """
    return f"1/{1 / budget:g}"


def _verdicts(best: Sequence[Result], reference: Result, target: float) -> Iterator[str]:
    """The best method of each budget and the next one, and whether a tenth of the bytes meets the target."""
    lines, tenth = [], None
    for budget in _budgets(best):
        first, *others = _at(best, budget)
        line = f"- {share(budget)}: {_named(first)}, {_gap(first, reference):+.4f} of collisionless"
        if others:
            p = welch(first.values("test_auc"), others[0].values("test_auc"))
            chance = "" if p is None else f", p {p:.2g}"
            line += f"; {_named(others[0])} comes next ({_gap(others[0], first):+.4f}{chance})"
        lines.append(f"{line}.")
        tenth = first if budget == 0.1 else tenth
    if lines:
        yield TEXTS["best"] + "\n\n" + "\n".join(lines)
    if tenth:
        loss = -_gap(tenth, reference)
        outcome, given_up = "met" if loss <= target else "missed", f"{loss:.4f}" if loss > 0 else "nothing"
        verdict = f"is {outcome}: {_named(tenth)} gives up {given_up}."
        yield f"The target, a tenth of the bytes for at most {target:g} of AUC, {verdict}"


def _named(point: Result) -> str:
    return f"{point.cell.label} in {point.cell.dtype}"


def _gap(point: Result, other: Result) -> float:
    """Test AUC of one minus that of the other: means over the seeds that both have, if any."""
    seeds = point.records.keys() & other.records.keys()
    ours, theirs = (
        one._replace(records={seed: one.records[seed] for seed in seeds or one.records}).auc for one in (point, other)
    )
    return ours - theirs


def _costs(best: Sequence[Result], reference: Result) -> str:
    header = ["method", "budget", "rows", "runs", "test AUC", "log loss", "embedding", "bundle", "training", "base"]
    rows = []
    for point in [reference, *best]:
        cell = point.cell
        row = [cell.label, "" if point is reference else share(_budget(point)), cell.dtype, str(len(point.records))]
        row += [point.text("test_auc"), f"{point.mean('test_logloss'):.4f}"]
        row += [kilobytes(point.mean(f"{files}_bytes") or 0) for files in ("embedding", "bundle")]
        row += ["" if point is reference else _mean(point, "seconds", "s", 0), _mean(point, "base_seconds", "s", 0)]
        rows.append([*row, _mean(point, "scorer_us_per_row", "µs", 1)])
    return markdown_table([*header, "scorer"], rows)


def _mean(point: Result, name: str, unit: str, digits: int) -> str:
    value = point.mean(name)
    return "" if value is None else f"{value:,.{digits}f} {unit}"


def draw(path: Path, study: Study, points: Sequence[Result], reference: Result) -> None:
    """Test AUC against the bytes of the embedding files: a line per method, bars for the spread between seeds.

    The second panel is the first near the collisionless table, where a thousandth counts.
    """
    full, budgets, best = _full_bytes(reference), _budgets(points)[::-1], best_types(points)
    names = [f"{share(budget)}\n{kilobytes(int(budget * full))}" for budget in budgets]
    with mpl.rc_context({"svg.hashsalt": "muxrec", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(12.5, 5.2), layout="constrained")
        whole, near = figure.subplots(1, 2)
        for axes in (whole, near):
            methods = dict.fromkeys(point.cell.label for point in points)
            for method, (color, marker, dashes) in zip(methods, STYLES * len(methods), strict=False):
                own = [point for point in best if point.cell.label == method]
                sizes = [point.mean("embedding_bytes") or 0.0 for point in own]
                style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": dashes, "markersize": 5}
                if own:
                    draw_line(axes, sizes, own, capsize=2, linewidth=1.4, label=method, **style)
            level: dict[str, Any] = {"color": "black", "linewidth": 1, "linestyle": (0, (6, 2))}
            draw_level(axes, reference, {"color": "0.85"}, label=f"{REFERENCE} fp32", **level)
            axes.set_xscale("log")
            axes.set_xticks([budget * full for budget in budgets], names)
            axes.minorticks_off()
            axes.grid(axis="x", color="0.9")
            axes.set(xlabel="bytes of the embedding files on disk", ylabel="test AUC")
            axes.spines[["top", "right"]].set_visible(False)
        near.set_ylim(reference.auc - NEAR, reference.auc + NEAR / 5)
        near.axhline(
            reference.auc - (study.target or 0), color="0.5", linewidth=1, linestyle=":", label="target at 1/10"
        )
        whole.set_title(f"{reference.cell.data}: quality against bytes")
        near.set_title("the same, near the collisionless table")
        near.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.savefig(path, metadata={"Date": None, "Creator": None})
