"""`muxrec train`: a run from its settings to its bundle and report."""

from pathlib import Path
from typing import Annotated

import typer

from features.dataset.info import read_dataset
from features.errors import InputError
from recsys.cli.options import Data, Json, NamedRuns, Overrides, RunOut, Track, begin_training, show


def train(
    context: typer.Context,
    data: Data,
    out: RunOut,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A named run; the name of each model is one.")
    ] = None,
    overrides: Overrides = None,
    config: Annotated[
        Path | None, typer.Option(help="Experiment file instead of NAME, such as a run's experiment.yaml.")
    ] = None,
    track: Track = True,
    report: Annotated[bool, typer.Option(help="Write figures, tables and the model card to report/.")] = True,
    as_json: Json = False,
) -> None:
    """Train a model on a dataset directory.

    Writes a run directory: checkpoint, metrics, report and bundle. `muxrec train final_mlp --data D --out RUN
    trainer.epochs=5` trains the run `final_mlp` with one setting changed. The settings of `final_mlp` follow the size
    of the data (docs/recipe.md); those of the other runs do not.
    """
    begin_training()
    from recsys.config import read_experiment, with_overrides
    from recsys.recipe import for_data
    from recsys.runs.run_directory import RunDirectory
    from recsys.runs.train import train_run
    from recsys.tracking.store import place_of

    named: NamedRuns = context.obj()
    if config is not None:
        experiment = with_overrides(read_experiment(config), [*([name] if name else []), *(overrides or [])])
    elif name is not None:
        experiment = with_overrides(for_data(named.experiment(name), *read_dataset(data)), overrides or [])
    else:
        raise InputError("expected NAME or --config", remedy=f"use one of {', '.join(named.runs)}")
    metrics = train_run(experiment, data, out, track=track, progress=not as_json, report=report)
    show(as_json, {"run": str(out), **metrics}, place_of(RunDirectory(out).run_info()) if track else None)
