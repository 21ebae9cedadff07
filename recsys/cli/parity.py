"""`muxrec parity`: trainer against scorer, from raw rows."""

from typing import Annotated

import typer

from recsys.cli.options import BundlePath, Inputs, Json, RunPath, show, warn
from recsys.runs.process import require_training


def parity(
    run: RunPath,
    bundle: BundlePath,
    inputs: Inputs,
    tolerance: Annotated[float, typer.Option(help="Largest difference between two probabilities.")] = 1e-6,
    as_json: Json = False,
) -> None:
    """Check that scoring a bundle gives what training computes.

    Compares trainer and scorer from raw rows: ids bit for bit, probabilities within a tolerance; exit 1 if they differ.
    """
    require_training()
    from recsys.runs.parity import parity_of

    result = parity_of(run, bundle, inputs, tolerance=tolerance)
    warn(result["warnings"])
    show(as_json, result if as_json else {name: value for name, value in result.items() if name != "warnings"})
    if not result["ok"]:
        raise typer.Exit(1)
