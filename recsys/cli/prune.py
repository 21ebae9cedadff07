"""`muxrec prune`: a run trained again in fewer bytes."""

from typing import Annotated

import typer

from recsys.cli.options import TABLE_DTYPES, Json, Overrides, RunOut, RunPath, Track, begin_training, show

METHODS = (
    "optembed, importance, magnitude, frequency, mixed_dimensions, opt_fs, quantized, "
    "or tables of another shape: smaller, hashed, quotient_remainder, robe"
)
METHOD_HELP = (
    f"Algorithm: {METHODS}. The default is optembed, which searches embedding widths as in OptEmbed, from a plainly "
    "trained table (compression.settings.supernet=true compression.start=rewind is the paper's whole procedure); for "
    "tight budgets, where pruning would leave too few values, it is smaller, a table of fewer rows."
)


def prune(
    run: RunPath,
    out: RunOut,
    overrides: Overrides = None,
    method: Annotated[str | None, typer.Option(help=METHOD_HELP)] = None,
    target_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Size limit of the bundle's embedding files. By default a tenth of the run's."),
    ] = None,
    table_dtype: Annotated[str, typer.Option(help=f"Type of the stored rows: {TABLE_DTYPES}.")] = "int4",
    track: Track = True,
    as_json: Json = False,
) -> None:
    """Compress the embedding table of a run to a number of bytes.

    Writes a new run directory: `muxrec prune RUN --out SMALL --target-bytes 80000`.
    """
    begin_training()
    from recsys.runs.prune import prune_run
    from recsys.runs.run_directory import RunDirectory
    from recsys.tracking.store import place_of

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
