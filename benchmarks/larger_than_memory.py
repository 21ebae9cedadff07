"""An epoch on more data than the process may hold in memory.

    python -m benchmarks.larger_than_memory [--rows 2e7] [--limit-mb 2500] [--out work/benchmarks/larger_than_memory.md]

Planted rows are written in pieces, prepared, and trained on, each stage in a process whose private memory the system
limits. The control is the same training with all rows in one window; it has to run out of memory, or the limit had no
effect. Exit code 0 if the training ends and the control does not, else 1.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import common
from benchmarks.common import MEGABYTE, RAW
from data.common import run
from features.dataset.prepare import prepare
from features.errors import InputError
from features.line_worker import WorkerError
from features.registry import FeatureRegistry

STAGES = ("make", "prepare", "train", "control")
PIECE_ROWS = 1_000_000
WINDOW_MB = 512
MAX_SECONDS = 3600
"""Time limit of a stage: a library that gets no memory may wait for ever instead of ending."""
COLUMNS = RAW.num_features + 1
"""The features and the label; each value takes 8 bytes or less in memory."""
HEADINGS = ("what", "rows/s", "seconds", "peak MB", "share of the limit")


def limit_memory(limit_mb: int) -> None:
    """Limit the private memory of this process.

    Linux counts addresses, so those that imported libraries have reserved without using them are added to the limit.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in status if line.endswith("kB")}
    most = (kilobytes["VmData"] - kilobytes["RssAnon"]) * 1024 + limit_mb * MEGABYTE
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    signal.alarm(MAX_SECONDS)


def write_dataset(stage: str, folder: Path, rows: int, limit_mb: int) -> dict[str, float]:
    """Write the raw files, or the dataset made of them, in limited memory."""
    limit_memory(limit_mb)
    began = time.perf_counter()
    if stage == "make":
        (folder / "raw").mkdir()
        for start in range(0, rows, PIECE_ROWS):
            common.write_raw(folder / "raw" / f"{start:012d}.parquet", start, min(start + PIECE_ROWS, rows))
    else:
        registry = FeatureRegistry.of(features=RAW.features)
        prepare(registry, {"train": [folder / "raw"]}, folder / "dataset", holdout=0.01)
    return {"rows": rows, "seconds": time.perf_counter() - began}


def train(dataset: Path, window_bytes: int, limit_mb: int) -> dict[str, float]:
    """Train a small network and table for an epoch, in limited memory; the seconds are those of training alone."""
    from recsys.dataset import Split
    from recsys.embedding.table import EmbeddingConfig
    from recsys.models import MODELS
    from recsys.ranker import build_ranker
    from recsys.trainer import Trainer, TrainerConfig

    limit_memory(limit_mb)
    splits = [Split(dataset, name, window_bytes=window_bytes) for name in ("train", "valid")]
    embedding = EmbeddingConfig(num_rows=1 << 20, width=4, probes=1)
    network = MODELS["mlp"].Config.model_validate({"hidden": [64]})
    ranker, optimizer = build_ranker(splits[0].registry, "mlp", network, embedding, seed=1, learning_rate=1e-3)
    config = TrainerConfig(epochs=1, batch_size=4096)
    with tempfile.TemporaryDirectory() as directory:
        state = Trainer(ranker, optimizer, config, Path(directory), seed=1).fit(*splits)
    return {"rows": state.examples, "seconds": state.seconds, "auc": state.history[-1]["valid_auc"]}


def work(stage: str, folder: str, rows: int, limit_mb: int, window_mb: int) -> dict[str, float]:
    """Run one stage in this process; returns its figures and its peak memory."""
    if stage in ("make", "prepare"):
        figures = write_dataset(stage, Path(folder), rows, limit_mb)
    else:
        window_bytes = window_mb * MEGABYTE if stage == "train" else 1 << 60
        figures = train(Path(folder, "dataset"), window_bytes, limit_mb)
    return figures | {"peak_mb": common.peak_mb()}


def measure(folder: Path, rows: int, limit_mb: int, window_mb: int) -> dict[str, dict[str, Any]]:
    """Run the stages in order, up to the first one that fails: its `ended` says why."""
    done: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        common.say(f"{stage}: {rows:,} rows")
        argument = {"stage": stage, "folder": str(folder), "rows": rows, "limit_mb": limit_mb, "window_mb": window_mb}
        with closing(common.Worker("benchmarks.larger_than_memory", argument)) as worker:
            try:
                done[stage] = worker.ask("run")
            except WorkerError as error:
                return done | {stage: {"ended": str(error)[:80]}}
    return done


def line_of(stage: str, figures: dict[str, Any], limit_mb: int) -> list[str]:
    """One row of the table."""
    if "ended" in figures:
        return [stage, figures["ended"], "", "", ""]
    numbers = [
        f"{figures['rows'] / figures['seconds']:,.0f}",
        f"{figures['seconds']:,.0f}",
        f"{figures['peak_mb']:,.0f}",
    ]
    return [stage, *numbers, f"{figures['peak_mb'] / limit_mb:.0%}"]


def main(
    rows: Annotated[str, typer.Option("--rows", help="Planted rows, 27 columns each.")] = "2e7",
    limit_mb: Annotated[
        int, typer.Option("--limit-mb", min=1, help="Limit on the private memory of a process.")
    ] = 2500,
    window_mb: Annotated[int, typer.Option("--window-mb", min=1, help="Window of the loader.")] = WINDOW_MB,
    out: common.OutOption = None,
) -> None:
    """Train on more data than fit into memory."""
    num_rows = common.parse_sizes(rows)[0]
    data_mb = num_rows * COLUMNS * 8 / MEGABYTE
    if data_mb <= limit_mb:
        remedy = "raise --rows or lower --limit-mb"
        raise InputError(f"expected data above {limit_mb:,} MB", found=f"{data_mb:,.0f} MB", remedy=remedy)
    facts = common.machine()
    # The limit counts addresses: polars' allocator keeps those of freed memory, and Arrow's reserves a gigabyte.
    os.environ |= {"_RJEM_MALLOC_CONF": "retain:false", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    with tempfile.TemporaryDirectory(prefix="muxrec-bench-") as folder:
        done = measure(Path(folder), num_rows, limit_mb, window_mb)
        on_disk = sum(path.stat().st_size for path in Path(folder, "dataset").rglob("*.parquet")) / MEGABYTE
    facts |= {
        "data": f"{num_rows:,} rows x {COLUMNS} columns x 8 B = {data_mb:,.0f} MB in memory, {on_disk:,.0f} MB on disk",
        "limit": f"{limit_mb:,} MB of private memory per process (RLIMIT_DATA); windows of {window_mb} MB",
        "control": "the same training with all rows in one window, which has to run out of memory",
        "validation AUC": f"{done.get('train', {}).get('auc', float('nan')):.4f}",
    }
    table = common.markdown(HEADINGS, [line_of(stage, values, limit_mb) for stage, values in done.items()])
    common.report("More data than memory", facts, [("Stages, each a process", table)], done, out)
    is_shown = "auc" in done.get("train", {}) and "ended" in done.get("control", {})
    sys.exit(0 if is_shown else 1)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        job = json.loads(sys.argv[1])
        common.serve(lambda question: work(**job))
    else:
        run(main)
