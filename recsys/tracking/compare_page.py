"""The comparison of runs as one HTML file: a sortable table and a figure, with nothing fetched from the network.

MLflow's own page compares run by run. This one shows seeds as one row, their spread and Welch's test, and needs no
server; its links lead to the MLflow UI.
"""

import math
from html import escape

from recsys.evaluation.significance import spread
from recsys.tracking.compare_runs import Row, RunComparison, difference_texts, figure_text
from recsys.tracking.store import LOCAL_UI, VIEW
from serving import svg

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 920, 340, 70, 26, 14, 48
"""The figure and its margins, in pixels."""
MIN_SIZE_RATIO = 1.01
"""Largest to smallest bundle; below this there is no figure."""

STYLE = """
:root { color-scheme: light dark; --accent: light-dark(#2a6f97, #6aa7ee); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem; } p { max-width: 110ch; } a { color: var(--accent); }
.table { overflow: auto; max-height: 94vh; } table { border-spacing: 0; font-size: .85rem; }
th, td { border-bottom: 1px solid #8d99ae66; padding: .2rem .45rem; text-align: right; white-space: nowrap; }
#runs th { position: sticky; top: 0; background: Canvas; } th button { all: unset; cursor: pointer; }
.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 4rem; max-width: 18rem; }
tr.baseline td { font-weight: 600; }
svg { width: 100%; max-width: 920px; height: auto; } circle { fill: var(--accent); } .baseline circle { fill: #e07a3f; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; } svg line { stroke: currentColor; opacity: .3; }
"""

SCRIPT = """
const body = document.querySelector("#runs tbody");
document.querySelectorAll("#runs th button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement;
  const key = row => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
  const sign = head.dataset.sign = -(head.dataset.sign ?? head.dataset.first);
  body.append(...[...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  }));
}));
"""


def comparison_page(comparison: RunComparison, ui: str = LOCAL_UI) -> str:
    """The page; `ui` is the address of the MLflow UI."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    title = f"Runs of {escape(comparison.experiment)}"
    rows = "\n".join(_row(comparison, number, row, ui) for number, row in enumerate(comparison.rows, 1))
    shared = "".join(f"<tr>{_text(key)}{_text(value)}</tr>" for key, value in sorted(comparison.shared.items()))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p>{_about(comparison)}</p>
<details><summary>Settings that are the same in all rows</summary><table>{shared}</table></details>
{_scatter(comparison)}
<p>Click a heading to sort. The links below “seeds” open the runs in MLflow.</p>
<div class="table"><table id="runs"><thead><tr>{_heads(comparison)}</tr></thead><tbody>
{rows}
</tbody></table></div>
<script>{SCRIPT}</script></body></html>
"""


def _about(comparison: RunComparison) -> str:
    num_runs = sum(len(row.runs) for row in comparison.rows)
    text = (
        f"Finished runs: {num_runs}; rows: {len(comparison.rows)}. Runs that differ only in their seed are one row: "
        "the mean, ± the standard deviation between seeds. Rows are in order of validation AUC; choose by that."
    )
    if comparison.baseline:
        text += (
            f" Differences are of {escape(comparison.metric)} from {escape(comparison.baseline.name)}; p is that of "
            "Welch's t-test between seeds, two-sided, not corrected for the number of rows."
        )
    return text + (f" {comparison.num_unfinished} unfinished runs are left out." if comparison.num_unfinished else "")


def _heads(comparison: RunComparison) -> str:
    """Headings; the first click on one puts the best row on top."""
    titles = [("#", False), ("run", False), *((one.title, bool(one.higher_is_better)) for one in comparison.columns())]
    titles += [("difference", True), ("p", False)] if comparison.baseline else []
    titles += [("seeds", True), *((key, False) for key in comparison.rows[0].settings)]  # the same in all rows
    return "".join(
        f'<th scope="col" data-first="{1 if is_more else -1}"><button type="button">{escape(title)}</button></th>'
        for title, is_more in titles
    )


def _row(comparison: RunComparison, number: int, row: Row, ui: str) -> str:
    """Its number, name, figures, difference, links to its runs, and settings."""
    cells = [f"<td>{number}</td>", _text(row.name)]
    cells += [_number(row.mean(one.metric), figure_text(row, one)) for one in comparison.columns()]
    if comparison.baseline:
        values = comparison.difference(row) or (None, None)
        cells += map(_number, values, difference_texts(comparison, row))
    runs = f"{escape(ui.rstrip('/'))}/#/experiments/{escape(comparison.experiment_id)}/runs"
    links = " ".join(
        f'<a href="{runs}/{run.run_id}?{VIEW}" target="_blank">{escape(run.params.get("seed") or "run")}</a>'
        for run in row.runs
    )
    cells += [f'<td data-value="{len(row.runs)}">{links}</td>', *map(_text, row.settings.values())]
    return f"<tr{_mark(comparison, row)}>{''.join(cells)}</tr>"


def _mark(comparison: RunComparison, row: Row) -> str:
    return ' class="baseline"' if row is comparison.baseline else ""


def _text(value: str) -> str:
    return f'<td class="text">{escape(value)}</td>'


def _number(value: float | None, text: str) -> str:
    return f'<td data-value="{"" if value is None else repr(value)}">{escape(text)}</td>'


def _scatter(comparison: RunComparison) -> str:
    """Quality against bytes as an inline picture, with the rows' numbers; empty if all bundles are of one size."""
    metric, title = comparison.metric, "test AUC" if comparison.metric == "test/auc" else "validation AUC"
    found = [
        (number, row, math.log10(size), quality, spread(row.values(metric)) or 0.0)
        for number, row in enumerate(comparison.rows, 1)
        if (size := row.mean("perf/bundle_bytes")) and (quality := row.mean(metric)) is not None
    ]
    sizes = [size for _, _, size, _, _ in found]
    if not sizes or max(sizes) - min(sizes) < math.log10(MIN_SIZE_RATIO):
        return ""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    across = _padded(sizes, LEFT, right)
    up = _padded([quality + sign * error for *_, quality, error in found for sign in (-1, 1)], bottom, TOP)
    marks, named = [], []
    for number, row, size, quality, error in found:
        x, y = across.at(size), up.at(quality)
        settings = "".join(f"\n{key}={value}" for key, value in row.settings.items() if value)
        hint = escape(f"{number} {row.name}: {quality:.4f} at {svg.bytes_text(10**size)}{settings}")
        marks.append(
            f'<g{_mark(comparison, row)}><circle cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{hint}</title></circle>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up.at(quality - error):.1f}" y2="{up.at(quality + error):.1f}"/></g>'
        )
        named.append((x, y, str(number)))
    about = svg.text_at(
        (LEFT + right) / 2, HEIGHT - 8, "size of the bundle, logarithmic; numbers are those of the rows"
    )
    ticks = [svg.Tick(math.log10(value), text) for value, text in svg.byte_ticks(10**across.low, 10**across.high)]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title} against the size of the bundle">'
        f"{svg.x_axis(across, ticks, TOP, bottom)}{svg.y_axis(up, svg.ticks(up.low, up.high), LEFT, right)}"
        f"{about}{svg.y_title(title, 14, (TOP + bottom) / 2)}{''.join(marks)}"
        f"{svg.labels(named, [(x, y) for x, y, _ in named], LEFT, right)}</svg>"
    )


def _padded(values: list[float], start: float, stop: float) -> svg.Scale:
    room = 0.05 * (max(values) - min(values)) or 0.001
    return svg.Scale(min(values) - room, max(values) + room, start, stop)
