"""`muxrec export`: a trained run as a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.options import TABLE_DTYPES, Json, Overwrite, RunPath, show
from recsys.runs.process import require_training


def export(
    run: RunPath,
    out: Annotated[Path, typer.Option(help="Bundle directory to write.")],
    table_dtype: Annotated[
        str | None,
        typer.Option(help=f"Type of the stored rows: {TABLE_DTYPES}. By default a pruned run's own, else fp32."),
    ] = None,
    negative_rate: Annotated[
        float | None,
        typer.Option(help="Share of the negatives that the data kept; by default the run's negative_rate."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the bundle of a trained run.

    A bundle is a directory that is scored and served without torch.
    """
    require_training()
    from recsys.runs.evaluate import export_run

    bundle = export_run(run, out, table_dtype=table_dtype, negative_rate=negative_rate, overwrite=overwrite)
    correction, dtype = bundle.manifest.prior_correction, bundle.manifest.table_dtype
    values = {"bundle": str(out), "model_id": bundle.model_id, "bytes": bundle.num_bytes, "table": dtype}
    show(as_json, {**values, "negative_rate": correction.negative_rate if correction else 1.0})
