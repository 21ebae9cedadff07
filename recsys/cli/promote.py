"""`muxrec promote`: a run's bundle into the model registry, if it is good enough."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.options import Json, RunPath, TestNegativeRate, console, show
from recsys.runs.process import require_training


def promote(
    run: RunPath,
    to: Annotated[str, typer.Option(help="Alias to move to the run's model if it passes.")] = "champion",
    name: Annotated[str | None, typer.Option(help="Registered model; by default the name of the dataset.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Another export of the run; by default its own bundle.")] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(help="Test rows: a dataset, or raw files with the label. By default the run's own."),
    ] = None,
    test_negative_rate: TestNegativeRate = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="Raw files for the parity check; by default the golden rows.")
    ] = None,
    auc_margin: Annotated[float, typer.Option(min=0, help="AUC by which the champion may be ahead.")] = 0.001,
    calibration_margin: Annotated[
        float, typer.Option(min=0, help="The same for the calibration error, as a share of the clicks.")
    ] = 0.01,
    as_json: Json = False,
) -> None:
    """Make a run the champion if it is good enough.

    Registers the run's bundle in MLflow, and moves the alias to it if it passes the parity check and is no worse on the
    test rows than the model that has the alias now. If not, the alias stays where it is; exit 1.
    """
    require_training()
    from recsys.promotion.promote import Margins, promotion_table
    from recsys.promotion.promote import promote as promoted

    margins = Margins(auc=auc_margin, calibration=calibration_margin)
    found = promoted(
        run,
        alias=to,
        name=name,
        bundle=bundle,
        test=test or (),
        negative_rate=test_negative_rate,
        inputs=inputs or (),
        margins=margins,
    )
    if as_json:
        show(True, found.as_json())
    else:
        console.print(promotion_table(found))
    if not found.passed:
        raise typer.Exit(1)
