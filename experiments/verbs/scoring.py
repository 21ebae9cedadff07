"""Verbs that run without torch: verify, score."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from experiments.verbs.common import BundlePath, Json, Overwrite, show


def verify(bundle: BundlePath, as_json: Json = False) -> None:
    """Check a bundle's files and re-score its golden rows; exit 1 where the scores differ."""
    from serving.scorer import Scorer

    scorer = Scorer(bundle)
    difference = scorer.verify()
    tolerance = scorer.bundle.golden_tolerance
    ok = difference <= tolerance
    show(
        as_json,
        {
            "bundle": str(bundle),
            "model_id": scorer.bundle.model_id,
            "max_abs_diff": difference,
            "tolerance": tolerance,
            "ok": ok,
        },
    )
    if not ok:
        raise typer.Exit(1)


def score(
    bundle: BundlePath,
    inputs: Annotated[list[str], typer.Option("--input", help="Raw files: path, directory or glob.")],
    out: Annotated[Path, typer.Option(help="Directory of scored parts to write.")],
    keep: Annotated[str, typer.Option(help="Columns to carry over, separated by commas.")] = "",
    allow_missing: Annotated[bool, typer.Option(help="Read an absent column as missing.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score raw files into parquet parts; a job that was cut off continues."""
    from serving.batch import score_files

    columns = [name.strip() for name in keep.split(",") if name.strip()]
    report = score_files(
        bundle, inputs, out, keep=columns, allow_missing=allow_missing, overwrite=overwrite, progress=not as_json
    )
    heavy = [name for name in ("torch", "pandas", "mlflow") if name in sys.modules]
    show(as_json, {**dataclasses.asdict(report), "heavy_modules": heavy})
