"""The `muxrec` command: its verbs, and how it ends on a mistake."""

import gc
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from features.errors import InputError
from features.files import system_fault
from recsys.cli.compare import compare
from recsys.cli.doctor import doctor
from recsys.cli.drift import drift
from recsys.cli.evaluate import evaluate
from recsys.cli.export import export
from recsys.cli.options import NamedRuns
from recsys.cli.parity import parity
from recsys.cli.prepare import prepare
from recsys.cli.promote import promote
from recsys.cli.prune import prune
from recsys.cli.score import score
from recsys.cli.serve import serve
from recsys.cli.sweep import sweep
from recsys.cli.train import train
from recsys.cli.verify import verify

app = typer.Typer(
    help="Click-through-rate prediction with one multiplexed embedding table.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (
    prepare,
    train,
    prune,
    sweep,
    compare,
    evaluate,
    export,
    verify,
    parity,
    promote,
    drift,
    score,
    serve,
    doctor,
):
    app.command()(verb)


def main(load_runs: Callable[[], NamedRuns]) -> None:
    """The `muxrec` command with these runs; they are loaded by the verbs that name one, so that scoring needs no
    torch."""
    run_command(lambda: app(obj=load_runs), "muxrec")


def _refuse(name: str, error: InputError) -> NoReturn:
    line = " ".join(str(error).split())
    sys.stderr.write(f"{name}: {line}\n")
    sys.exit(2)


def run_command(command: Callable[[], object], name: str) -> None:
    """Run a command; a user's mistake is one line on standard error, which begins with `name`, and exit code 2."""
    try:
        command()
    except InputError as error:
        _refuse(name, error)
    except BrokenPipeError:
        # The reader of our output has left: no complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        fault = system_fault(error)
        if fault is None:
            raise
        _refuse(name, fault)
    finally:
        gc.freeze()  # the process ends: to search torch and MLflow for garbage once more would take 1.4 s of its time
