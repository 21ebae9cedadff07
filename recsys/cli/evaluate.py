"""`muxrec evaluate`: metrics of a run on a split, and how its features share the table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from recsys.cli.options import Json, RunPath, console, require_training, show
from recsys.report.text import text_of

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
        segments = {} if by is None else {"segments": [segment._asdict() for segment in found.segments]}
        show(True, {**values, **segments, "collisions": found.collisions})
        return
    show(False, values)
    if found.segments:
        console.print(segment_table(found.segments))
    console.print(collision_table(found.collisions))


def segment_table(segments: "Sequence[Segment]") -> Table:
    """Metrics by segment for a terminal."""
    title = f"{segments[0].feature}: rows by how often training saw their value"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in (
        "seen in\ntrain",
        "\nrows",
        "label\nrate",
        "\nAUC",
        "\ngAUC",
        "log\nloss",
        "\nECE",
        "calibration\nratio",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for segment in segments:
        figures = ["" if value is None else f"{value:.4f}" for value in segment[3:]]
        table.add_row(segment.seen_in_train, text_of(segment.rows), *figures)
    return table


def collision_table(report: Mapping[str, Any]) -> Table:
    """The collision report for a terminal."""
    title = (
        f"table of {report['num_rows']:,} rows: {report['entries']:,} entries, load {report['load_factor']:.2f}\n"
        f"{report['occupied']:,} rows read, {report['expected_occupied']:,.0f} expected; shares as counted (expected)"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("\nfeature", overflow="fold")
    for heading in (
        "\ndistinct",
        "\nload",
        "% of\nreads",
        "% shared\ninside",
        "% shared\noutside",
        "same in\nall probes",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report["features"]:
        shares = [
            f"{100 * row[f'measured_{kind}']:.1f} ({100 * row[f'expected_{kind}']:.1f})" for kind in ("intra", "inter")
        ]
        cells = [text_of(row["distinct"]), f"{row['load']:.3f}", f"{100 * row['share_of_reads']:.1f}", *shares]
        table.add_row(row["feature"], *cells, text_of(row["indistinguishable"]))
    return table
