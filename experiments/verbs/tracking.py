"""Verbs about models in MLflow: promote, drift."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.verbs.common import BundleUri, Json, RunPath, TestNegativeRate, console, require_training, show


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
    from experiments.promote import Margins, promotion_table
    from experiments.promote import promote as promoted

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


def drift(
    bundle: BundleUri,
    inputs: Annotated[list[str], typer.Option("--input", help="Raw files: path, directory or glob.")],
    out: Annotated[Path | None, typer.Option(help="HTML page with pictures to write.")] = None,
    allow_missing: Annotated[bool, typer.Option(help="Read an absent column as missing.")] = False,
    fail_above: Annotated[float | None, typer.Option(min=0, help="Exit 1 where a PSI is above this.")] = None,
    as_json: Json = False,
) -> None:
    """Compare raw rows with the training profile in a bundle, by feature and score; needs no training packages."""
    from experiments.drift_report import drift_page, drift_table
    from experiments.model_uri import resolve_bundle
    from features.files import write_text
    from serving.drift import drift_of
    from serving.scorer import Scorer

    report = drift_of(Scorer(resolve_bundle(bundle)), inputs, allow_missing=allow_missing, progress=not as_json)
    if out is not None:
        write_text(out, drift_page(report))
    if as_json:
        show(True, report.as_json() | {"page": None if out is None else str(out)})
    else:
        console.print(drift_table(report))
    if fail_above is not None and any(one.worst > fail_above for one in report.all):
        raise typer.Exit(1)
