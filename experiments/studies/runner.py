"""Every figure and table of docs/results, by one command that trains only what is missing.

    python -m experiments.studies.runner --data work/frappe --data work/movielens [--study NAME]...

A run is one `muxrec train`, and for the studies of compression a `muxrec prune` of it, in a separate process. Run
directories in the work folder are the record of what is done: a finished one counts while it holds the same resolved
experiment, seed included, on data of the same digest. Studies share the runs that they have in common.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from experiments.studies.compression import COMPRESSION
from experiments.studies.frontier_page import write_frontier
from experiments.studies.page import Record, Result, write_study
from experiments.studies.table_kinds import TABLE_KINDS, Cell, Study, StudyData, directories_by_data, read_data
from features.errors import InputError
from features.files import write_text
from features.golden import golden_frame
from recsys.cli.app import run_command
from recsys.config import Compression, Experiment, flatten
from recsys.runs.process import locked_directory
from recsys.runs.run_directory import RunDirectory
from serving.bundle import Bundle
from serving.scorer import Scorer

STUDIES: dict[str, Study] = TABLE_KINDS | COMPRESSION
LOCK_TIMEOUT_SECONDS = 5.0
"""Seconds to wait for the processes of an interrupted call to end."""
SCORER_TIME = "scorer_us_per_row"


class StudyRun(NamedTuple):
    """A cell with one seed: one run to do."""

    cell: Cell
    seed: int
    data: StudyData

    @property
    def name(self) -> str:
        """Cell and seed, for messages."""
        return f"{self.cell.name} seed {self.seed}"


class RunStore:
    """Run directories of the studies in a work folder: `runs/KEY` of a trained run, `runs/KEY-DIGEST` of a pruned one.

    The file `NAME.json` next to a directory has the figures that the study measured: `seconds` of pruning and
    `base_seconds` of training before it, the scorer's time, or why the run is `unreachable`.
    """

    def __init__(self, work: Path) -> None:
        self.folder = work / "runs"
        self._bases: dict[str, Path] = {}
        for path in sorted(self.folder.glob("*/run.json")):
            run = RunDirectory(path.parent)
            try:
                # Validated anew: a setting that came later has its default, which is what the run did.
                experiment = run.experiment()
            except InputError:  # with settings that no longer exist
                continue
            if experiment.compression is None:
                self._bases[key_of(experiment, run.run_info()["dataset_digest"])] = run.path

    def base(self, run: StudyRun) -> Path:
        """Directory of the trained run, before any compression."""
        key = key_of(run.cell.experiment(run.seed), run.data.info.digest)
        return self._bases.get(key, self.folder / key)

    def path(self, run: StudyRun) -> Path:
        """Directory of the run."""
        base, words = self.base(run), run.cell.prune_arguments()
        return base.with_name(f"{base.name}-{_digest(words)}") if words else base

    def record(self, run: StudyRun) -> Record | None:
        """Figures of a finished run; None if it is missing."""
        path, how = self.path(run), run.cell.compression
        done, notes = RunDirectory(path), self._notes(path)
        if "unreachable" in notes:
            return notes
        if not done.is_finished or (how and done.experiment().compression != Compression.model_validate(how)):
            return None
        return _figures(done) | notes

    def note(self, run: StudyRun, **notes: Any) -> None:
        """Keep figures that the study measured."""
        path = self.path(run)
        write_text(_beside(path, "json"), json.dumps(self._notes(path) | notes))

    def _notes(self, path: Path) -> dict[str, Any]:
        notes = _beside(path, "json")
        return json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {}


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def key_of(experiment: Experiment, dataset_digest: str) -> str:
    """Identity of a trained run: a digest of its resolved experiment, seed included, and of the data."""
    return _digest([experiment.model_dump(mode="json"), dataset_digest])


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _figures(run: RunDirectory) -> dict[str, Any]:
    metrics, experiment = run.metrics(), run.experiment()
    manifest = Bundle.open(run.bundle, verify=False).manifest
    num_floats = manifest.layout.num_rows * manifest.layout.width
    return {
        **{f"{split}_{name}": value for split in ("valid", "test") for name, value in metrics[split].items()},
        "settings": flatten(experiment.model_dump(mode="json")),
        "rows": manifest.layout.num_rows,
        "width": manifest.layout.width,
        "probes": experiment.embedding.probes,
        "table_bytes": 4 * num_floats,
        "network_parameters": manifest.num_parameters - num_floats,
        "epochs": metrics["perf"]["epochs"],
        "samples_per_s": round(metrics["perf"]["samples_per_s"]),
        "embedding_bytes": manifest.table_bytes,
        "bundle_bytes": sum(path.stat().st_size for path in run.bundle.iterdir()),
        "base_seconds": metrics["perf"]["train_seconds"],
    }


def plan(
    cells: Iterable[Cell], data: Mapping[str, StudyData], seeds: int | None = None, pattern: str = "*"
) -> list[StudyRun]:
    """The runs of the cells that match a pattern, first seeds first.

    Each cell has its own number of runs, or `seeds`. A cell of no page has none, but `seeds` where a pattern is given.
    """
    runs: list[StudyRun] = []
    for cell in cells:
        if fnmatchcase(cell.name, pattern):
            num_seeds = seeds if seeds and (cell.num_seeds or pattern != "*") else cell.num_seeds
            runs += [StudyRun(cell, seed, data[cell.data]) for seed in range(1, num_seeds + 1)]
    return sorted(runs, key=lambda run: run.seed)


class RunError(Exception):
    """A process that failed, with the last line of its log."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
        """The exit code of the process: 2 where it refused its settings."""


class Processes:
    """Trains and prunes by `muxrec` commands, each in a separate process."""

    def __init__(self, store: RunStore, *, threads: int = 1, track: bool = False, lock: int | None = None) -> None:
        """`lock`: descriptor of the work folder's lock, which each process inherits, as it may outlive this one."""
        self.store = store
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._options = ["--track" if track else "--no-track", "--json"]
        self._inherited = () if lock is None else (lock,)
        self._running: set[subprocess.Popen[str]] = set()
        self._base_locks: dict[Path, threading.Lock] = {}

    def train(self, run: StudyRun) -> None:
        """Do a run, and first the run that it starts from if missing; raises `RunError`. Resumes interrupted runs."""
        base = self.store.base(run)
        with self._base_locks.setdefault(base, threading.Lock()):
            if not RunDirectory(base).is_finished:
                words = [*run.cell.train_arguments(run.seed), "--data", str(run.data.directory)]
                self.muxrec(["train", *words], base)
        if run.cell.compression:
            self._prune(run, base, self.store.path(run))

    def _prune(self, run: StudyRun, base: Path, path: Path) -> None:
        is_resumed, began = path.exists(), time.perf_counter()
        base_seconds = RunDirectory(base).metrics()["perf"]["train_seconds"]
        self.store.note(run, seconds=None, base_seconds=base_seconds)
        try:
            self.muxrec(["prune", str(base), *run.cell.prune_arguments()], path)
        except RunError as error:
            # If the method cannot make a table or mask that small, that is a result. Any other error is a failure.
            if error.code != 2 or "bytes are too few" not in str(error):
                raise
            shutil.rmtree(path, ignore_errors=True)
            self.store.note(run, seconds=0.0, unreachable=str(error).partition(" (exit code")[0])
            return
        if not is_resumed:
            self.store.note(run, seconds=time.perf_counter() - began)
        for folder in ("checkpoint", "supernet"):  # a hundred megabytes per run, which nothing reads again
            shutil.rmtree(path / folder, ignore_errors=True)

    def muxrec(self, words: Sequence[str], out: Path) -> None:
        """Run one `muxrec` command to its end; raises `RunError` with its last line, and then keeps its log."""
        log = _beside(out, "log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "experiments", *words, "--out", str(out), *self._options]
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
                env=self._environment,
                pass_fds=self._inherited,
            )
            self._running.add(process)
            code = process.wait()
            self._running.discard(process)
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["no output"]
            raise RunError(f"{lines[-1]} (exit code {code}; all of it in {log})", code)
        log.unlink()

    def stop(self) -> None:
        """Tell the processes to end; the next call resumes what they did."""
        for process in list(self._running):
            process.terminate()


def train_missing(runs: Sequence[StudyRun], processes: Processes, workers: int) -> list[str]:
    """Do the runs that are not done yet, `workers` at a time; returns a line for each that failed."""
    store = processes.store
    unique = list({store.path(run): run for run in reversed(runs)}.values())[::-1]
    missing = [run for run in unique if store.record(run) is None]
    typer.echo(f"{len(unique)} runs, {len(unique) - len(missing)} of them done before", err=True)
    failures: list[str] = []
    pool = ThreadPoolExecutor(workers)
    futures = {pool.submit(processes.train, run): run for run in missing}
    try:
        for number, future in enumerate(as_completed(futures), 1):
            run = futures[future]
            try:
                future.result()
                outcome = _summary(store.record(run) or {})
            except (RunError, InputError, OSError) as error:
                failures.append(f"{run.name}: {error}")
                outcome = f"FAILED: {error}"
            typer.echo(f"{number}/{len(missing)} {run.name}: {outcome}", err=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # not waiting: the processes of an interrupted call end first
        processes.stop()
    return failures


def _summary(record: Record) -> str:
    if "unreachable" in record:
        return f"cannot: {record['unreachable']}"
    return f"test auc {record['test_auc']:.4f}, {record['epochs']} epochs"


def time_scorers(runs: Sequence[StudyRun], store: RunStore) -> None:
    """Time the scorer on the finished runs that lack it; to be called when no other process trains."""
    for run in runs:
        record = store.record(run)
        if record and "unreachable" not in record and SCORER_TIME not in record:
            store.note(run, **{SCORER_TIME: scorer_microseconds(Bundle.open(store.path(run) / "bundle"))})


def scorer_microseconds(bundle: Bundle, num_rows: int = 4096, repeats: int = 5) -> float:
    """Microseconds per row for one thread to score made-up raw rows in one batch: the fastest of some repeats."""
    scorer, rows = Scorer(bundle, num_threads=1), golden_frame(bundle.registry, num_rows=num_rows, seed=1)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        scorer.score(rows)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / num_rows * 1e6


def results_of(study: Study, data: Mapping[str, StudyData], store: RunStore, seeds: int | None = None) -> list[Result]:
    """The finished runs of each cell: those with the seeds of the study, or `seeds` if there are more."""
    cells = study.cells(data)
    num_seeds = max(seeds or 0, *(cell.num_seeds for cell in cells))
    results = []
    for cell in cells:
        runs = [StudyRun(cell, seed, data[cell.data]) for seed in range(1, num_seeds + 1)]
        records = {run.seed: store.record(run) for run in runs}
        results.append(Result(cell, {seed: record for seed, record in records.items() if record is not None}))
    return results


def _chosen(names: Sequence[str], given: Collection[str]) -> dict[str, Study]:
    """The studies of these names, or all whose data are given."""
    for name in names:
        if name not in STUDIES:
            raise InputError("unknown study", found=repr(name), remedy=f"use one of {', '.join(STUDIES)}")
        absent = [data for data in STUDIES[name].data if data not in given]
        if absent:
            raise InputError(f"study {name} needs data of {absent[0]}", remedy="give its directory with --data")
    chosen = {name: study for name, study in STUDIES.items() if set(study.data) <= set(given)}
    if not chosen:
        raise InputError("no study has its data", remedy="give --data work/frappe --data work/movielens")
    return {name: study for name, study in chosen.items() if not names or name in names}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def studies(
    data: Annotated[list[Path] | None, typer.Option(help="Dataset directory, prepared as docs/results says.")] = None,
    study: Annotated[list[str] | None, typer.Option(help="A study; else all whose data are given.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 2,
    cells: Annotated[
        str,
        typer.Option(help="Train only cells that match: 'frappe final_mlp *@0.5'. With --seeds also those of no page."),
    ] = "*",
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs per cell, instead of the study's own number.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of the run directories.")] = Path("work/studies"),
    out: Annotated[Path, typer.Option(help="Folder of the pages.")] = Path("docs/results"),
    track: Annotated[bool, typer.Option("--track", help="Log each run to MLflow.")] = False,
    report_only: Annotated[bool, typer.Option(help="Train nothing: write the pages of what is done.")] = False,
) -> None:
    """Train the runs that are missing, then write the pages; exit 1 where a run failed."""
    directories = directories_by_data(data or [])
    chosen = _chosen(study or [], directories)
    own = {
        name: read_data(directories[name]) for name in sorted({name for one in chosen.values() for name in one.data})
    }
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with locked_directory(work, timeout_seconds=LOCK_TIMEOUT_SECONDS) as lock:
        store, failures = RunStore(work), []
        if not report_only:
            runs = plan([cell for one in chosen.values() for cell in one.cells(own)], own, seeds, cells)
            threads = max(1, len(os.sched_getaffinity(0)) // workers)
            failures = train_missing(runs, Processes(store, threads=threads, track=track, lock=lock), workers)
            time_scorers(runs, store)
        for name, one in chosen.items():
            write = write_study if one.target is None else write_frontier
            write(out, name, one, results_of(one, own, store, seeds), own)
    for line in failures:
        typer.echo(f"failed: {line}", err=True)
    raise typer.Exit(1 if failures else 0)


def main() -> None:
    """The command of this module."""
    run_command(app, "studies")


if __name__ == "__main__":
    main()
