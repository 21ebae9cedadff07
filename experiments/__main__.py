"""The `muxrec` command with the runs of this folder: `python -m experiments train frappe ...`."""

from recsys.cli.app import main as run_app
from recsys.cli.options import NamedRuns


def load_runs() -> NamedRuns:
    """RUNS and SPACES, imported only when a verb asks for them: they import torch."""
    from experiments.runs import RUNS, SPACES

    return NamedRuns(RUNS, SPACES)


def main() -> None:
    """The `muxrec` command."""
    run_app(load_runs)


if __name__ == "__main__":
    main()
