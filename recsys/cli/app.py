"""The `muxrec` command: its verbs, and its one-line answer to a user's mistake."""

import gc
import importlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from features.errors import InputError
from features.files import system_fault
from recsys.cli.options import NamedRuns

VERBS = (
    "prepare",
    "train",
    "evaluate",
    "sweep",
    "compare",
    "prune",
    "export",
    "verify",
    "parity",
    "score",
    "promote",
    "serve",
    "drift",
    "doctor",
)
"""Verbs in the order of `muxrec --help`; each is the function of this name in the module of this name."""

app = typer.Typer(
    help="Click-through-rate prediction with one multiplexed embedding table, from raw logs to probabilities.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in VERBS:
    app.command()(getattr(importlib.import_module(f"recsys.cli.{verb}"), verb))


def main(load_runs: Callable[[], NamedRuns]) -> None:
    """Run the `muxrec` command with these named runs.

    Only verbs that need a run by name call `load_runs`: it imports torch, which scoring does without.
    """
    run_command(lambda: app(obj=load_runs), "muxrec")


def run_command(command: Callable[[], object], name: str) -> None:
    """Run a command; a user's mistake is one line on standard error, which begins with `name`, and exit code 2."""
    try:
        command()
    except InputError as error:
        _refuse(name, error)
    except BrokenPipeError:
        # The reader of our output has closed it: that is no mistake.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        fault = system_fault(error)
        if fault is None:
            raise
        _refuse(name, fault)
    finally:
        gc.freeze()  # the process ends: one more search of torch and MLflow for garbage would take 1.4 s


def _refuse(name: str, error: InputError) -> NoReturn:
    line = " ".join(str(error).split())
    sys.stderr.write(f"{name}: {line}\n")
    sys.exit(2)
