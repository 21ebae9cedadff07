"""What the verbs share: their common options, and how a result is printed."""

import json
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

# Names and paths may hold brackets, which are no markup.
console = Console(highlight=False, markup=False)

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of text.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --out.")]
Data = Annotated[Path, typer.Option(help="Dataset directory that `muxrec prepare` wrote.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory that `muxrec train` wrote.")]
TestNegativeRate = Annotated[
    float | None,
    typer.Option(help="Share of the negatives that --test kept; else 1 for raw files, the model's own for a dataset."),
]
BundleUri = Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle directory, or models:/NAME@ALIAS.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle directory that `muxrec export` wrote.")]


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
    """Print warnings, a line each, where they do not mix with the result."""
    for line in lines:
        sys.stderr.write(f"muxrec: warning: {line}\n")


def require_training() -> None:
    """Raise `InputError` with the command that installs what training needs."""
    import importlib.util

    absent = [name for name in ("torch", "torchrec", "mlflow") if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError("this verb needs the training packages", found=f"no {absent[0]}", remedy="make env")


TABLE_DTYPES = "fp32, fp16, int8, int4, int2, int1, opq4, opq3, opq2 or opq1"


WIDTH = 160
"""Characters of a line where the output is no terminal: nothing is cut off in a file."""


def wide(terminal: Console) -> Console:
    """The console, without the 80 columns that it takes a file for."""
    return terminal if terminal.is_terminal else Console(highlight=False, markup=False, width=WIDTH)


class NamedRuns(NamedTuple):
    """The runs that a command knows by name, and what their sweeps vary."""

    runs: Mapping[str, Callable[[], "Experiment"]]
    spaces: Mapping[str, "SearchSpace"]
    """Of some runs; the others have a default space."""

    def experiment(self, name: str | None) -> "Experiment":
        """The run of this name; raises `InputError` with the names that there are."""
        if name is None or name not in self.runs:
            found = None if name is None else repr(name)
            expected = "expected NAME or --config" if name is None else "unknown run"
            raise InputError(expected, found=found, remedy=f"use one of {', '.join(self.runs)}")
        return self.runs[name]()

    def space(self, name: str) -> "SearchSpace":
        """The search space of a named run."""
        from recsys.sweep.search_space import default_space

        return self.spaces[name] if name in self.spaces else default_space(self.experiment(name))
