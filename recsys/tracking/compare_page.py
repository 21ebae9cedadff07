"""The comparison of runs as one HTML file: a sortable table and a figure, with nothing fetched from the network.

MLflow's own page compares run by run. This one shows seeds as one row, their spread and Welch's test, and needs no
server; its links lead to the MLflow UI.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from html import escape
from urllib.parse import quote

from recsys.evaluation.significance import spread
from recsys.tracking.compare_runs import LEAD, Row, RunComparison, difference_texts, figure_text
from recsys.tracking.store import LOCAL_UI, VIEW
from serving import svg

MAX_COMPARED = 100
"""Runs per row that MLflow's page is asked for; its address names each."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 920, 340, 70, 26, 14, 48
"""The figure and its margins, in pixels."""
MAX_LABELS = 12
"""With more points, only the baseline and the Pareto front (no smaller bundle is better) are labelled."""
MIN_SIZE_RATIO = 1.01
"""Largest to smallest bundle; below this there is no figure."""

STYLE = """
:root { color-scheme: light dark; --line: #8d99ae66; --accent: #2a6f97; --muted: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --accent: #6aa7ee; --muted: #9aa3af; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 1800px; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; } p { max-width: 110ch; margin: .5rem 0; }
.table { overflow: auto; max-height: 94vh; } details { margin: .5rem 0; } summary { cursor: pointer; }
table { border-collapse: separate; border-spacing: 0; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .45rem; text-align: right; white-space: nowrap; }
#runs th { position: sticky; top: 0; z-index: 2; background: Canvas; vertical-align: bottom; white-space: normal; }
#runs tr > :nth-child(-n+2) { position: sticky; left: 0; z-index: 1; background: Canvas; }
#runs th:nth-child(-n+2) { z-index: 3; } #runs tr > :nth-child(2) { left: 1.9rem; }
tbody tr:hover { background: #8d99ae22; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\25b2"; }
th[aria-sort=descending] button::after { content: " \\25bc"; }
.text { text-align: left; } td.text { max-width: 9rem; overflow: hidden; text-overflow: ellipsis; }
.name { min-width: 10rem; max-width: 18rem; white-space: normal; overflow-wrap: anywhere; text-align: left; }
.seeds { max-width: 7rem; white-space: normal; } .muted { color: var(--muted); } tr.baseline td { font-weight: 600; }
a { color: var(--accent); } svg { width: 100%; max-width: 920px; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; } svg .grid { stroke: currentColor; opacity: .15; }
@media print { .table { max-height: none; overflow: visible; } }
"""

SCRIPT = """
const table = document.querySelector("#runs"), body = table.tBodies[0];
const link = document.querySelector("#compare");
table.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement, column = head.cellIndex;
  const now = head.getAttribute("aria-sort"), isUp = now ? now === "descending" : "up" in head.dataset;
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const difference = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return isUp ? difference : -difference;
  };
  body.append(...[...body.rows].sort(order));
}));
body.addEventListener("change", () => {
  const chosen = [...body.querySelectorAll("input:checked")].flatMap(box => box.value.split(","));
  link.href = link.dataset.base + encodeURIComponent(JSON.stringify(chosen)) + link.dataset.end;
  link.hidden = chosen.length < 2;
});
"""


def comparison_page(comparison: RunComparison, ui: str = LOCAL_UI) -> str:
    """The page; `ui` is the address of the MLflow UI."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    title, ui = f"Runs of {escape(comparison.experiment)}", escape(ui.rstrip("/"))
    end = f"&amp;experiments={quote(json.dumps([comparison.experiment_id]))}&amp;{VIEW}"
    columns = _columns(comparison, ui)
    mark = ' class="baseline"'
    rows = "\n".join(
        f"<tr{mark if row is comparison.baseline else ''}>{''.join(cell(row) for _, cell in columns)}</tr>"
        for row in comparison.rows
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{STYLE}</style></head><body>
<h1>{title}</h1>
<p>{_about(comparison)}</p>
{_shared(comparison)}
{_scatter(comparison)}
<p class="muted">Click a heading to sort. The links below “seeds” open the runs in MLflow; tick rows to see them there
side by side: <a id="compare" hidden href="#" data-base="{ui}/#/compare-runs?runs=" data-end="{end}" target="_blank"
rel="noopener">compare in MLflow</a></p>
<div class="table"><table id="runs"><thead><tr>{"".join(head for head, _ in columns)}</tr></thead><tbody>
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
            "Welch's t-test between seeds, two-sided, not corrected for the number of rows; it needs two seeds on both "
            "sides."
        )
    return text + (f" {comparison.num_unfinished} unfinished runs are left out." if comparison.num_unfinished else "")


def _shared(comparison: RunComparison) -> str:
    """The settings that all rows share, folded away."""
    pairs = "".join(f"<tr>{_text(key)}{_text(value)}</tr>" for key, value in sorted(comparison.shared.items()))
    about = f"Settings that are the same in all rows: {len(comparison.shared)}"
    return f"<details><summary>{about}</summary><table>{pairs}</table></details>" if pairs else ""


def _columns(comparison: RunComparison, ui: str) -> list[tuple[str, Callable[[Row], str]]]:
    """Heading and cell of each column: the run's name, its figures, the leading ones first, seeds and settings."""
    figures = {
        column.metric: (
            _head(column.title, column.metric, is_less_better=not column.higher_is_better),
            lambda row, column=column: _number(row.mean(column.metric), figure_text(row, column)),
        )
        for column in comparison.columns()
    }
    lead: list[tuple[str, Callable[[Row], str]]] = [figures.pop(metric) for metric in LEAD if metric in figures]
    if comparison.baseline:
        for number, head in enumerate((_head("difference", comparison.metric), _head("p", is_less_better=True))):
            lead.append((head, partial(_difference, comparison, number)))
    settings = [
        (_head(key, is_text=True), lambda row, key=key: _text(row.settings.get(key, "")))
        for key in comparison.setting_keys()
    ]
    named = [("<th></th>", _checkbox), (_head("run", is_text=True), lambda row: _text(row.name, "name"))]
    return [*named, *lead, *figures.values(), (_head("seeds"), lambda row: _links(row, ui)), *settings]


def _head(title: str, hint: str = "", *, is_text: bool = False, is_less_better: bool = False) -> str:
    """A heading; the first click on it puts the best row on top."""
    shown = escape(title).replace(".", ".\u200b").replace("_", "_\u200b")  # long keys may break there
    up = ' data-up="1"' if is_text or is_less_better else ""
    kind = ' class="text"' if is_text else ""
    return f'<th scope="col"{up}{kind} title="{escape(hint)}"><button type="button">{shown}</button></th>'


def _text(value: str, kind: str = "text") -> str:
    """A cell of text, which may be cut off; its title is whole."""
    return f'<td class="{kind}" title="{escape(value)}">{escape(value)}</td>'


def _number(value: float | None, text: str) -> str:
    return f'<td data-value="{"" if value is None else repr(value)}">{escape(text)}</td>'


def _difference(comparison: RunComparison, number: int, row: Row) -> str:
    """The cell of a row's difference (0) or its p (1)."""
    values = comparison.difference(row) or (None, None)
    return _number(values[number], difference_texts(comparison, row)[number])


def _checkbox(row: Row) -> str:
    ids = ",".join(run.run_id for run in row.runs[:MAX_COMPARED])
    return f'<td><input type="checkbox" value="{ids}" aria-label="{escape(f"choose {row.name}")}"></td>'


def _links(row: Row, ui: str) -> str:
    links = " ".join(
        f'<a href="{ui}/#/experiments/{run.experiment_id}/runs/{run.run_id}?{VIEW}" target="_blank" rel="noopener">'
        f"{escape(run.params.get('seed') or 'run')}</a>"
        for run in row.runs
    )
    return f'<td class="seeds" data-value="{len(row.runs)}">{links}</td>'


def _scatter(comparison: RunComparison) -> str:
    """Quality against bytes as an inline picture; empty if all bundles are of one size."""
    metric, title = comparison.metric, "test AUC" if comparison.metric == "test/auc" else "validation AUC"
    found = [
        (row, size, quality, spread(row.values(metric)) or 0.0)
        for row in comparison.rows
        if (size := row.mean("perf/bundle_bytes")) and (quality := row.mean(metric)) is not None
    ]
    sizes = [size for _, size, _, _ in found]
    if not sizes or max(sizes) < MIN_SIZE_RATIO * min(sizes):
        return ""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    across = _padded([math.log10(size) for size in sizes], LEFT, right)
    up = _padded([quality + sign * error for _, _, quality, error in found for sign in (-1, 1)], bottom, TOP)
    marks, points, named = [], [], []
    for row, size, quality, error in found:
        x, y = across.at(math.log10(size)), up.at(quality)
        hint = "\n".join([f"{row.name}: {quality:.4f} at {svg.bytes_text(size)}", *row.setting_texts()])
        bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up.at(quality - error):.1f}" y2="{up.at(quality + error):.1f}"/>'
        is_baseline = row is comparison.baseline
        fill = "#e07a3f" if is_baseline else "#2a6f97"
        marks.append(
            f'<g stroke="{fill}">{bar}<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" fill-opacity=".75">'
            f"<title>{escape(hint)}</title></circle></g>"
        )
        points.append((x, y))
        is_best = all(quality > other for _, smaller, other, _ in found if (smaller, -other) < (size, -quality))
        if len(found) <= MAX_LABELS or is_best or is_baseline:
            named.append((x, y, svg.shortened(row.name) + (" (baseline)" if is_baseline else "")))
    sizes_shown = [svg.Tick(math.log10(value), text) for value, text in svg.byte_ticks(10**across.low, 10**across.high)]
    about = "size of the bundle, logarithmic"
    if left_out := len(comparison.rows) - len(found):
        about += f"; not known of {left_out} of the {len(comparison.rows)} rows"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title} against the size of the bundle; the figures are in the table below.">'
        f"{svg.x_axis(across, sizes_shown, TOP, bottom)}{svg.y_axis(up, svg.ticks(up.low, up.high), LEFT, right)}"
        f"{svg.text_at((LEFT + right) / 2, HEIGHT - 8, about)}"
        f"{svg.y_title(title, 14, (TOP + bottom) / 2)}{''.join(marks)}{svg.labels(named, points, LEFT, right)}</svg>"
    )


def _padded(values: list[float], start: float, stop: float) -> svg.Scale:
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.001
    return svg.Scale(low - room, high + room, start, stop)
