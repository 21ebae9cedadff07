"""`muxrec drift`: raw rows beside the training profile in a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.options import BundleUri, Json, console, show


def drift(
    bundle: BundleUri,
    inputs: Annotated[list[str], typer.Option("--input", help="Raw files: path, directory or glob.")],
    out: Annotated[Path | None, typer.Option(help="HTML page with pictures to write.")] = None,
    allow_missing: Annotated[bool, typer.Option(help="Read an absent column as missing.")] = False,
    fail_above: Annotated[float | None, typer.Option(min=0, help="Exit 1 where a PSI is above this.")] = None,
    as_json: Json = False,
) -> None:
    """Compare raw rows with the training profile in a bundle, by feature and score; needs no training packages."""
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
    if fail_above is not None and any(one.worst > fail_above for one in report.all):
        raise typer.Exit(1)
