"""The `muxrec` command: its verbs, and how it ends on a mistake."""

import gc
import os
import sys
from typing import NoReturn

import typer

from experiments.verbs.data import prepare
from experiments.verbs.machine import doctor
from experiments.verbs.many_runs import compare, sweep
from experiments.verbs.scoring import score, verify
from experiments.verbs.serving import serve
from experiments.verbs.tracking import drift, promote
from experiments.verbs.training import evaluate, export, parity, prune, train
from features.errors import InputError
from features.files import system_fault

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


def main() -> None:
    """The `muxrec` command."""
    run_command(app, "muxrec")


def _refuse(name: str, error: InputError) -> NoReturn:
    line = " ".join(str(error).split())
    sys.stderr.write(f"{name}: {line}\n")
    sys.exit(2)


def run_command(command: typer.Typer, name: str) -> None:
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


if __name__ == "__main__":
    main()
