"""`muxrec sweep`: a search over the settings of a named run."""

import json
from pathlib import Path
from typing import Annotated

import typer

from features.dataset.info import read_dataset
from recsys.cli.options import Data, Json, NamedRuns, Overrides, RunName, Track, begin_training, console, show, wide


def sweep(
    context: typer.Context,
    name: RunName,
    data: Data,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier calls included.")] = 20,
    workers: Annotated[int, typer.Option(min=1, help="Trials at a time; they share the cores.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Sweep directory; an interrupted sweep is resumed. By default work/sweeps/NAME."),
    ] = None,
    space: Annotated[Path | None, typer.Option(help="Search space (YAML), instead of the run's own.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of trials.")] = 0,
    track: Track = True,
    as_json: Json = False,
) -> None:
    """Search for better settings of a named run.

    Overrides hold for all trials: `muxrec sweep final_mlp --data D --trials 20 trainer.epochs=5`. In MLflow the trials
    are children of one run.
    """
    begin_training()
    from recsys.config import with_overrides
    from recsys.recipe import for_data
    from recsys.sweep.report import best_of, sweep_table
    from recsys.sweep.search_space import read_space
    from recsys.sweep.sweep import run_sweep
    from recsys.tracking.store import place_of

    named: NamedRuns = context.obj()
    experiment = with_overrides(for_data(named.experiment(name), *read_dataset(data)), overrides or [])
    fixed = {text.partition("=")[0] for text in overrides or []}
    varied = read_space(space) if space else named.space(name)
    varied = {key: values for key, values in varied.items() if key not in fixed}
    out = out or Path("work/sweeps") / name
    results = run_sweep(
        *(experiment, varied, data, out),
        trials=trials,
        workers=workers,
        seed=seed,
        track=track,
        progress=not as_json,
    )
    best = best_of(results, experiment)
    place = place_of(json.loads((out / "sweep.json").read_text(encoding="utf-8"))) if track else {}
    if as_json:
        shown = best._asdict() if best else None
        show(True, {"sweep": str(out), "best": shown, "trials": [one._asdict() for one in results]}, place)
    else:
        wide(console).print(sweep_table(results, experiment))
        for one in results:
            if one.error:
                console.print(f"trial {one.number} failed: {one.error}")
        if best:
            console.print(f"best: muxrec train --config {out / 'report' / 'best.yaml'} --data {data} --out RUN")
        show(False, {}, place)
    if best is None:
        raise typer.Exit(1)
