"""What the verbs share: their common options, and how a result is printed."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from features.errors import InputError

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
    from experiments.text import result_table

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
