"""Shows drift: a table in the terminal, and one HTML page with bars that needs no network."""

import html
from datetime import UTC, datetime

from rich.box import SIMPLE_HEAD
from rich.table import Table

from serving.drift import MAJOR, MODERATE, SCORE, Drift, DriftReport
from serving.moved import Moved
from serving.svg import shortened

SOURCE = (
    f"Population stability index: up to {MODERATE:g} stable, above {MAJOR:g} major (Lewis 1994; Siddiqi 2006). "
    "“by chance”: what it stays below in 95 of 100 samples of this size without drift (Yurdakul and Naranjo 2020). "
    "“unseen” compares the share of values that training had not seen with that of the validation rows."
)
MOVED = (
    "“moved most”: shares that are further from those of training than chance explains. The profile keeps hash buckets "
    "of values in order of their share, so it often knows between which two shares a value was, and no value by name: "
    "names are those of the rows compared."
)
_COLOURS = {"stable": "#2e7d32", "moderate": "#b26a00", "major": "#b3261e"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_TEXT = ' class="text"'

_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:64rem;padding:0 1rem}
body{color:#1c1c1e;background:#fff}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}
th.text,td.text{text-align:left;overflow-wrap:anywhere}#all{width:100%}
#about td{border:0;padding:.1rem .8rem .1rem 0;text-align:left}
section{margin:2rem 0}h1{font-size:1.4rem}h2{font-size:1.05rem;margin:0 0 .3rem}
.note{color:#555}a{color:#1f5fa8}td{white-space:nowrap}td.text{white-space:normal}
.bars{width:24rem}.bars div{height:.5rem;margin:1px 0}
.expected{background:#9aa5b1}.actual{background:#1f5fa8}
@media (prefers-color-scheme:dark){body{background:#16181b;color:#e6e6e6}th,td{border-color:#333}.note{color:#aaa}
a{color:#6aa7ee}.expected{background:#6b7683}.actual{background:#6aa7ee}}
"""


def drift_table(report: DriftReport) -> Table:
    """The report for a terminal, the worst feature first."""
    title = f"{report.model} {report.model_id}: {report.rows:,} rows compared with the training profile"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("\nfeature", overflow="fold")
    table.add_column("\nverdict", no_wrap=True)
    for heading in ("\nPSI", "by\nchance", "% missing\ntrain, now", "% unseen\nvalid, now", "PSI of\nunseen"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in report.drift:
        table.add_row(one.name, one.verdict, *_figures(one))
    return table


def _figures(one: Drift) -> list[str]:
    missing = "" if one.name == SCORE else _pair(one.missing)
    unseen = ["", ""] if one.unseen is None else [_pair(one.unseen), f"{one.unseen_psi:.3f}"]
    return [f"{one.psi:.3f}", f"{one.chance:.3f}", missing, *unseen]


def _pair(rates: tuple[float, float]) -> str:
    return f"{100 * rates[0]:.1f}, {100 * rates[1]:.1f}"


def drift_page(report: DriftReport, written: datetime | None = None) -> str:
    """The report as one HTML page; `written` is its date, by default now."""
    headings = ("PSI", "by chance", "% missing: train, now", "% unseen: valid, now", "PSI of unseen")
    head = "".join(f"<th{_TEXT}>{name}</th>" for name in ("feature", "verdict"))
    head += "".join(f"<th>{name}</th>" for name in headings)
    body = "".join(_row(one, number) for number, one in enumerate(report.drift))
    sections = "".join(_section(one, number) for number, one in enumerate(report.drift))
    title = f"Drift of {html.escape(report.model)} {html.escape(report.model_id)}"
    facts = _facts(report, written or datetime.now(UTC))
    about = "".join(f"<tr><td>{key}</td><td{_TEXT}>{html.escape(text)}</td></tr>" for key, text in facts.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f'<h1>{title}</h1><table id="about">{about}</table><p class="note">{html.escape(f"{SOURCE} {MOVED}")}</p>'
        f'<table id="all"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{sections}</body></html>\n'
    )


def _facts(report: DriftReport, written: datetime) -> dict[str, str]:
    """The two sides of the comparison, and the dates."""
    facts = {
        "report written": f"{written.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        "rows compared": f"{report.rows:,}, of {', '.join(report.inputs)} (files: {report.files})",
        "bundle written": report.created_at[:16].replace("T", " ") + " UTC",
    }
    if report.training_rows:
        facts["trained on"] = f"{report.training_rows:,} rows" + (f" of {report.dataset}" if report.dataset else "")
    return facts


def _row(one: Drift, number: int) -> str:
    cells = "".join(f"<td>{html.escape(text)}</td>" for text in _figures(one))
    name = f'<a href="#d{number}">{html.escape(one.name)}</a>'
    return f"<tr><td{_TEXT}>{name}</td><td{_TEXT}>{_verdict(one)}</td>{cells}</tr>"


def _verdict(one: Drift) -> str:
    return f'<span style="color:{_COLOURS[one.verdict]}">{one.verdict}</span>'


def _section(one: Drift, number: int) -> str:
    heading = f"{html.escape(one.name)}: {_verdict(one)}, PSI {one.psi:.3f}"
    return f'<section id="d{number}"><h2>{heading}</h2>{_bins(one)}{_moved(one)}</section>'


def _bins(one: Drift) -> str:
    """A row per bin, with two bars: its share in training and now."""
    bins = zip(one.labels, one.expected, one.actual, strict=True)
    pairs = [(label, shares) for label, *shares in bins if label != "missing" or any(shares)]
    widest = max(max(shares) for _, shares in pairs) or 1.0
    rows = ""
    for label, shares in pairs:
        kinds = zip(("expected", "actual"), shares, strict=True)
        bars = "".join(f'<div class="{kind}" style="width:{100 * share / widest:.1f}%"></div>' for kind, share in kinds)
        texts = "".join(f"<td>{100 * share:.2f} %</td>" for share in shares)
        rows += f'<tr><td{_TEXT}>{html.escape(label)}</td><td class="bars">{bars}</td>{texts}</tr>'
    by_share = "values, by how common they were in training" if "rare or new" in one.labels else "value"
    name = "probability" if one.name == SCORE else by_share
    sides = zip(("expected", "actual"), (_expected_name(one), "now"), strict=True)
    head = "".join(f'<th><span class="{kind}">&ensp;</span>&nbsp;{side}</th>' for kind, side in sides)
    return f"<table><tr><th{_TEXT}>{name}</th><th></th>{head}</tr>{rows}</table>"


def _moved(one: Drift) -> str:
    rows = "".join(
        f"<tr><td{_TEXT}>{html.escape(shortened(value.value, 80))}</td><td>{_share(value)}</td>"
        f"<td>{100 * value.now:.1f} %</td></tr>"
        for value in one.moved
    )
    head = f"<tr><th{_TEXT}>moved most</th><th>{_expected_name(one)}</th><th>now</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else ""


def _share(value: Moved) -> str:
    """The share in training, or its bounds."""
    low, high = f"{100 * value.low:.1f}", f"{100 * value.high:.1f}"
    return f"{low} %" if low == high else f"below {high} %" if value.low == 0 else f"{low} to {high} %"


def _expected_name(one: Drift) -> str:
    return "validation" if one.name == SCORE else "training"
