"""Every figure and table of docs/results, by one command that does only what is missing.

    python -m experiments.studies.runner --data work/frappe --data work/movielens [--study NAME]...

A run is one `muxrec train` in a process of its own. When it has ended, its figures are a line of results.jsonl in the
work folder, and its directory goes. A line counts for a run while it holds the same resolved experiment, the seed
included, on data of the same digest; studies that share a run share its line.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import typer

from experiments.studies.page import Result, write_results
from experiments.studies.table_kinds import SEEDS, STUDIES, Cell, Facts, Study, directories_by_data, read_facts
from features.errors import InputError
from features.files import write_text
from recsys.cli.app import run_command
from recsys.config import Experiment
from recsys.runs.process import locked_directory
from recsys.runs.run_directory import RunDirectory

Record = dict[str, Any]
"""A line of results.jsonl: `experiment`, `dataset_digest`, `metrics`, and the sizes of what was trained; `compression`,
what the run was compressed by, where it was."""


LOCK_TIMEOUT_SECONDS = 5.0
"""Seconds to wait for the processes of a study that was interrupted to end."""


class Work(Protocol):
    """What `train_missing` must know of a run to be done."""

    @property
    def key(self) -> str:
        """Identity of the run, as `key_of` gives it."""
        ...

    @property
    def name(self) -> str:
        """For lines about its progress."""
        ...


AnyWork = TypeVar("AnyWork", bound=Work)


class Job(NamedTuple):
    """A run to be done."""

    cell: Cell
    experiment: Experiment
    data: Path
    dataset_digest: str

    @property
    def key(self) -> str:
        """Identity of the run: 16 hexadecimal digits."""
        return key_of(self.experiment, self.dataset_digest)

    @property
    def name(self) -> str:
        """Its cell and seed."""
        return f"{self.cell.name} seed {self.experiment.seed}"


class Results:
    """Finished runs by key, kept in results.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            record = json.loads(line)
            try:
                # Validated anew: a setting that came later has its default, which is what the run did.
                experiment = Experiment.model_validate(record["experiment"])
                key = key_of(experiment, record["dataset_digest"], record.get("compression"))
            except ValueError:  # settings that there are not (any more): kept, though nothing asks for this run
                key = line
            self.records[key] = record

    def add(self, job: Work, record: Record) -> None:
        """Keep a run; the file is replaced as a whole, so that it never holds half a line."""
        self.records[job.key] = record
        write_text(self.path, "".join(json.dumps(one) + "\n" for one in self.records.values()))

    def of(self, cell: Cell, facts: Facts) -> dict[int, Record]:
        """Seed to record of a cell's finished runs on the data, by increasing seed."""
        seeds = sorted({record["experiment"]["seed"] for record in self.records.values()})
        keys = {seed: key_of(cell.experiment(seed), facts.info.digest) for seed in seeds}
        return {seed: self.records[key] for seed, key in keys.items() if key in self.records}


def key_of(experiment: Experiment, dataset_digest: str, compression: Mapping[str, Any] | None = None) -> str:
    """Digest of a resolved experiment, its seed included, the data, and what the run is compressed by."""
    parts = [experiment.model_dump(mode="json"), dataset_digest, *([compression] if compression else [])]
    document = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def plan(studies: Mapping[str, Study], facts: Mapping[str, Facts], seeds: int | None) -> tuple[list[Job], list[str]]:
    """The runs of some studies, each once, first seeds first; and a line for each cell that cannot be built."""
    jobs: dict[str, Job] = {}
    failures: dict[str, None] = {}
    cells = [cell for study in studies.values() for cell in study.cells(facts)]
    for seed in range(1, (seeds or max(SEEDS.values())) + 1):
        for cell in cells:
            if seed > (seeds or SEEDS.get(cell.data, 1)):
                continue
            own = facts[cell.data]
            try:
                job = Job(cell, cell.experiment(seed), own.directory, own.info.digest)
            except InputError as error:
                failures[f"{cell.name}: {error}"] = None
                continue
            jobs.setdefault(job.key, job)
    return list(jobs.values()), list(failures)


def train_missing(
    jobs: Sequence[AnyWork],
    results: Results,
    train: Callable[[AnyWork], Record],
    workers: int,
    say: Callable[[str], None],
) -> list[str]:
    """Train the jobs that have no line yet, `workers` at a time; returns a line for each that failed.

    Jobs of one key are one run.
    """
    runs: dict[str, AnyWork] = {}
    for job in jobs:
        runs.setdefault(job.key, job)
    missing = [job for key, job in runs.items() if key not in results.records]
    say(f"{len(runs)} runs, {len(runs) - len(missing)} of them done before")
    failures: list[str] = []
    pool = ThreadPoolExecutor(workers)
    futures = {pool.submit(train, job): job for job in missing}
    try:
        for number, future in enumerate(as_completed(futures), 1):
            job = futures[future]
            try:
                record = future.result()
            except (RunError, InputError, OSError) as error:
                failures.append(f"{job.name}: {error}")
                say(f"{number}/{len(missing)} {job.name}: FAILED: {error}")
                continue
            results.add(job, record)
            say(f"{number}/{len(missing)} {job.name}: {_summary(record)}")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # not waiting: an interrupted command ends its processes first
    return failures


class RunError(Exception):
    """A training process that ended badly, with its last words."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
        """What the process ended with: 2 where it refused its settings."""


class Processes:
    """Trains jobs in processes of their own, below a work folder."""

    def __init__(self, work: Path, *, threads: int, keep_runs: bool, lock: int | None = None) -> None:
        """`lock`: descriptor of the study's lock, which each process holds too, as it may outlive the study."""
        self.work, self.threads, self.keep_runs = work, threads, keep_runs
        self.inherited = () if lock is None else (lock,)
        self.running: set[subprocess.Popen[str]] = set()

    def train(self, job: Job) -> Record:
        """Run `muxrec train` to its end and read what came out; raises `RunError`. A run that was cut off goes on."""
        run = self.work / "runs" / job.key
        words = ["train", *job.cell.arguments(job.experiment.seed), "--data", str(job.data), "--out", str(run)]
        began = time.perf_counter()
        self.run([*words, "--no-track", "--json"], run.with_name(f"{job.key}.log"))
        record = _record(RunDirectory(run), job, time.perf_counter() - began)
        if not self.keep_runs:
            shutil.rmtree(run)
        return record

    def run(self, words: Sequence[str], log: Path) -> None:
        """Run `muxrec` with these words to its end; raises `RunError` with its last line, and then keeps its log."""
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = {"OMP_NUM_THREADS": str(self.threads)}
        with log.open("w", encoding="utf-8") as errors:
            command = [sys.executable, "-m", "experiments", *words]
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                text=True,
                env={**os.environ, **threads},
                pass_fds=self.inherited,
            )
            self.running.add(process)
            code = process.wait()
            self.running.discard(process)
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["it said nothing"]
            raise RunError(f"{lines[-1]} (exit code {code}; all of it in {log})", code)
        log.unlink()

    def stop(self) -> None:
        """Tell the processes to end; what they did is resumed the next time."""
        for process in list(self.running):
            process.terminate()


def _record(run: RunDirectory, job: Job, seconds: float) -> Record:
    ranker = run.ranker()
    layout = ranker.embedding.layout
    return {
        "experiment": job.experiment.model_dump(mode="json"),
        "dataset_digest": job.dataset_digest,
        "metrics": run.metrics(),
        "rows": layout.num_rows,
        "width": layout.width,
        "probes": job.experiment.embedding.probes,
        "table_bytes": ranker.embedding.table.numel() * ranker.embedding.table.element_size(),
        "network_parameters": ranker.num_parameters - ranker.embedding.table.numel(),
        "seconds": seconds,
    }


def _summary(record: Record) -> str:
    if "unreachable" in record:
        return f"cannot: {record['unreachable']}"
    metrics = record["metrics"]
    split = "test" if "test" in metrics else "valid"
    time_taken = "resumed" if record["seconds"] is None else f"{record['seconds']:.0f} s"
    return f"{split} auc {metrics[split]['auc']:.4f}, {metrics['perf']['epochs']} epochs, {time_taken}"


def say(line: str) -> None:
    """A line of progress on standard error."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _chosen(names: Sequence[str], given: Collection[str]) -> dict[str, Study]:
    """The studies that were asked for, or all whose data were given."""
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
def results(
    data: Annotated[list[Path] | None, typer.Option(help="A dataset directory, as docs/results says.")] = None,
    study: Annotated[list[str] | None, typer.Option(help="A study; else all whose data are given.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 2,
    cells: Annotated[str, typer.Option(help="Train only cells like this pattern: 'frappe final_mlp *@0.5'.")] = "*",
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs a cell, instead of the study's own number.")] = None,
    work: Annotated[Path, typer.Option(help="Folder of results.jsonl and of unfinished runs.")] = Path("work/results"),
    out: Annotated[Path, typer.Option(help="Folder of the reports.")] = Path("docs/results"),
    keep_runs: Annotated[bool, typer.Option(help="Keep the run directories.")] = False,
    report_only: Annotated[bool, typer.Option(help="Train nothing: write reports of what is done.")] = False,
) -> None:
    """Do the runs that are missing, then write the reports; exit 1 where a run failed."""
    directories = directories_by_data(data or [])
    studies = _chosen(study or [], directories)
    facts = {
        name: read_facts(directories[name]) for name in sorted({name for one in studies.values() for name in one.data})
    }
    cores = len(os.sched_getaffinity(0))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with locked_directory(work, timeout_seconds=LOCK_TIMEOUT_SECONDS) as lock:
        processes = Processes(work, threads=max(1, cores // workers), keep_runs=keep_runs, lock=lock)
        kept = Results(work / "results.jsonl")
        jobs, failures = plan(studies, facts, seeds)
        jobs = [job for job in jobs if fnmatchcase(job.cell.name, cells)]
        if not report_only:
            try:
                failures += train_missing(jobs, kept, processes.train, workers, say)
            finally:
                processes.stop()
        done = {
            name: [Result(cell, kept.of(cell, facts[cell.data])) for cell in _buildable(one.cells(facts))]
            for name, one in studies.items()
        }
        write_results(out, studies, done, facts)
    for line in failures:
        say(f"failed: {line}")
    raise typer.Exit(1 if failures else 0)


def _buildable(cells: Sequence[Cell]) -> Iterator[Cell]:
    for cell in cells:
        try:
            cell.experiment(1)
        except InputError:
            continue
        yield cell


def main() -> None:
    """The command of this module."""
    run_command(app, "results")


if __name__ == "__main__":
    main()
