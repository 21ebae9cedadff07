"""Drift for people: a table in the terminal, and one HTML page with pictures that needs no network."""

import html

from rich.box import SIMPLE_HEAD
from rich.table import Table

from serving.drift import MAJOR, MODERATE, SCORE, Drift, DriftReport

SOURCE = (
    f"Population stability index: up to {MODERATE:g} stable, above {MAJOR:g} major (Lewis 1994; Siddiqi 2006). "
    "“by chance”: what it stays below in 95 of 100 samples of this size without drift (Yurdakul and Naranjo 2020). "
    "“unseen” compares the share of values that training had not seen with that of the validation rows."
)
WIDTH, HEIGHT, MARGIN, LEFT = 560, 172, 56, 44
_COLOURS = {"stable": "#2e7d32", "moderate": "#b26a00", "major": "#b3261e"}

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1c1c1e;background:#fff}
table{border-collapse:collapse;width:100%}th,td{padding:.3rem .6rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}
section{margin:2rem 0}h2{font-size:1.05rem;margin:0 0 .3rem}svg{width:100%;max-width:44rem;height:auto}
.note{color:#555}.expected{fill:#9aa5b1}.actual{fill:#1f5fa8}text{font:10px system-ui,sans-serif;fill:#444}
@media(prefers-color-scheme:dark){body{background:#16181b;color:#e6e6e6}th,td{border-color:#333}.note,text{color:#aaa;fill:#aaa}
.expected{fill:#6b7683}.actual{fill:#6aa7ee}}
"""


def drift_table(report: DriftReport) -> Table:
    """The report for a terminal, the worst feature first."""
    title = f"{report.model} {report.model_id}: {report.rows:,} rows beside the training profile"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("\nfeature", no_wrap=True)
    table.add_column("\nverdict", no_wrap=True)
    for heading in ("\nPSI", "by\nchance", "% missing\ntrain, now", "% unseen\nvalid, now", "PSI of\nunseen"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in report.all:
        table.add_row(one.name, one.verdict, *_figures(one))
    return table


def _figures(one: Drift) -> list[str]:
    """PSI, chance, rates of missing and unseen values, PSI of the unseen."""
    missing = "" if one.name == SCORE else _pair(one.missing)
    unseen = ["", ""] if one.unseen is None else [_pair(one.unseen), f"{one.unseen_psi:.3f}"]
    return [f"{one.psi:.3f}", f"{one.chance:.3f}", missing, *unseen]


def _pair(rates: tuple[float, float]) -> str:
    return f"{100 * rates[0]:.1f}, {100 * rates[1]:.1f}"


def drift_page(report: DriftReport) -> str:
    """The report as one HTML page."""
    rows = report.all
    headings = (
        "feature",
        "verdict",
        "PSI",
        "by chance",
        "% missing: train, now",
        "% unseen: valid, now",
        "PSI of unseen",
    )
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    body = "".join(_row(one, number) for number, one in enumerate(rows))
    pictures = "".join(_section(one, number) for number, one in enumerate(rows))
    title = f"Drift of {html.escape(report.model)} {html.escape(report.model_id)}"
    of_training = f" beside {report.training_rows:,} training rows" if report.training_rows else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f'<h1>{title}</h1><p>{report.rows:,} rows{of_training}.</p><p class="note">{html.escape(SOURCE)}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{pictures}</body></html>\n"
    )


def _row(one: Drift, number: int) -> str:
    cells = "".join(f"<td>{html.escape(text)}</td>" for text in _figures(one))
    colour = _COLOURS[one.verdict]
    name = f'<a href="#d{number}">{html.escape(one.name)}</a>'
    return f'<tr><td>{name}</td><td style="color:{colour}">{one.verdict}</td>{cells}</tr>'


def _section(one: Drift, number: int) -> str:
    name = html.escape(one.name)
    return f'<section id="d{number}"><h2>{name}: {one.verdict}, PSI {one.psi:.3f}</h2>{_picture(one)}</section>'


def _picture(one: Drift) -> str:
    """Two bars a bin: its share in training and now."""
    pairs = list(zip(one.labels, one.expected, one.actual, strict=True))
    pairs = [pair for pair in pairs if pair[0] != "missing" or pair[1] or pair[2]]
    top = max(max(expected, actual) for _, expected, actual in pairs) or 1.0
    step, base = WIDTH / len(pairs), HEIGHT - MARGIN
    parts: list[str] = []
    for number, (label, expected, actual) in enumerate(pairs):
        for offset, kind, share in ((0.1, "expected", expected), (0.5, "actual", actual)):
            height = (base - 12) * share / top
            left, width = step * (number + offset), 0.38 * step
            place = f'x="{left:.1f}" y="{base - height:.1f}" width="{width:.1f}" height="{height:.1f}"'
            said = f"{label}: {100 * share:.2f} % {'in training' if kind == 'expected' else 'now'}"
            parts.append(f'<rect class="{kind}" {place}><title>{html.escape(said)}</title></rect>')
        right = step * (number + 0.7)
        turned = f'transform="rotate(-32 {right:.1f} {base + 12})"'
        parts.append(f'<text x="{right:.1f}" y="{base + 12}" text-anchor="end" {turned}>{html.escape(label)}</text>')
    parts.append(f'<text x="2" y="10">{100 * top:.1f} %; grey: training, blue: now</text>')
    frame = f'viewBox="{-LEFT} 0 {WIDTH + LEFT} {HEIGHT}" role="img" aria-label="{html.escape(one.name)}"'
    return f"<svg {frame}>{''.join(parts)}</svg>"
