"""Raw rows to a dataset, beside pandas and a fitted vocabulary.

    python -m benchmarks.prepare [--rows 1e6,4e6] [--out work/benchmarks/prepare.md]

Every run is a process of its own, so that its peak memory is, too; `benchmarks.encoding` says what each does. The floor
is polars alone: scan, hash, write. Only `prepare` also checks, splits, counts and takes checksums.
"""

import tempfile
from pathlib import Path
from typing import Annotated

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
    short,
    write_raw,
)
from benchmarks.encoding import CONTENDERS, FLOOR, PEER
from data.common import run

HEADINGS = ("contender", "rows/s", "times the vocabulary", "share of the floor", "peak MB", "MB written")

Runs = dict[str, list[dict[str, float]]]
"""Contender to `seconds`, `peak_mb` and `written_mb` of each round."""


def measure(num_rows: int, rounds: int, folder: Path) -> Runs:
    """All contenders on so many rows, taking turns."""
    say(f"making {num_rows:,} rows")
    raw = folder / "raw.parquet"
    write_raw(raw, 0, num_rows)
    runs: Runs = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        say(f"{num_rows:,} rows, round {number + 1} of {rounds}")
        for name in in_turn(list(CONTENDERS), number):
            with tempfile.TemporaryDirectory(dir=folder) as out:
                argument = {"method": name, "raw": str(raw), "out": f"{out}/dataset"}
                worker = Worker("benchmarks.encoding", argument)
                try:
                    runs[name].append(worker.ask("run"))
                finally:
                    worker.close()
    return runs


def table_of(num_rows: int, runs: Runs) -> str:
    """Speed, ratios inside the rounds, and memory."""
    speeds = {name: [num_rows / one["seconds"] for one in rounds] for name, rounds in runs.items()}
    lines: list[list[str]] = []
    for name, rounds in runs.items():
        peak = Spread.of(one["peak_mb"] for one in rounds)
        against = [ratio(speeds[name], speeds[other]) for other in (PEER, FLOOR)]
        written = f"{rounds[0]['written_mb']:,.0f}"
        lines.append([name, Spread.of(speeds[name]).text(), *against, peak.text(), written])
    return markdown(HEADINGS, lines)


def growth_of(measured: dict[int, Runs]) -> str:
    """Peak memory by size."""
    sizes = sorted(measured)
    lines: list[list[str]] = []
    for name in CONTENDERS:
        peaks = [Spread.of(one["peak_mb"] for one in measured[size][name]).median for size in sizes]
        lines.append([name, *(f"{peak:,.0f}" for peak in peaks), f"{peaks[-1] / peaks[0]:.2f}"])
    return markdown(["contender", *(f"{short(size)} rows, MB" for size in sizes), "largest over smallest"], lines)


def main(
    rows: Annotated[str, typer.Option("--rows", help="Sizes of the raw file, separated by commas.")] = "1e6,4e6",
    rounds: RoundsOption = 5,
    quick: QuickOption = False,
    out: OutOption = None,
) -> None:
    """Measure the way from raw rows to a dataset."""
    facts = machine()
    sizes = [1000, 3000] if quick else parse_sizes(rows)
    measured: dict[int, Runs] = {}
    for num_rows in sizes:
        with tempfile.TemporaryDirectory(prefix="muxrec-bench-") as folder:
            measured[num_rows] = measure(num_rows, 1 if quick else rounds, Path(folder))
    facts |= {
        "raw file": f"parquet, {RAW.num_features} text columns of {RAW.num_distinct:,} values, power law",
        "ratios": "medians over rounds; spreads are the smallest and the largest round",
    }
    sections = [(f"{short(num_rows)} rows", table_of(num_rows, runs)) for num_rows, runs in measured.items()]
    sections.append(("Peak memory by rows", growth_of(measured)))
    report("From raw rows to a dataset", facts, sections, measured, out)


if __name__ == "__main__":
    run(main)
