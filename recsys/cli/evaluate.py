"""`muxrec evaluate`: metrics of a run on a split, and how its features share the table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from recsys.cli.options import Json, RunPath, console, show
from recsys.report.text import rich_table, text_of
from recsys.runs.process import require_training

if TYPE_CHECKING:
    from recsys.evaluation.segments import Segment


def evaluate(
    run: RunPath,
    split: Annotated[str, typer.Option(help="Split: train, valid or test.")] = "test",
    data: Annotated[Path | None, typer.Option(help="Dataset directory; by default the one of training.")] = None,
    by: Annotated[
        str | None, typer.Option(help="Categorical feature: metrics also by how often training saw its value.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a trained run on a split of its data.

    Prints its metrics, and how the features share the rows of the table.
    """
    require_training()
    from recsys.runs.evaluate import evaluate_run

    found = evaluate_run(run, split, data, by)
    values = {"run": str(run), "split": split, **found.metrics}
    if as_json:
        segments = {} if by is None else {"segments": [segment.record() for segment in found.segments]}
        show(True, {**values, **segments, "collisions": found.collisions})
        return
    show(False, values)
    if found.segments:
        console.print(segment_table(found.segments))
    console.print(collision_table(found.collisions))


def segment_table(segments: "Sequence[Segment]") -> Table:
    """Metrics for a terminal: one column per segment, so any number of metrics fits."""
    from recsys.evaluation.metrics import METRICS  # needs what only training installs

    title = f"{segments[0].feature}: metrics by how often training saw the row's value"
    rates = (segment.label_rate for segment in segments)
    rows = [
        ["rows", *(text_of(segment.rows) for segment in segments)],
        ["label rate", *("" if rate is None else f"{rate:.4f}" for rate in rates)],
        *([one.title, *(one.text(segment.metrics[name]) for segment in segments)] for name, one in METRICS.items()),
    ]
    return rich_table(title, ["seen in train", *(segment.seen_in_train for segment in segments)], rows)


def collision_table(report: Mapping[str, Any]) -> Table:
    """The collision report for a terminal."""
    title = (
        f"table of {report['num_rows']:,} rows: {report['entries']:,} entries, load {report['load_factor']:.2f}\n"
        f"{report['occupied']:,} rows read, {report['expected_occupied']:,.0f} expected; shares as counted (expected)"
    )
    headings = ["\nfeature", "\ndistinct", "\nload", "% of\nreads"]
    headings += ["% shared\ninside", "% shared\noutside", "same in\nall probes"]
    rows = []
    for row in report["features"]:
        shares = [
            f"{100 * row[f'measured_{kind}']:.1f} ({100 * row[f'expected_{kind}']:.1f})" for kind in ("intra", "inter")
        ]
        cells = [text_of(row["distinct"]), f"{row['load']:.3f}", f"{100 * row['share_of_reads']:.1f}", *shares]
        rows.append([row["feature"], *cells, text_of(row["indistinguishable"])])
    return rich_table(title, headings, rows, folding=headings[:1])
