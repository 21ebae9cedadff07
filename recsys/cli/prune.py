"""`muxrec prune`: a run trained again in fewer bytes."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.options import TABLE_DTYPES, Json, RunPath, require_training, show

METHODS = (
    "optembed, importance, magnitude, frequency, mixed_dimensions, opt_fs, quantized, "
    "or tables of another shape: smaller, hashed, quotient_remainder, robe"
)


METHOD_HELP = (
    f"How to choose what stays: {METHODS}. If not given: optembed, which is OptEmbed's search over widths from a "
    "plainly trained table; with compression.settings.supernet=true compression.start=rewind it is the paper's whole "
    "procedure. For tight budgets, where pruning would leave too few values: smaller, a table of fewer rows."
)


def prune(
    run: RunPath,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...")] = None,
    out: Annotated[Path, typer.Option(help="Run directory to write; one that was cut off is resumed.")] = ...,  # pyright: ignore[reportArgumentType]
    method: Annotated[str | None, typer.Option(help=METHOD_HELP)] = None,
    target_bytes: Annotated[
        int | None, typer.Option(min=1, help="Most bytes of the bundle's embedding files; else a tenth of the run's.")
    ] = None,
    table_dtype: Annotated[str, typer.Option(help=f"Stored rows: {TABLE_DTYPES}.")] = "int4",
    track: Annotated[bool, typer.Option(help="Log the run to MLflow.")] = True,
    as_json: Json = False,
) -> None:
    """Train a run again in fewer bytes; `muxrec prune RUN --out SMALL --target-bytes 80000`."""
    require_training()
    from recsys.runs.process import prepare_for_training

    prepare_for_training()
    from recsys.runs.prune import prune_run
    from recsys.runs.run_directory import RunDirectory
    from recsys.tracking.store import place_of

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    metrics = prune_run(
        run,
        out,
        method=method,
        target_bytes=target_bytes,
        table_dtype=table_dtype,
        overrides=overrides or [],
        track=track,
        progress=not as_json,
    )
    show(as_json, {"run": str(out), **metrics}, place_of(RunDirectory(out).run_info()) if track else None)
