"""Verbs that need the training packages: train, evaluate, export, parity."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from recsys.cli.options import Data, Json, require_training, show


def train(
    context: typer.Context,
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
    from recsys.runs.process import prepare_for_training

    prepare_for_training()
    from recsys.config import read_experiment, with_overrides
    from recsys.runs.run_directory import RunDirectory
    from recsys.runs.train import train_run
    from recsys.tracking.store import place_of

    changes = list(overrides or [])
    if config is not None:
        changes = [name, *changes] if name else changes
        experiment = read_experiment(config)
    else:
        experiment = context.obj().experiment(name)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the tracked run does not stay RUNNING
    metrics = train_run(with_overrides(experiment, changes), data, out, track=track, progress=not as_json)
    show(as_json, {"run": str(out), **metrics}, place_of(RunDirectory(out).run_info()) if track else None)
