"""Verbs about many runs: sweep, compare."""

import json
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments.verbs.common import Data, Json, TestNegativeRate, console, require_training, show
from features.errors import InputError

WIDTH = 160
"""Characters of a line where the output is no terminal: nothing is cut off in a file."""


def wide(terminal: Console) -> Console:
    """The console, without the 80 columns that it takes a file for."""
    return terminal if terminal.is_terminal else Console(highlight=False, markup=False, width=WIDTH)


def sweep(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A named run; every model is one.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings of all trials.")
    ] = None,
    data: Data = ...,  # pyright: ignore[reportArgumentType]
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier calls included.")] = 20,
    workers: Annotated[int, typer.Option(min=1, help="Trials at a time; they share the cores.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Sweep directory; one that was cut off is resumed. Else work/sweeps/NAME.")
    ] = None,
    space: Annotated[Path | None, typer.Option(help="Search space (YAML), instead of the run's own.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of the trials.")] = 0,
    track: Annotated[bool, typer.Option(help="Log the trials to MLflow, below a run of the sweep.")] = True,
    as_json: Json = False,
) -> None:
    """Search the settings of a named run; `muxrec sweep final_mlp --data D --trials 20 trainer.epochs=5`."""
    require_training()
    from experiments.config import with_overrides
    from experiments.runs import named_run, space_of
    from experiments.search_space import read_space
    from experiments.sweep import run_sweep
    from experiments.sweep_report import best_of, sweep_table
    from recsys.tracking_store import place_of

    experiment = with_overrides(named_run(name), overrides or [])
    fixed = {text.partition("=")[0] for text in overrides or []}
    varied = read_space(space) if space else space_of(name)
    varied = {key: values for key, values in varied.items() if key not in fixed}
    out = out or Path("work/sweeps") / name
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the tracked run does not stay RUNNING
    outcomes = run_sweep(
        *(experiment, varied, data, out),
        trials=trials,
        workers=workers,
        seed=seed,
        track=track,
        progress=not as_json,
    )
    best = best_of(outcomes, experiment)
    place = place_of(json.loads((out / "sweep.json").read_text(encoding="utf-8"))) if track else {}
    if as_json:
        shown = best._asdict() if best else None
        show(True, {"sweep": str(out), "best": shown, "trials": [one._asdict() for one in outcomes]}, place)
    else:
        wide(console).print(sweep_table(outcomes, experiment))
        for one in outcomes:
            if one.error:
                console.print(f"trial {one.number} failed: {one.error}")
        if best:
            console.print(f"best: muxrec train --config {out / 'report' / 'best.yaml'} --data {data} --out RUN")
        show(False, {}, place)
    if best is None:
        raise typer.Exit(1)


def compare(
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[EXPERIMENT | CHAMPION CHALLENGER]", show_default=False)
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Run, by name or id, that the others are tested against.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file to write, beside the table.")] = None,
    ui: Annotated[str | None, typer.Option(help="Address of the MLflow UI, for the file's links.")] = None,
    test: Annotated[list[str] | None, typer.Option(help="Of two models: dataset, or raw files with the label.")] = None,
    test_negative_rate: TestNegativeRate = None,
    as_json: Json = False,
) -> None:
    """Compare the runs of an MLflow experiment, or two models (bundles, runs, models:/ URIs) on the same rows."""
    require_training()
    names = what or []
    if len(names) > 2:
        raise InputError("compare takes an experiment, or two models", found=f"{len(names)} names")
    if len(names) == 2:
        from experiments.champion import compare_models, comparison_table

        found = compare_models(names[0], names[1], test=test or (), negative_rate=test_negative_rate)
        if as_json:
            show(True, found.as_json())
        else:
            console.print(comparison_table(found))
        return
    from experiments.compare import as_plain, compare_runs, runs_table
    from experiments.compare_page import comparison_page
    from features.files import write_text
    from recsys.tracking import tracked_runs
    from recsys.tracking_store import page_of, shown_uri, tracking_uri, ui_address

    comparison = compare_runs(*tracked_runs(names[0] if names else None), baseline)
    if out:
        write_text(out, comparison_page(comparison, ui or ui_address()))
    place = {"store": shown_uri(tracking_uri()), "mlflow": page_of(comparison.experiment_id)}
    if as_json:
        show(True, as_plain(comparison), place)
    else:
        terminal = wide(console)
        terminal.print(runs_table(comparison, terminal.width))
        show(False, {}, place)
