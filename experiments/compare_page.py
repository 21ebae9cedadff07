"""The comparison of runs as one HTML file: sortable, with a figure, and without anything from the network.

Its only links lead to the MLflow UI, at the address that it was told.
"""

import json
import math
from html import escape
from urllib.parse import quote

from experiments.compare import Column, Row, RunComparison, difference_texts, figure_text
from experiments.significance import spread
from recsys.tracking_store import LOCAL_UI, VIEW

MAX_COMPARED = 100
"""Runs that one address of MLflow's page can name."""
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 300, 60, 40
"""The figure, in pixels, and its margins."""
MAX_LABELS = 12
"""Points that are named in the figure; of more, names would cover each other."""

STYLE = """
:root { color-scheme: light dark; --line: #8d99ae66; --accent: #2a6f97; --muted: #6b7280; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } p { max-width: 75ch; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: right; white-space: nowrap; }
th { position: sticky; top: 0; background: Canvas; vertical-align: bottom; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\25b2"; }
th[aria-sort=descending] button::after { content: " \\25bc"; }
.text { text-align: left; white-space: normal; } .muted { color: var(--muted); } tr.baseline td { font-weight: 600; }
a { color: var(--accent); } svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
"""

SCRIPT = """
const table = document.querySelector("table"), body = table.tBodies[0];
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
            _scatter(comparison),
            '<p class="muted">Click a heading to sort. Tick rows to open their runs side by side: ',
            _compare_link(comparison, ui),
            "</p>",
            f'<div class="table">{_table(comparison, ui)}</div>',
            f"<script>{SCRIPT}</script></body></html>",
            "",
        ]
    )


def _about(comparison: RunComparison) -> str:
    num_runs = sum(len(row.runs) for row in comparison.rows)
    words = [
        f"{num_runs} finished runs in {len(comparison.rows)} rows: runs that differ in their seed are one row, its "
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


def _compare_link(comparison: RunComparison, ui: str) -> str:
    base = f"{ui}/#/compare-runs?runs="
    end = f"&amp;experiments={quote(json.dumps([comparison.experiment_id]))}&amp;{VIEW}"
    return (
        f'<a id="compare" hidden href="#" data-base="{escape(base)}" data-end="{end}" target="_blank" '
        'rel="noopener">compare in MLflow</a>'
    )


def _table(comparison: RunComparison, ui: str) -> str:
    columns, keys = comparison.columns(), comparison.setting_keys()
    heads = ["<th></th>", _head("run", is_text=True), *(_head(key, is_text=True) for key in keys), _head("seeds")]
    if comparison.baseline:
        heads += [_head("difference"), _head("p", is_less_better=True)]
    heads += [_head(column.title, is_less_better=_is_less_better(column)) for column in columns]
    rows = "\n".join(_row(comparison, row, columns, keys, ui) for row in comparison.rows)
    return f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>\n{rows}\n</tbody></table>"


def _is_less_better(column: Column) -> bool:
    return not column.metric.endswith(("auc", "samples_per_s"))


def _head(title: str, *, is_text: bool = False, is_less_better: bool = False) -> str:
    """A heading; the first click on it puts the best row on top."""
    shown = escape(title.replace(".", ".\u200b"))  # long keys may break there
    up = ' data-up="1"' if is_text or is_less_better else ""
    return f'<th scope="col"{up}{_text(is_text)}><button type="button">{shown}</button></th>'


def _text(is_text: bool) -> str:
    return ' class="text"' if is_text else ""


def _row(comparison: RunComparison, row: Row, columns: list[Column], keys: list[str], ui: str) -> str:
    runs = [f"{ui}/#/experiments/{run.experiment_id}/runs/{run.run_id}?{VIEW}" for run in row.runs]
    names = [f"seed {run.params.get('seed', '?')}" for run in row.runs]
    links = " ".join(
        f'<a href="{escape(run)}" target="_blank" rel="noopener">{escape(name)}</a>'
        for run, name in zip(runs, names, strict=True)
    )
    ids = ",".join(run.run_id for run in row.runs[:MAX_COMPARED])
    label = escape(f"choose {row.name}")
    cells = [
        f'<td><input type="checkbox" value="{ids}" aria-label="{label}"></td>',
        f'<td class="text" data-value="{escape(row.name)}">{escape(row.name)}<br><small>{links}</small></td>',
        *(f'<td class="text">{escape(row.settings.get(key, ""))}</td>' for key in keys),
        f"<td>{len(row.runs)}</td>",
    ]
    if comparison.baseline:
        difference = comparison.difference(row)
        texts = difference_texts(comparison, row)
        cells += [_cell(difference.auc if difference else None, texts[0])]
        cells += [_cell(difference.p if difference else None, texts[1])]
    cells += [_cell(row.mean(column.metric), figure_text(row, column)) for column in columns]
    mark = ' class="baseline"' if row is comparison.baseline else ""
    return f"<tr{mark}>{''.join(cells)}</tr>"


def _cell(value: float | None, text: str) -> str:
    return f'<td data-value="{"" if value is None else repr(value)}">{escape(text)}</td>'


def _scatter(comparison: RunComparison) -> str:
    """Quality against bytes, as an inline picture; nothing where a single size or quality leaves nothing to see."""
    metric = comparison.metric
    points = [
        (row, size, quality)
        for row in comparison.rows
        if (size := row.mean("perf/bundle_bytes")) and (quality := row.mean(metric)) is not None
    ]
    sizes = [math.log10(size) for _, size, _ in points]
    if len({f"{size:.6f}" for size in sizes}) < 2:
        return ""
    errors = [spread(row.values(metric)) or 0.0 for row, _, _ in points]
    lows = [quality - error for (_, _, quality), error in zip(points, errors, strict=True)]
    highs = [quality + error for (_, _, quality), error in zip(points, errors, strict=True)]
    across = _Scale(min(sizes), max(sizes), LEFT, WIDTH - 20)
    up = _Scale(min(lows), max(highs), HEIGHT - BOTTOM, 20)
    marks = []
    for (row, size, quality), error in zip(points, errors, strict=True):
        x, y = across.at(math.log10(size)), up.at(quality)
        hint = escape(f"{row.name}: {quality:.4f} at {size / 1000:,.0f} kB\n" + "\n".join(_settings(row)))
        bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{up.at(quality - error):.1f}" y2="{up.at(quality + error):.1f}"/>'
        fill = "#e07a3f" if row is comparison.baseline else "#2a6f97"
        marks.append(f'<g stroke="{fill}">{bar}<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}"><title>{hint}')
        marks.append("</title></circle></g>")
        if len(points) <= MAX_LABELS:
            side = "end" if x > WIDTH / 2 else "start"
            place = f'x="{x - 8 if side == "end" else x + 8:.0f}" y="{y + 4:.0f}" text-anchor="{side}"'
            marks.append(f"<text {place}>{escape(row.name)}</text>")
    ends = [(across.low, "start"), (across.high, "end")]
    labels = [
        f'<text x="{across.at(size):.0f}" y="{HEIGHT - 22}" text-anchor="{side}">{10**size / 1000:,.0f} kB</text>'
        for size, side in ends
    ]
    labels += [f'<text x="4" y="{up.at(value) + 4:.0f}">{value:.4f}</text>' for value in (up.low, up.high)]
    labels.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">bundle, log scale</text>')
    axis = f"M{LEFT - 8} 12V{HEIGHT - BOTTOM + 8}H{WIDTH}"
    alt = escape(f"{metric} against the size of the bundle; the figures are in the table below.")
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{alt}">'
        f'<path d="{axis}" fill="none" stroke="currentColor" opacity=".4"/>'
        f'<text x="{LEFT}" y="10">{escape(metric)}</text>'
        f"{''.join(labels)}{''.join(marks)}</svg>"
    )


def _settings(row: Row) -> list[str]:
    return [f"{key}={value}" for key, value in row.settings.items() if value]


class _Scale:
    """Values to pixels."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.high = low, high
        self._start, self._factor = start, (stop - start) / ((high - low) or 1.0)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self._start + (value - self.low) * self._factor
