"""`muxrec compare`: the runs of an experiment, or two models on the same rows."""

from pathlib import Path
from typing import Annotated

import typer

from features.errors import InputError
from recsys.cli.options import Json, TestNegativeRate, console, show, wide
from recsys.runs.process import require_training


def compare(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT | CHAMPION CHALLENGER]",
            show_default=False,
            help="An MLflow experiment, by default the only one, or two models: bundles, runs or models:/ URIs.",
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Run, by name or id, that the others are tested against.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="HTML page to write.")] = None,
    ui: Annotated[str | None, typer.Option(help="Address of the MLflow UI, for the links of the page.")] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Rows for two models: a dataset, or raw files with the label.")
    ] = None,
    test_negative_rate: TestNegativeRate = None,
    as_json: Json = False,
) -> None:
    """Compare the runs of an experiment, or two models.

    An experiment's runs are compared by their logged metrics, over seeds; two models by scoring the same test rows.
    """
    require_training()
    names = what or []
    if len(names) > 2:
        raise InputError("compare takes an experiment, or two models", found=f"{len(names)} names")
    if len(names) == 2:
        from recsys.promotion.compare_models import compare_models, comparison_table

        found = compare_models(names[0], names[1], test=test or (), negative_rate=test_negative_rate)
        if as_json:
            show(True, found.as_json())
        else:
            console.print(comparison_table(found))
        return
    from features.files import write_text
    from recsys.tracking.compare_page import comparison_page
    from recsys.tracking.compare_runs import as_plain, compare_runs, runs_table, tracked_runs
    from recsys.tracking.store import page_of, shown_uri, tracking_uri, ui_address

    comparison = compare_runs(*tracked_runs(names[0] if names else None), baseline)
    if out:
        write_text(out, comparison_page(comparison, ui or ui_address()))
    place = {"store": shown_uri(tracking_uri()), "mlflow": page_of(comparison.experiment_id)}
    if as_json:
        show(True, as_plain(comparison), place)
    else:
        terminal = wide(console)
        terminal.print(runs_table(comparison, terminal.width))
        show(False, {}, place)
