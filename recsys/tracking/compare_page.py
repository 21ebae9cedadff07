"""The comparison of runs as one HTML file: sortable, with a figure, and without anything from the network.

Its only links lead to the MLflow UI, at the address that it was told.
"""

import json
import math
from html import escape
from urllib.parse import quote

from recsys.evaluation.significance import spread
from recsys.tracking.compare_runs import LEAD, Column, Row, RunComparison, difference_texts, figure_text
from recsys.tracking.store import LOCAL_UI, VIEW
from serving import svg
from serving.svg import shortened

MAX_COMPARED = 100
"""Runs that one address of MLflow's page can name."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 920, 340, 70, 26, 14, 48
"""The figure, in pixels, and its margins."""
MAX_LABELS = 12
"""Points that are all named in the figure; of more, those are that no smaller one is better than."""
LEAST_RATIO = 1.01
"""Of the largest bundle to the smallest, from which there is a figure."""

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
.name { width: max-content; max-width: 18rem; white-space: normal; overflow-wrap: anywhere; text-align: left; }
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
    ui = ui.rstrip("/")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    title = f"Runs of {escape(comparison.experiment)}"
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{title}</h1>",
            f"<p>{_about(comparison)}</p>",
            _shared(comparison),
            _scatter(comparison),
            '<p class="muted">Click a heading to sort. The links below “seeds” open the runs in MLflow; tick rows to '
            "see them there side by side: ",
            _compare_link(comparison, ui),
            "</p>",
            _table(comparison, ui),
            f"<script>{SCRIPT}</script></body></html>",
            "",
        ]
    )


def _about(comparison: RunComparison) -> str:
    num_runs = sum(len(row.runs) for row in comparison.rows)
    words = [
        f"Finished runs: {num_runs}; rows: {len(comparison.rows)}. Runs that differ in their seed are one row, its "
        "mean and ± the standard deviation between seeds. Rows are in order of validation AUC, which should choose."
    ]
    if comparison.baseline:
        words.append(
            f"Differences are of {escape(comparison.metric)} from {escape(comparison.baseline.name)}; p is that of "
            "Welch's t-test between seeds, two-sided, not corrected for the number of rows; it needs two seeds on both "
            "sides."
        )
    if comparison.num_unfinished:
        words.append(f"{comparison.num_unfinished} runs without an end are left out.")
    return " ".join(words)


def _shared(comparison: RunComparison) -> str:
    """The settings that all rows share, folded away."""
    pairs = "".join(f"<tr>{_text(key)}{_text(value)}</tr>" for key, value in sorted(comparison.shared.items()))
    about = f"Settings that are the same in all rows: {len(comparison.shared)}"
    return f"<details><summary>{about}</summary><table>{pairs}</table></details>" if pairs else ""


def _compare_link(comparison: RunComparison, ui: str) -> str:
    base = f"{ui}/#/compare-runs?runs="
    end = f"&amp;experiments={quote(json.dumps([comparison.experiment_id]))}&amp;{VIEW}"
    return (
        f'<a id="compare" hidden href="#" data-base="{escape(base)}" data-end="{end}" target="_blank" '
        'rel="noopener">compare in MLflow</a>'
    )


def _table(comparison: RunComparison, ui: str) -> str:
    """What rows are chosen by comes first: the row's name, its figures, and then what was set."""
    columns, keys = comparison.columns(), comparison.setting_keys()
    figures = [_head(one.title, one.metric, is_less_better=not one.higher_is_better) for one in columns]
    lead = sum(one.metric in LEAD for one in columns)
    heads = ["<th></th>", _head("run", is_text=True), *figures[:lead]]
    if comparison.baseline:
        heads += [_head("difference", comparison.metric), _head("p", is_less_better=True)]
    heads += figures[lead:]
    heads += [_head("seeds"), *(_head(key, is_text=True) for key in keys)]
    rows = "\n".join(_row(comparison, row, columns, keys, ui) for row in comparison.rows)
    table = f'<table id="runs"><thead><tr>{"".join(heads)}</tr></thead><tbody>\n{rows}\n</tbody></table>'
    return f'<div class="table">{table}</div>'


def _head(title: str, hint: str = "", *, is_text: bool = False, is_less_better: bool = False) -> str:
    """A heading; the first click on it puts the best row on top."""
    shown = escape(title).replace(".", ".\u200b").replace("_", "_\u200b")  # long keys may break there
    up = ' data-up="1"' if is_text or is_less_better else ""
    kind = ' class="text"' if is_text else ""
    return f'<th scope="col"{up}{kind} title="{escape(hint)}"><button type="button">{shown}</button></th>'


def _text(value: str) -> str:
    """A cell of text; what is cut off there is in its title."""
    return f'<td class="text" title="{escape(value)}">{escape(value)}</td>'


def _row(comparison: RunComparison, row: Row, columns: list[Column], keys: list[str], ui: str) -> str:
    runs = [f"{ui}/#/experiments/{run.experiment_id}/runs/{run.run_id}?{VIEW}" for run in row.runs]
    names = [run.params.get("seed") or "run" for run in row.runs]
    links = " ".join(
        f'<a href="{escape(run)}" target="_blank" rel="noopener">{escape(name)}</a>'
        for run, name in zip(runs, names, strict=True)
    )
    ids = ",".join(run.run_id for run in row.runs[:MAX_COMPARED])
    label = escape(f"choose {row.name}")
    cells = [f'<td><input type="checkbox" value="{ids}" aria-label="{label}"></td>']
    cells.append(f'<td data-value="{escape(row.name)}"><div class="name">{escape(row.name)}</div></td>')
    figures = [_cell(row.mean(column.metric), figure_text(row, column)) for column in columns]
    lead = sum(column.metric in LEAD for column in columns)
    cells += figures[:lead]
    if comparison.baseline:
        difference = comparison.difference(row)
        texts = difference_texts(comparison, row)
        cells += [_cell(difference.auc if difference else None, texts[0])]
        cells += [_cell(difference.p if difference else None, texts[1])]
    cells += figures[lead:]
    cells.append(f'<td class="seeds" data-value="{len(row.runs)}">{links}</td>')
    cells += [_text(row.settings.get(key, "")) for key in keys]
    mark = ' class="baseline"' if row is comparison.baseline else ""
    return f"<tr{mark}>{''.join(cells)}</tr>"


def _cell(value: float | None, text: str) -> str:
    return f'<td data-value="{"" if value is None else repr(value)}">{escape(text)}</td>'


def _scatter(comparison: RunComparison) -> str:
    """Quality against bytes, as an inline picture; nothing where a single size leaves nothing to see."""
    metric, title = comparison.metric, "test AUC" if comparison.metric == "test/auc" else "validation AUC"
    found = [
        (row, size, quality)
        for row in comparison.rows
        if (size := row.mean("perf/bundle_bytes")) and (quality := row.mean(metric)) is not None
    ]
    sizes = [size for _, size, _ in found]
    if not sizes or max(sizes) < LEAST_RATIO * min(sizes):
        return ""
    errors = [spread(row.values(metric)) or 0.0 for row, _, _ in found]
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    across = _padded([math.log10(size) for size in sizes], LEFT, right)
    reach = [quality + sign * error for (_, _, quality), error in zip(found, errors, strict=True) for sign in (-1, 1)]
    up = _padded(reach, bottom, TOP)
    marks, points, named = [], [], []
    front = _front([(size, quality) for _, size, quality in found])
    for number, ((row, size, quality), error) in enumerate(zip(found, errors, strict=True)):
        x, y = across.at(math.log10(size)), up.at(quality)
        hint = escape(f"{row.name}: {quality:.4f} at {svg.bytes_text(size)}\n" + "\n".join(_settings(row)))
        bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up.at(quality - error):.1f}" y2="{up.at(quality + error):.1f}"/>'
        fill = "#e07a3f" if row is comparison.baseline else "#2a6f97"
        marks.append(
            f'<g stroke="{fill}">{bar}<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" fill-opacity=".75">'
        )
        marks.append(f"<title>{hint}</title></circle></g>")
        points.append((x, y))
        if len(found) <= MAX_LABELS or number in front or row is comparison.baseline:
            named.append((x, y, shortened(row.name) + (" (baseline)" if row is comparison.baseline else "")))
    sizes_shown = [svg.Tick(math.log10(value), text) for value, text in svg.byte_ticks(10**across.low, 10**across.high)]
    about = "size of the bundle, logarithmic"
    if left_out := len(comparison.rows) - len(found):
        about += f"; not known of {left_out} of the {len(comparison.rows)} rows"
    alt = escape(f"{title} against the size of the bundle; the figures are in the table below.")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{alt}">'
        f"{svg.x_axis(across, sizes_shown, TOP, bottom)}{svg.y_axis(up, svg.ticks(up.low, up.high), LEFT, right)}"
        f"{svg.text_at((LEFT + right) / 2, HEIGHT - 8, about)}"
        f"{svg.y_title(title, 14, (TOP + bottom) / 2)}{''.join(marks)}{svg.labels(named, points, LEFT, right)}</svg>"
    )


def _padded(values: list[float], start: float, stop: float) -> svg.Scale:
    """The axis of these values, with room at both ends; of equal ones too."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 0.001
    return svg.Scale(low - room, high + room, start, stop)


def _front(points: list[tuple[float, float]]) -> set[int]:
    """Numbers of the points (size, quality) that are better than all of at most their size."""
    found: set[int] = set()
    best = -math.inf
    for number in sorted(range(len(points)), key=lambda one: (points[one][0], -points[one][1])):
        if points[number][1] > best:
            best = points[number][1]
            found.add(number)
    return found


def _settings(row: Row) -> list[str]:
    return [f"{key}={value}" for key, value in row.settings.items() if value]
