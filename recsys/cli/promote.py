"""Verbs about models in MLflow: promote, drift."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.options import Json, RunPath, TestNegativeRate, console, require_training, show


def promote(
    run: RunPath,
    to: Annotated[str, typer.Option(help="Alias that moves to the run's model if it passes.")] = "champion",
    name: Annotated[str | None, typer.Option(help="Registered model; else named like the dataset.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Another export of the run; else its own bundle.")] = None,
    test: Annotated[
        list[str] | None, typer.Option(help="Dataset, or raw files with the label; else the run's.")
    ] = None,
    test_negative_rate: TestNegativeRate = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="Raw files for the parity check; else the golden rows.")
    ] = None,
    auc_margin: Annotated[float, typer.Option(min=0, help="AUC that the champion may be ahead by.")] = 0.001,
    calibration_margin: Annotated[
        float, typer.Option(min=0, help="The same of the calibration error, as a share of the clicks.")
    ] = 0.01,
    as_json: Json = False,
) -> None:
    """Register a run's bundle and move an alias to it if it passes the gate; exit 1, and nothing moves, if not."""
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
