"""Verbs that need the training packages: train, evaluate, export, parity."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from experiments.verbs.common import BundlePath, Data, Json, Overwrite, RunPath, console, require_training, show, warn
from features.errors import InputError

TABLE_DTYPES = "fp32, fp16, int8, int4, int2, int1, opq4, opq3, opq2 or opq1"
METHODS = (
    "optembed, importance, magnitude, frequency, mixed_dimensions, opt_fs, quantized, "
    "or tables of another shape: smaller, hashed, quotient_remainder, robe"
)
METHOD_HELP = (
    f"How to choose what stays: {METHODS}. If not given: optembed, which is OptEmbed's search over widths from a "
    "plainly trained table; with compression.settings.supernet=true compression.start=rewind it is the paper's whole "
    "procedure. For tight budgets, where pruning would leave too few values: smaller, a table of fewer rows."
)


def train(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A named run; every model is one.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...")] = None,
    data: Data = ...,  # pyright: ignore[reportArgumentType]
    out: Annotated[Path, typer.Option(help="Run directory to write; one that was cut off is resumed.")] = ...,  # pyright: ignore[reportArgumentType]
    config: Annotated[Path | None, typer.Option(help="Experiment file, as a run directory holds it.")] = None,
    track: Annotated[bool, typer.Option(help="Log the run to MLflow.")] = True,
    as_json: Json = False,
) -> None:
    """Train a model on a dataset directory; `muxrec train final_mlp --data D --out RUN trainer.epochs=5`."""
    require_training()
    from experiments.process import prepare_for_training

    prepare_for_training()
    from experiments.config import read_experiment, with_overrides
    from experiments.run_directory import RunDirectory
    from experiments.runs import RUNS
    from experiments.train import train_run
    from recsys.tracking_store import place_of

    changes = list(overrides or [])
    if config is not None:
        changes = [name, *changes] if name else changes
        experiment = read_experiment(config)
    elif name is None:
        raise InputError("train needs NAME or --config", remedy=f"use one of {', '.join(RUNS)}")
    elif name not in RUNS:
        raise InputError("unknown run", found=repr(name), remedy=f"use one of {', '.join(RUNS)}")
    else:
        experiment = RUNS[name]()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the tracked run does not stay RUNNING
    metrics = train_run(with_overrides(experiment, changes), data, out, track=track, progress=not as_json)
    show(as_json, {"run": str(out), **metrics}, place_of(RunDirectory(out).facts()) if track else None)


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
    from experiments.process import prepare_for_training

    prepare_for_training()
    from experiments.prune import prune_run
    from experiments.run_directory import RunDirectory
    from recsys.tracking_store import place_of

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
    show(as_json, {"run": str(out), **metrics}, place_of(RunDirectory(out).facts()) if track else None)


def evaluate(
    run: RunPath,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    data: Annotated[Path | None, typer.Option(help="Dataset directory; else the one of training.")] = None,
    by: Annotated[
        str | None, typer.Option(help="Categorical feature: also by how often training saw its value.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Metrics of a trained run on a split, and how its features share the table."""
    require_training()
    from experiments.evaluate import collision_table, evaluate_run, segment_table

    found = evaluate_run(run, split, data, by)
    values = {"run": str(run), "split": split, **found.metrics}
    if as_json:
        segments = {} if by is None else {"segments": [segment._asdict() for segment in found.segments]}
        show(True, {**values, **segments, "collisions": found.collisions})
        return
    show(False, values)
    if found.segments:
        console.print(segment_table(found.segments))
    console.print(collision_table(found.collisions))


def export(
    run: RunPath,
    out: Annotated[Path, typer.Option(help="Bundle directory to write.")],
    table_dtype: Annotated[
        str | None, typer.Option(help=f"{TABLE_DTYPES}; else the pruned run's own, or fp32.")
    ] = None,
    negative_rate: Annotated[
        float | None, typer.Option(help="Share of the negatives that the data kept; else the run's negative_rate.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a trained run as a bundle that is scored without torch."""
    require_training()
    from experiments.evaluate import export_run

    bundle = export_run(run, out, table_dtype=table_dtype, negative_rate=negative_rate, overwrite=overwrite)
    correction = bundle.manifest.prior_correction
    values = {
        "bundle": str(out),
        "model_id": bundle.model_id,
        "bytes": bundle.num_bytes,
        "table": bundle.manifest.table_dtype,
    }
    show(as_json, {**values, "negative_rate": correction.negative_rate if correction else 1.0})


def parity(
    run: RunPath,
    bundle: BundlePath,
    inputs: Annotated[list[str], typer.Option("--input", help="Raw files: path, directory or glob.")],
    tolerance: Annotated[float, typer.Option(help="Largest difference of two probabilities.")] = 1e-6,
    as_json: Json = False,
) -> None:
    """Compare trainer and scorer from raw rows: ids bit for bit, probabilities within a tolerance; exit 1 if not."""
    require_training()
    from experiments.evaluate import parity_of

    result = parity_of(run, bundle, inputs, tolerance=tolerance)
    warn(result["warnings"])
    show(as_json, result if as_json else {name: value for name, value in result.items() if name != "warnings"})
    if not result["ok"]:
        raise typer.Exit(1)
