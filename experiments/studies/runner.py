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
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from experiments.studies.compression import COMPRESSION
from experiments.studies.page import Record, Result, write_study
from experiments.studies.table_kinds import NETWORKS, TABLE_KINDS, Cell, Study, StudyData, read_data
from features.errors import InputError
from features.files import write_text
from recsys.cli.app import run_command
from recsys.config import Compression, Experiment
from recsys.runs.process import locked_directory
from recsys.runs.run_directory import RunDirectory
from serving.bundle import Bundle

STUDIES: dict[str, Study] = TABLE_KINDS | COMPRESSION


class StudyRun(NamedTuple):
    """A cell with one seed: one run to do."""

    cell: Cell
    seed: int
    data: StudyData

    @property
    def base(self) -> "StudyRun":
        """The trained run that it starts from; itself if it is not compressed."""
        return self._replace(cell=self.cell._replace(compression=None))

    @property
    def name(self) -> str:
        """Cell and seed, for messages."""
        return f"{self.cell.name} seed {self.seed}"


class RunStore:
    """Run directories of the studies in a work folder: `runs/KEY` of a trained run, `runs/KEY-DIGEST` of a pruned one.

    Next to a run that failed is its log, `NAME.log`.
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

    def path(self, run: StudyRun) -> Path:
        """Directory of the run."""
        key = key_of(run.cell.experiment(run.seed), run.data.info.digest)
        base, words = self._bases.get(key, self.folder / key), run.cell.prune_arguments()
        return base.with_name(f"{base.name}-{_digest(words)}") if words else base

    def record(self, run: StudyRun) -> Record | None:
        """Figures of a finished run; None if it is missing."""
        path, how = self.path(run), run.cell.compression
        done, log = RunDirectory(path), log_of(path)
        if done.is_finished:
            is_same = how is None or done.experiment().compression == Compression.model_validate(how)
            return _figures(done) if is_same else None
        # If the method cannot make a table or mask that small, that is a result. Any other error is a failure.
        reason = log.read_text(encoding="utf-8") if log.is_file() else ""
        return {"unreachable": reason.splitlines()[-1]} if "bytes are too few" in reason else None


def log_of(path: Path) -> Path:
    """Where the log of a command is that failed to make this run directory."""
    return path.with_name(f"{path.name}.log")


def key_of(experiment: Experiment, dataset_digest: str) -> str:
    """Identity of a trained run: a digest of its resolved experiment, seed included, and of the data."""
    return _digest([experiment.model_dump(mode="json"), dataset_digest])


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _figures(run: RunDirectory) -> dict[str, Any]:
    metrics = run.metrics()
    manifest = Bundle.open(run.bundle, verify=False).manifest
    num_floats = manifest.layout.num_rows * manifest.layout.width
    stages = [metrics.get("compression", {}).get(f"{stage}_seconds", 0.0) for stage in ("supernet", "freeze")]
    return {
        **{f"{split}_{name}": value for split in ("valid", "test") for name, value in metrics[split].items()},
        "rows": manifest.layout.num_rows,
        "width": manifest.layout.width,
        "table_bytes": 4 * num_floats,
        "network_parameters": manifest.num_parameters - num_floats,
        "epochs": metrics["perf"]["epochs"],
        "embedding_bytes": manifest.table_bytes,
        "bundle_bytes": sum(path.stat().st_size for path in run.bundle.iterdir()),
        "seconds": round(metrics["perf"]["train_seconds"] + sum(stages), 1),
    }


def plan(
    cells: Iterable[Cell], data: Mapping[str, StudyData], seeds: int | None = None, pattern: str = "*"
) -> list[StudyRun]:
    """The runs of the cells that match a pattern, first seeds first: `seeds` of each, or its own number."""
    runs = [
        StudyRun(cell, seed, data[cell.data])
        for cell in cells
        if fnmatchcase(cell.name, pattern)
        for seed in range(1, (seeds or cell.num_seeds) + 1)
    ]
    return sorted(runs, key=lambda run: run.seed)


class RunError(Exception):
    """A process that failed, with the last line of its log."""


class Processes:
    """Trains and prunes by `muxrec` commands, each in a separate process."""

    def __init__(self, store: RunStore, *, workers: int = 1, track: bool = False) -> None:
        self.store, self.workers = store, workers
        threads = max(1, len(os.sched_getaffinity(0)) // workers)
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._options = ["--track" if track else "--no-track", "--json"]
        self._running: set[subprocess.Popen[str]] = set()

    def do(self, run: StudyRun) -> None:
        """Do a run, or go on with an interrupted one; a pruned one needs its base. Raises `RunError`."""
        path = self.store.path(run)
        if not run.cell.compression:
            self.muxrec(["train", *run.cell.train_arguments(run.seed), "--data", str(run.data.directory)], path)
            return
        try:
            self.muxrec(["prune", str(self.store.path(run.base)), *run.cell.prune_arguments()], path)
        except RunError:
            if self.store.record(run) is None:
                raise
        for folder in ("checkpoint", "supernet"):  # a hundred megabytes per run, which nothing reads again
            shutil.rmtree(path / folder, ignore_errors=True)

    def muxrec(self, words: Sequence[str], out: Path) -> None:
        """Run one `muxrec` command to its end; raises `RunError` with its last line, and then keeps its log."""
        command = [sys.executable, "-m", "experiments", *words, "--out", str(out), *self._options]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=self._environment
        )
        self._running.add(process)
        _, errors = process.communicate()
        self._running.discard(process)
        log_of(out).unlink(missing_ok=True)
        if process.returncode:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(log_of(out), errors)
            last = (errors.splitlines() or ["no output"])[-1]
            raise RunError(f"{last} (exit code {process.returncode}; all of it in {log_of(out)})")

    def stop(self) -> None:
        """Tell the processes to end; the next call resumes what they did."""
        for process in list(self._running):
            process.terminate()


def train_missing(runs: Sequence[StudyRun], processes: Processes) -> list[str]:
    """Do the runs that are not done yet, and first those that they start from, some at a time.

    Returns a line for each that failed.
    """
    store, failures = processes.store, list[str]()
    unique: dict[Path, StudyRun] = {}
    for run in [*(run.base for run in runs), *runs]:
        unique.setdefault(store.path(run), run)
    missing = [run for run in unique.values() if store.record(run) is None]
    typer.echo(f"{len(unique)} runs, {len(unique) - len(missing)} of them done before", err=True)
    for is_pruned in (False, True):
        stage = [run for run in missing if (run.cell.compression is not None) == is_pruned]
        pool = ThreadPoolExecutor(processes.workers)
        futures = {pool.submit(processes.do, run): run for run in stage}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                run = futures[future]
                try:
                    future.result()
                    record = store.record(run) or {}
                    outcome = record.get("unreachable") or f"test auc {record['test_auc']:.4f}"
                except (RunError, InputError, OSError) as error:
                    failures.append(f"{run.name}: {error}")
                    outcome = f"FAILED: {error}"
                typer.echo(f"{number}/{len(stage)} {run.name}: {outcome}", err=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # not waiting: an interrupted call's processes end first
            processes.stop()
    return failures


def results_of(study: Study, data: Mapping[str, StudyData], store: RunStore, seeds: int | None = None) -> list[Result]:
    """The finished runs of each cell: those with its own seeds, or with `seeds` if there are more."""
    results = []
    for cell in study.cells(data):
        records = {run.seed: store.record(run) for run in plan([cell], data, max(seeds or 0, cell.num_seeds))}
        results.append(Result(cell, {seed: record for seed, record in records.items() if record}))
    return results


def read_all(directories: Sequence[Path]) -> dict[str, StudyData]:
    """Datasets by the studies' name for the data, with which the dataset's own name begins.

    Raises `InputError` for other data, the same data twice, and data without a test split.
    """
    known = sorted({name for name, _ in NETWORKS})
    read = [one for one in map(read_data, directories) if "test" in one.info.splits]
    found = {name: one for name in known for one in read if one.info.name.startswith(name)}
    if len(found) != len(directories):
        expected = f"one dataset each of {', '.join(known)}, with a test split"
        remedy = f"prepare them by {', '.join(f'data.{name}' for name in known)}"
        raise InputError(f"--data: expected {expected}", found=", ".join(map(str, directories)), remedy=remedy)
    return found


def chosen_studies(names: Sequence[str], data: Mapping[str, StudyData]) -> dict[str, Study]:
    """The studies of these names, or all whose data are given; raises `InputError` where that is none."""
    ready = [name for name, study in STUDIES.items() if set(study.data) <= data.keys()]
    if not ready or not set(names) <= set(ready):
        found = f"{', '.join(names) or 'any'} on data of {', '.join(data) or 'none'}"
        remedy = "give --data work/frappe --data work/movielens"
        raise InputError(f"expected one of the studies {', '.join(STUDIES)}, and its data", found=found, remedy=remedy)
    return {name: STUDIES[name] for name in names or ready}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def studies(
    data: Annotated[list[Path] | None, typer.Option(help="Dataset directory, prepared as docs/results says.")] = None,
    study: Annotated[list[str] | None, typer.Option(help="A study; else all whose data are given.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 2,
    cells: Annotated[
        str,
        typer.Option(help="Train only cells that match, such as 'frappe final_mlp *@0.5'."),
    ] = "*",
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs per cell, instead of the study's own number.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of the run directories.")] = Path("work/studies"),
    out: Annotated[Path, typer.Option(help="Folder of the pages.")] = Path("docs/results"),
    track: Annotated[bool, typer.Option("--track", help="Log each run to MLflow.")] = False,
    report_only: Annotated[bool, typer.Option(help="Train nothing: write the pages of what is done.")] = False,
) -> None:
    """Train the runs that are missing, then write the pages; exit 1 where a run failed."""
    own = read_all(data or [])
    chosen = chosen_studies(study or [], own)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with locked_directory(work):
        store, failures = RunStore(work), []
        if not report_only:
            runs = plan([cell for one in chosen.values() for cell in one.cells(own)], own, seeds, cells)
            failures = train_missing(runs, Processes(store, workers=workers, track=track))
        for name, one in chosen.items():
            write_study(out, name, one, results_of(one, own, store, seeds), own)
    for line in failures:
        typer.echo(f"failed: {line}", err=True)
    raise typer.Exit(1 if failures else 0)


def main() -> None:
    """The command of this module."""
    run_command(app, "studies")


if __name__ == "__main__":
    main()
