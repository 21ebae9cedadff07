"""Speed of loading batches, against the speed at which training steps consume them.

    python -m benchmarks.load [--rows 2e6] [--out work/benchmarks/load.md]

A planted dataset is prepared in a temporary folder; `Split.batches` then runs whole shuffled epochs over it, once with
all rows in memory and once in windows that it reads again in each epoch. The floor is a numpy gather of the same rows.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.common import (
    RAW,
    OutOption,
    QuickOption,
    RoundsOption,
    Spread,
    Worker,
    in_turn,
    machine,
    markdown,
    parse_sizes,
    ratio,
    report,
    say,
    write_raw,
)
from benchmarks.contenders import METHODS, QUICK, Case
from data.common import run
from features.dataset.prepare import prepare
from features.registry import FeatureRegistry
from recsys.dataset import Split
from recsys.runs.process import prepare_for_training

STEPS = ("muxrec", "muxrec_bf16")
TABLE_ROWS = 1_000_000
WINDOW_BYTES = 1 << 26
MEMORY, WINDOWS, FLOOR = "Split, all rows in memory", "Split, windows from parquet", "floor: numpy gathers the rows"
STEP = "step:"
HEADINGS = ("what", "rows/s", "ms per batch", "times the step", "share of the floor")
NUM_VALID = 1000

Round = Callable[[int], float]
"""Runs a round, given its number; returns rows per second."""


def make_dataset(directory: Path, num_rows: int) -> Path:
    """Path of a new dataset directory with `num_rows` training rows."""
    edges = {"train": (0, num_rows), "valid": (num_rows, num_rows + NUM_VALID)}
    files: dict[str, list[str | Path]] = {}
    for split, (start, stop) in edges.items():
        path = directory / f"{split}.parquet"
        write_raw(path, start, stop)
        files[split] = [path]
    prepare(FeatureRegistry.of(features=RAW.features), files, directory / "dataset")
    return directory / "dataset"


def gather(num_rows: int, batch_size: int) -> Round:
    """Epochs of the floor: batches of a shuffled order, gathered from an int64 matrix [rows, F]."""
    matrix = np.random.default_rng(1).integers(0, 2**62, (num_rows, RAW.num_features))

    def epoch(number: int) -> float:
        began = time.perf_counter()
        order = np.random.default_rng(number).permutation(num_rows)
        for indices in np.array_split(order, -(-num_rows // batch_size)):
            matrix[indices]
        return num_rows / (time.perf_counter() - began)

    return epoch


def load(split: Split, batch_size: int) -> Round:
    """Shuffled epochs of a split."""

    def epoch(number: int) -> float:
        began = time.perf_counter()
        num_rows = sum(batch.num_examples for batch in split.batches(batch_size, shuffle=True, seed=1, epoch=number))
        return num_rows / (time.perf_counter() - began)

    return epoch


def steps_of(case: Case, stack: ExitStack) -> dict[str, Round]:
    """Training steps of muxrec's contenders, each in a process that ends with `stack`."""

    def steps(worker: Worker) -> Round:
        def some(number: int) -> float:
            done = worker.ask("round")
            return done["steps"] * case.batch_size / done["seconds"]

        return some

    rounds: dict[str, Round] = {}
    for method in STEPS:
        argument = case.model_copy(update={"method": method}).model_dump()
        worker = stack.enter_context(closing(Worker("benchmarks.contenders", argument)))
        worker.ask("build")
        worker.ask("warm up")
        rounds[f"{STEP} {METHODS[method].title}"] = steps(worker)
    return rounds


def measure(dataset: Path, num_rounds: int, window_bytes: int, case: Case) -> dict[str, list[float]]:
    """Rows per second in each round: the loaders, their floor, and the steps."""
    whole = Split(dataset, "train", window_bytes=1 << 40)
    windows = Split(dataset, "train", window_bytes=window_bytes)
    with ExitStack() as stack:
        rounds = {
            FLOOR: gather(whole.num_rows, case.batch_size),
            MEMORY: load(whole, case.batch_size),
            WINDOWS: load(windows, case.batch_size),
            **steps_of(case, stack),
        }
        for one in rounds.values():
            one(0)  # not counted: reads the files and fills caches
        speeds: dict[str, list[float]] = {name: [] for name in rounds}
        for number in range(1, num_rounds + 1):
            say(f"round {number} of {num_rounds}")
            for name in in_turn(list(rounds), number):
                speeds[name].append(rounds[name](number))
    return speeds


def table_of(speeds: dict[str, list[float]], batch_size: int) -> str:
    """The report's table: each loader with its speed as a multiple of the fastest step's."""
    medians = {name: Spread.of(values).median for name, values in speeds.items()}
    steps = [name for name in speeds if name.startswith(STEP)]
    fastest = max(steps, key=lambda name: medians[name])
    lines: list[list[str]] = []
    for name, values in speeds.items():
        share = "" if name in steps else ratio(values, speeds[FLOOR])
        milliseconds = f"{1000 * batch_size / medians[name]:.2f}"
        lines.append([name, Spread.of(values).text(), milliseconds, ratio(values, speeds[fastest]), share])
    return markdown(HEADINGS, lines)


def main(
    rows: Annotated[str, typer.Option("--rows", help="Training rows of the dataset.")] = "2e6",
    rounds: RoundsOption = 5,
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Measure the loader against the training step."""
    facts = machine()
    prepare_for_training()
    num_rows = 5000 if quick else parse_sizes(rows)[0]
    case = Case.model_validate({"method": "muxrec", "num_rows": TABLE_ROWS, **(QUICK if quick else {})})
    window_bytes = 1 if quick else WINDOW_BYTES
    with tempfile.TemporaryDirectory(prefix="muxrec-bench-") as folder:
        say(f"making {num_rows:,} rows")
        dataset = make_dataset(Path(folder), num_rows)
        size = sum(path.stat().st_size for path in dataset.rglob("*.parquet"))
        speeds = measure(dataset, min(rounds, 2) if quick else rounds, window_bytes, case)
    facts |= {
        "dataset": f"{num_rows:,} rows of {RAW.num_features} features, {size / 2**20:,.0f} MB of parquet, "
        "read from the system's page cache",
        "windows": f"{window_bytes / 2**20:,.0f} MB of examples",
        "batch": f"{case.batch_size} examples; the step's table has {TABLE_ROWS:,} rows of {case.width}",
        "times the step": "of the fastest step, median over rounds",
    }
    report("Loader and step", facts, [("Batches", table_of(speeds, case.batch_size))], speeds, out)


if __name__ == "__main__":
    run(main)
