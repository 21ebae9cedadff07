"""From raw rows to a dataset: `prepare`, pandas, and a fitted vocabulary.

    python -m benchmarks.prepare [--rows 1e6,4e6] [--out work/benchmarks/prepare.md]

Each contender reads one parquet file of 26 text columns and writes ids or tokens as parquet, in a separate process:
its peak memory is measured. The floor is polars alone: scan, hash, write. Only `prepare` also checks values, splits,
counts and takes checksums.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, NamedTuple

import polars as pl
import typer

from benchmarks.common import (
    MEGABYTE,
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
    peak_mb,
    ratio,
    report,
    say,
    serve,
    short,
    write_raw,
)
from data.common import run
from features.dataset.prepare import prepare
from features.hashing import token_of_text
from features.registry import FeatureRegistry

HEADINGS = ("contender", "rows/s", "times the vocabulary", "share of the floor", "peak MB", "MB written")

NAMES = RAW.categorical_names
MIN_COUNT = 1
"""Values seen less often share one id."""


def with_muxrec(raw: Path, out: Path) -> None:
    """`prepare`, as `muxrec prepare` calls it."""
    prepare(FeatureRegistry.of(features=RAW.features), {"train": [raw]}, out)


def with_polars(raw: Path, out: Path) -> None:
    """The floor: hash every column and write it, in one streaming query."""
    out.mkdir()
    tokens = [token_of_text(pl.col(name)) for name in NAMES]
    query = pl.scan_parquet(raw).select(pl.col("label").cast(pl.UInt8), *tokens)
    query.sink_parquet(out / "all.parquet", compression="lz4", statistics=False)


def with_pandas(raw: Path, out: Path) -> None:
    """Ids in order of appearance, one column at a time."""
    import pandas as pd  # here, so that the others' memory is their own

    out.mkdir()
    frame = pd.read_parquet(raw, columns=["label", *NAMES])
    for name in NAMES:
        frame[name] = pd.factorize(frame[name])[0]
    frame.to_parquet(out / "all.parquet", compression="lz4", index=False)


def with_vocabulary(raw: Path, out: Path) -> None:
    """Ids by falling frequency from 1, with 0 for padding and the last one for values without an id.

    As BARS' preprocessing does it: one counter and one dictionary per column.
    """
    out.mkdir()
    frame = pl.read_parquet(raw, columns=["label", *NAMES])
    columns = [frame["label"]]
    for name in NAMES:
        values = frame[name].to_list()
        counts = Counter(values)
        kept = sorted((value for value in counts if counts[value] >= MIN_COUNT), key=lambda value: -counts[value])
        ids = {value: number for number, value in enumerate(kept, start=1)}
        unseen = len(ids) + 1
        columns.append(pl.Series(name, [ids.get(value, unseen) for value in values], dtype=pl.Int32))
    pl.DataFrame(columns).write_parquet(out / "all.parquet", compression="lz4", statistics=False)


class Contender(NamedTuple):
    """One way to prepare the rows, and the modules to import before the clock starts."""

    run: Callable[[Path, Path], None]
    needs: tuple[str, ...] = ()


FLOOR, PEER = "floor: polars scans, hashes, writes", "vocabulary: a counter and a dictionary"
CONTENDERS = {
    FLOOR: Contender(with_polars),
    "muxrec prepare": Contender(with_muxrec),
    "pandas.factorize": Contender(with_pandas, ("pandas", "pyarrow.parquet")),
    PEER: Contender(with_vocabulary),
}


def work(method: str, raw: str, out: str) -> dict[str, float]:
    """Run one contender in this process; returns its seconds, peak memory and megabytes written."""
    contender = CONTENDERS[method]
    for module in contender.needs:
        import_module(module)
    began = time.perf_counter()
    contender.run(Path(raw), Path(out))
    seconds = time.perf_counter() - began
    written = sum(path.stat().st_size for path in Path(out).rglob("*.parquet"))
    return {"seconds": seconds, "peak_mb": peak_mb(), "written_mb": written / MEGABYTE}


Runs = dict[str, list[dict[str, float]]]
"""Contender to `seconds`, `peak_mb` and `written_mb` of each round."""


def measure(num_rows: int, rounds: int, folder: Path) -> Runs:
    """Time all contenders on a raw file of `num_rows` rows; they take turns."""
    say(f"making {num_rows:,} rows")
    raw = folder / "raw.parquet"
    write_raw(raw, 0, num_rows)
    runs: Runs = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        say(f"{num_rows:,} rows, round {number + 1} of {rounds}")
        for name in in_turn(list(CONTENDERS), number):
            with tempfile.TemporaryDirectory(dir=folder) as out:
                argument = {"method": name, "raw": str(raw), "out": f"{out}/dataset"}
                worker = Worker("benchmarks.prepare", argument)
                try:
                    runs[name].append(worker.ask("run"))
                finally:
                    worker.close()
    return runs


def table_of(num_rows: int, runs: Runs) -> str:
    """Speed, ratios within rounds, and memory, as Markdown."""
    speeds = {name: [num_rows / one["seconds"] for one in rounds] for name, rounds in runs.items()}
    lines: list[list[str]] = []
    for name, rounds in runs.items():
        peak = Spread.of(one["peak_mb"] for one in rounds)
        against = [ratio(speeds[name], speeds[other]) for other in (PEER, FLOOR)]
        written = f"{rounds[0]['written_mb']:,.0f}"
        lines.append([name, Spread.of(speeds[name]).text(), *against, peak.text(), written])
    return markdown(HEADINGS, lines)


def growth_of(measured: dict[int, Runs]) -> str:
    """Peak memory by number of rows, as Markdown."""
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
    """Measure how raw rows become a dataset."""
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
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        job = json.loads(sys.argv[1])
        serve(lambda question: work(**job))
    else:
        run(main)
