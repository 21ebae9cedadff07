"""Shared parts of the verbs: common options, named runs, and the output of a result."""

import json
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.console import Console

from features.errors import InputError

if TYPE_CHECKING:
    from recsys.config import Experiment
    from recsys.sweep.search_space import SearchSpace

# Names and paths may hold brackets, which are not markup.
console = Console(highlight=False, markup=False)
WIDTH = 160
"""Characters per line where the output is not a terminal, so that nothing is cut off in a file."""
TABLE_DTYPES = "fp32, fp16, int8, int4, int2, int1, opq4, opq3, opq2 or opq1"

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the contents of --out.")]
Track = Annotated[bool, typer.Option(help="Log to MLflow.")]
Data = Annotated[Path, typer.Option(help="Dataset directory, written by `muxrec prepare`.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, written by `muxrec train`.")]
RunOut = Annotated[Path, typer.Option(help="Run directory to write; an interrupted run is resumed.")]
RunName = Annotated[str, typer.Argument(metavar="NAME", help="A named run; the name of each model is one.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings to change, as trainer.epochs=5.")
]
Inputs = Annotated[list[str], typer.Option("--input", help="Raw files: path, directory or glob.")]
AllowMissing = Annotated[bool, typer.Option(help="Treat an absent column as missing values.")]
TestNegativeRate = Annotated[
    float | None,
    typer.Option(
        help="Share of the negatives that --test kept. By default 1 for raw files, the model's own for a dataset."
    ),
]
BundleUri = Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle directory, or models:/NAME@ALIAS.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle directory, written by `muxrec export`.")]


class NamedRuns(NamedTuple):
    """The runs that a command knows by name, and the settings that their sweeps vary."""

    runs: Mapping[str, Callable[[], "Experiment"]]
    spaces: Mapping[str, "SearchSpace"] = {}
    """Search spaces of some runs; the others have a default one."""

    def experiment(self, name: str) -> "Experiment":
        """The run of this name; raises `InputError` with the known names."""
        if name not in self.runs:
            raise InputError("unknown run", found=repr(name), remedy=f"use one of {', '.join(self.runs)}")
        return self.runs[name]()

    def space(self, name: str) -> "SearchSpace":
        """The search space of a named run."""
        from recsys.sweep.search_space import default_space

        return self.spaces[name] if name in self.spaces else default_space(self.experiment(name))


def begin_training() -> None:
    """Prepare a process that trains; on SIGTERM it ends as on Ctrl-C, so that no tracked run stays RUNNING."""
    from recsys.runs.process import prepare_for_training, rarely_collect, require_training

    require_training()
    rarely_collect()
    prepare_for_training()
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def show(as_json: bool, values: Mapping[str, Any], place: Mapping[str, str] | None = None) -> None:
    """Print a result: one line of JSON, or aligned text; then addresses (`place`), which are never cut or wrapped."""
    if as_json:
        sys.stdout.write(json.dumps({**values, **(place or {})}, default=str) + "\n")
        return
    from recsys.report.text import result_table

    if values:
        console.print(result_table(values))
    for name, address in (place or {}).items():
        console.print(f"{name}: {address}", soft_wrap=True, markup=False)


def warn(lines: Iterable[str]) -> None:
    """Print warnings on standard error, one per line, so that they do not mix with the result."""
    for line in lines:
        sys.stderr.write(f"muxrec: warning: {line}\n")


def wide(terminal: Console) -> Console:
    """The console, or a wider one where the output is a file, for which rich assumes 80 columns."""
    return terminal if terminal.is_terminal else Console(highlight=False, markup=False, width=WIDTH)
