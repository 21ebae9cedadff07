"""`python -m experiments.run NAME ...`: the same as `muxrec train NAME ...`; a script of one's own ends in `run`.

def wider() -> Experiment:
    return variant(frappe(), "wider", embedding={"width": 8})

if __name__ == "__main__":
    run(wider)
"""

from collections.abc import Callable

import typer

from experiments.cli import run_command
from experiments.config import Experiment
from experiments.runs import RUNS
from experiments.verbs.training import train


def run(*runs: Callable[[], Experiment]) -> None:
    """Take NAME and the rest from the command line, as `muxrec train` does; `runs` are further names, their own."""
    RUNS.update({one.__name__: one for one in runs})
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(train)
    run_command(app, "run")


if __name__ == "__main__":
    run()
