"""The `muxrec` command. Heavy imports stand inside the verbs, so that scoring starts without torch."""

import dataclasses
import errno
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from features.errors import InputError

app = typer.Typer(
    help="Click-through-rate prediction with one multiplexed embedding table.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console(highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")]
Data = Annotated[Path, typer.Option(help="Dataset directory that `muxrec prepare` wrote.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory that `muxrec train` wrote.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle directory that `muxrec export` wrote.")]


@app.command()
def prepare(
    registry: Annotated[Path | None, typer.Option(help="Registry file (YAML).")] = None,
    train: Annotated[list[str] | None, typer.Option(help="Training files: path, directory or glob.")] = None,
    valid: Annotated[list[str] | None, typer.Option(help="Validation files; else rows are held out of train.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="Test files.")] = None,
    out: Annotated[Path | None, typer.Option(help="Dataset directory to write.")] = None,
    infer: Annotated[Path | None, typer.Option(help="Print a registry draft for this file instead.")] = None,
    holdout: Annotated[float, typer.Option(help="Share of the training rows held out where --valid is absent.")] = 0.1,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn raw parquet, csv(.gz) or ndjson files into a dataset directory."""
    if infer is not None:
        from features.infer import infer_registry

        draft = infer_registry(infer)
        sys.stdout.write(json.dumps({"registry": draft}) + "\n" if as_json else draft)
        return
    from features.prepare import prepare as run
    from features.registry import FeatureRegistry

    if registry is None or not train or out is None:
        raise InputError(
            "prepare needs --registry, --train and --out", remedy="or --infer FILE, which drafts a registry"
        )
    splits = {"train": train, "valid": valid or [], "test": test or []}
    info = run(
        FeatureRegistry.from_yaml(registry), splits, out, holdout=holdout, overwrite=overwrite, progress=not as_json
    )
    rows = {name: split.rows for name, split in info.splits.items()}
    rates = {name: round(split.label_rate, 5) for name, split in info.splits.items()}
    unknown = list(info.unknown_columns)
    _show(as_json, {"dataset": str(out), "digest": info.digest, "rows": rows, "label_rate": rates, "unused": unknown})


@app.command()
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
    _require_training()
    from experiments.process import prepare_for_training

    prepare_for_training()
    from experiments.config import read_experiment, with_overrides
    from experiments.runs import RUNS
    from experiments.train import train_run

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
    _show(as_json, {"run": str(out), **metrics})


@app.command()
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
    _require_training()
    from experiments.evaluate import collision_table, evaluate_run, segment_table

    found = evaluate_run(run, split, data, by)
    values = {"run": str(run), "split": split, **found.metrics}
    if as_json:
        segments = {} if by is None else {"segments": [segment._asdict() for segment in found.segments]}
        _show(True, {**values, **segments, "collisions": found.collisions})
        return
    _show(False, values)
    if found.segments:
        console.print(segment_table(found.segments))
    console.print(collision_table(found.collisions))


@app.command()
def export(
    run: RunPath,
    out: Annotated[Path, typer.Option(help="Bundle directory to write.")],
    table_dtype: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    negative_rate: Annotated[
        float | None, typer.Option(help="Share of the negatives that the data kept; else the run's negative_rate.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a trained run as a bundle that is scored without torch."""
    _require_training()
    from experiments.evaluate import export_run

    bundle = export_run(run, out, table_dtype=table_dtype, negative_rate=negative_rate, overwrite=overwrite)
    correction = bundle.manifest.prior_correction
    values = {"bundle": str(out), "model_id": bundle.model_id, "bytes": bundle.num_bytes, "table": table_dtype}
    _show(as_json, {**values, "negative_rate": correction.negative_rate if correction else 1.0})


@app.command()
def verify(bundle: BundlePath, as_json: Json = False) -> None:
    """Check a bundle's files and re-score its golden rows; exit 1 where the scores differ."""
    from serving.scorer import Scorer

    scorer = Scorer(bundle)
    difference = scorer.verify()
    tolerance = scorer.bundle.golden_tolerance
    ok = difference <= tolerance
    _show(
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


@app.command()
def parity(
    run: RunPath,
    bundle: BundlePath,
    inputs: Annotated[list[str], typer.Option("--input", help="Raw files: path, directory or glob.")],
    tolerance: Annotated[float, typer.Option(help="Largest difference of two probabilities.")] = 1e-6,
    as_json: Json = False,
) -> None:
    """Compare trainer and scorer from raw rows: ids bit for bit, probabilities within a tolerance; exit 1 if not."""
    _require_training()
    from experiments.evaluate import parity_of

    result = parity_of(run, bundle, inputs, tolerance=tolerance)
    _show(as_json, result)
    if not result["ok"]:
        raise typer.Exit(1)


@app.command()
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
    _show(as_json, {**dataclasses.asdict(report), "heavy_modules": heavy})


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, what works here, and the remedy for what does not."""
    from experiments.doctor import diagnose, diagnosis_table

    checks = diagnose()
    if as_json:
        sys.stdout.write(json.dumps([check.model_dump() for check in checks]) + "\n")
    else:
        console.print(diagnosis_table(checks))
    if any(check.status == "missing" for check in checks):
        raise typer.Exit(1)


def _show(as_json: bool, values: Mapping[str, Any]) -> None:
    """Print a result: one line of JSON, or aligned text."""
    if as_json:
        sys.stdout.write(json.dumps(values, default=str) + "\n")
        return
    from experiments.text import result_table

    console.print(result_table(values))


def _require_training() -> None:
    """Raise `InputError` with the command that installs what training needs."""
    import importlib.util

    absent = [name for name in ("torch", "torchrec", "mlflow") if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError("this verb needs the training packages", found=f"no {absent[0]}", remedy="make env")


def main() -> None:
    """The `muxrec` command."""
    run_command(app, "muxrec")


def run_command(command: typer.Typer, name: str) -> None:
    """Run a command; a user's mistake is one line on standard error, which begins with `name`, and exit code 2."""
    try:
        command()
    except InputError as error:
        line = " ".join(str(error).split())
        sys.stderr.write(f"{name}: {line}\n")
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output has left: no complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        line = f"cannot write {error.filename or ''}; found {error.strerror}; free space, or permit it"
        sys.stderr.write(f"{name}: {line}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
