"""`muxrec drift`: raw rows compared with the training profile in a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.options import AllowMissing, BundleUri, Inputs, Json, console, show


def drift(
    bundle: BundleUri,
    inputs: Inputs,
    out: Annotated[Path | None, typer.Option(help="HTML page to write, with figures.")] = None,
    allow_missing: AllowMissing = False,
    fail_above: Annotated[float | None, typer.Option(min=0, help="Exit 1 if a PSI is above this.")] = None,
    as_json: Json = False,
) -> None:
    """Check whether new rows still look like the training rows.

    Compares raw rows with the training profile in a bundle, for each feature and for the scores, by PSI, missing values
    and values that training never saw. Needs no training packages.
    """
    from features.files import write_text
    from recsys.tracking.model_uri import resolve_bundle
    from serving.drift import drift_of
    from serving.drift_page import drift_page, drift_table
    from serving.scorer import Scorer

    report = drift_of(Scorer(resolve_bundle(bundle)), inputs, allow_missing=allow_missing, progress=not as_json)
    if out is not None:
        write_text(out, drift_page(report))
    if as_json:
        show(True, report.as_json() | {"page": None if out is None else str(out)})
    else:
        console.print(drift_table(report))
    if fail_above is not None and any(one.worst > fail_above for one in report.drift):
        raise typer.Exit(1)
