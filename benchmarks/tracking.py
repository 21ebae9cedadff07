"""The cost of tracking: the same training command with and without MLflow, in turn.

    python -m benchmarks.tracking [--data DATASET] [--name final_mlp] [--set trainer.epochs=20] [--out tracking.md]

Each round runs `muxrec train` twice in separate processes, once with `--no-track`. The whole command is timed, with
the start of Python, imports, and the end of the run. Without --data a planted dataset is written to a temporary folder.
The store is a SQLite file that a warm-up run has created.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from benchmarks.common import ROOT, OutOption, QuickOption, RoundsOption, Spread, machine, markdown, report, say
from benchmarks.load import make_dataset
from data.common import run

ON, OFF = "tracked", "--no-track"
TARGET = 0.02
"""Share of the training time that tracking may cost."""


class Run(NamedTuple):
    """One training command."""

    seconds: float
    cpu_seconds: float
    train_seconds: float
    """Time in training steps, from the run's metrics."""
    tracking_seconds: float
    """Time that the tracker counted itself; 0 without tracking."""


def train(name: str, data: Path, settings: list[str], folder: Path, number: int, track: bool) -> Run:
    """Run the command once, in a new run directory."""
    out = folder / f"run-{number}-{'on' if track else 'off'}"
    command = [sys.executable, "-m", "experiments", "train", name, *settings, "--data", str(data)]
    command += ["--out", str(out), "--json", *([] if track else ["--no-track"])]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'store.db'}"}
    before, began = _children_seconds(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    seconds = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    perf = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["perf"]
    return Run(seconds, _children_seconds() - before, perf["train_seconds"], perf.get("tracking_seconds", 0.0))


def _children_seconds() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table_of(runs: dict[str, list[Run]]) -> str:
    """Seconds with and without tracking, and the difference within a round, as Markdown."""
    names = {"seconds": "whole command, s", "cpu_seconds": "processor, s", "train_seconds": "training steps, s"}
    rows: list[list[str]] = []
    for field, title in names.items():
        on, off = ([getattr(one, field) for one in runs[which]] for which in (ON, OFF))
        added = Spread.of(mine - theirs for mine, theirs in zip(on, off, strict=True))
        rows.append([title, Spread.of(off).text(".2f"), Spread.of(on).text(".2f"), added.text("+.2f")])
    return markdown(("", "without", "with", "added"), rows)


def share_table(runs: dict[str, list[Run]]) -> str:
    """The cost of tracking as a share of the training time of the same round, as Markdown."""
    shares = [(on.seconds - off.seconds) / off.train_seconds for on, off in zip(runs[ON], runs[OFF], strict=True)]
    counted = [on.tracking_seconds / on.train_seconds for on in runs[ON]]
    rows = [
        ["added to the command", Spread.of(100 * one for one in shares).text(".2f")],
        ["counted by the tracker", Spread.of(100 * one for one in counted).text(".2f")],
        ["target", f"{100 * TARGET:.2f}"],
    ]
    return markdown(("", "% of training time"), rows)


def main(
    data: Annotated[Path | None, typer.Option(help="Dataset directory; by default planted rows.")] = None,
    name: Annotated[str, typer.Option(help="Named run.")] = "final_mlp",
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY.SUB=VALUE, as for `muxrec train`.")] = None,
    rounds: RoundsOption = 5,
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Measure the cost of tracking."""
    facts = machine()
    changes = list(settings or [])
    if quick:
        changes += ["trainer.epochs=2", "embedding.num_rows=1000"]
    with tempfile.TemporaryDirectory(prefix="muxrec-bench-") as temporary:
        folder = Path(temporary)
        dataset = make_dataset(folder, 2_000 if quick else 1_000_000) if data is None else data.absolute()
        train(name, dataset, [*changes, "trainer.epochs=1"], folder, 0, track=True)
        runs: dict[str, list[Run]] = {ON: [], OFF: []}
        for number in range(1, 1 + (min(rounds, 2) if quick else rounds)):
            order = (ON, OFF) if number % 2 else (OFF, ON)
            for which in order:
                runs[which].append(train(name, dataset, changes, folder, number, track=which == ON))
                say(f"round {number}, {which}: {runs[which][-1].seconds:.1f} s")
    facts |= {"run": " ".join([name, *changes]), "data": data.name if data else "planted rows"}
    sections = [("Seconds", table_of(runs)), ("Share", share_table(runs))]
    report("What tracking costs", facts, sections, {key: [*map(list, one)] for key, one in runs.items()}, out)


if __name__ == "__main__":
    run(main)
