"""The frontier of quality against bytes: every method of compression at every budget, by one command that resumes.

    python -m experiments.studies.compression --data work/movielens --data work/frappe --workers 2

What a method spends is the bytes of its bundle's embedding files, the vocabulary counted. A point of the frontier is
one `muxrec prune` in a process of its own, from a base run that methods share; when it has ended, its figures are a
line of results.jsonl in the work folder, and its directory goes. Where a study is cut off, what is done is the part
that says most: one seed, MovieLens, a tenth of the bytes come first.
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.studies.frontier_figures import TIME, keep_bundle, measured, time_scorers
from experiments.studies.frontier_points import BUDGETS, DTYPES, METHODS, MODELS, REFERENCE, Choice, Point, points_of
from experiments.studies.frontier_report import Curve, write_frontier
from experiments.studies.runner import LOCK_TIMEOUT_SECONDS, Processes, Record, Results, RunError, say, train_missing
from experiments.studies.table_kinds import directories_by_data, read_facts, yaml_text
from features.errors import InputError
from features.progress import progress_bar
from recsys.cli.app import run_command
from recsys.compression import COMPRESSORS
from recsys.runs.process import locked_directory, prepare_for_training
from recsys.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from recsys.tracking.tracker import Tracker


class Bench:
    """Does points: base runs once each, kept; compressed runs measured and removed."""

    def __init__(self, work: Path, processes: Processes, log: "Log | None" = None) -> None:
        self.work, self.processes, self.log = work, processes, log
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def run(self, point: Point) -> Record:
        """The record of a point; raises `RunError` where a process ended badly."""
        base = self._base(point)
        record: Record = {
            "experiment": point.experiment.model_dump(mode="json"),
            "dataset_digest": point.facts.info.digest,
            "compression": point.compression,
            "base_seconds": RunDirectory(base).metrics()["perf"]["train_seconds"],
        }
        began, is_resumed = time.perf_counter(), (self.work / "runs" / point.key).exists()
        try:
            run = base if point.method is None else self._compressed(point, base)
        except RunError as error:
            # The command says so where no table, or no mask, is as small as that; anything else is a failure.
            if error.code != 2 or "bytes are too few" not in str(error):
                raise
            shutil.rmtree(self.work / "runs" / point.key, ignore_errors=True)
            return {**record, "unreachable": str(error).partition(" (exit code")[0], "seconds": 0.0}
        record["seconds"] = None if is_resumed else time.perf_counter() - began
        record |= measured(run)
        if record["embedding_bytes"] > point.target_bytes and point.method is not None:
            raise RunError(f"{record['embedding_bytes']:,} bytes of embedding files, {point.target_bytes:,} allowed")
        if point.method is not None and not self.processes.keep_runs:
            keep_bundle(run, self.work)
            shutil.rmtree(run)
        if self.log:
            self.log.add(point, record)
        return record

    def _base(self, point: Point) -> Path:
        key = point.base_key
        path = self.work / "bases" / key
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if not RunDirectory(path).is_finished:
                words = ["train", *point.cell.arguments(point.seed), "--data", str(point.facts.directory)]
                self.processes.run([*words, "--out", str(path), "--no-track", "--json"], path.with_name(f"{key}.log"))
        return path

    def _compressed(self, point: Point, base: Path) -> Path:
        compression = point.compression
        assert compression is not None
        out = self.work / "runs" / point.key
        words = ["prune", str(base), "--out", str(out), "--method", compression["method"], "--no-track", "--json"]
        words += ["--target-bytes", str(point.target_bytes), "--table-dtype", point.dtype]
        method = METHODS[point.method or ""]
        words += [f"compression.settings.{key}={yaml_text(value)}" for key, value in method.settings.items()]
        words += [] if method.start is None else [f"compression.start={method.start}"]
        self.processes.run(words, out.with_name(f"{point.key}.log"))
        return out


SOURCE = {"mlflow.source.name": "experiments.studies.compression"}


class Log:
    """The study in MLflow: a parent run, and below it a run a point."""

    def __init__(self) -> None:
        from recsys.tracking.tracker import Tracker

        self._start, self._lock = Tracker.start, threading.Lock()
        self.parent = Tracker.start(
            experiment="frontier", name="frontier", tags={"stage": "study", **SOURCE}, key="frontier"
        )

    def add(self, point: Point, record: Record) -> None:
        """One point, as a run of its own."""
        with self._lock:
            child = self._child(point)
            what = {"method": point.method or REFERENCE, "table_dtype": point.dtype, "budget": point.budget}
            settings = {**what, "seed": point.seed, "base": point.cell.label}
            child.log_settings(settings, point.facts.info, point.facts.directory)
            prefixes = {"valid": "val", "test": "test"}
            figures = {
                f"{prefix}/{name}": value
                for split, prefix in prefixes.items()
                for name, value in record["metrics"].get(split, {}).items()
            }
            costs = {name: record[name] for name in ("embedding_bytes", "bundle_bytes", "seconds", "base_seconds")}
            known = {f"perf/{name}": value for name, value in costs.items() if value is not None}
            child.log_metrics({**figures, **known})
            child.finish()

    def add_time(self, point: Point, microseconds: float) -> None:
        """What was measured of a point when all was trained."""
        child = self._child(point)
        child.log_metrics({f"perf/{TIME}": microseconds})
        child.finish()

    def _child(self, point: Point) -> "Tracker":
        """The run of a point, which is found again by its key."""
        tags = {"mlflow.parentRunId": self.parent.run_id, "stage": "compress", "dataset.name": point.data, **SOURCE}
        return self._start(experiment="frontier", name=point.name, tags=tags, key=point.key)


@contextmanager
def _logged(out: Path, is_wanted: bool) -> Iterator[Log | None]:
    """The study's log, to which the reports are added in the end; its parent run ends however the block does."""
    if not is_wanted:
        yield None
        return
    log = Log()
    try:
        yield log
        for path in sorted(out.glob("frontier_*")):
            log.parent.log_file(path)
    except BaseException as error:
        log.parent.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    log.parent.finish()


def curves_of(points: Sequence[Point], kept: Results) -> list[Curve]:
    """What is done of some points, a curve a method and type of rows."""
    curves: dict[tuple[str, str, str], Curve] = {}
    for point in points:
        method = point.method or REFERENCE
        curve = curves.setdefault((point.data, method, point.dtype), Curve(point.data, method, point.dtype, {}))
        record = kept.records.get(point.key)
        if record is not None:
            curve.records.setdefault(point.budget, {})[point.seed] = {**record, "target_bytes": point.target_bytes}
    return list(curves.values())


def _checked(names: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    for name in names:
        if name not in known:
            raise InputError(f"unknown {what}", found=repr(name), remedy=f"use some of {', '.join(known)}")
    return [name for name in known if not names or name in names]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def frontier(
    data: Annotated[list[Path] | None, typer.Option(help="A dataset directory, as docs/results says.")] = None,
    methods: Annotated[list[str] | None, typer.Option(help="A method, as 'OptEmbed'; else all of them.")] = None,
    budgets: Annotated[
        list[float] | None, typer.Option(help="A share of the bytes; else 0.1 0.2 0.5 0.02 0.01.")
    ] = None,
    dtypes: Annotated[list[str] | None, typer.Option(help="A type of rows; else each method's own ones.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs a point.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the cores.")] = 2,
    work: Annotated[Path, typer.Option(help="Folder of results.jsonl and of base runs.")] = Path("work/frontier"),
    out: Annotated[Path, typer.Option(help="Folder of the reports.")] = Path("docs/results"),
    keep_runs: Annotated[bool, typer.Option(help="Keep the compressed runs too.")] = False,
    report_only: Annotated[bool, typer.Option(help="Train nothing: write reports of what is done.")] = False,
    track: Annotated[bool, typer.Option(help="Log to MLflow: a parent run, a nested one a point.")] = True,
) -> None:
    """Do the points that are missing, then write the reports; exit 1 where one failed."""
    directories = directories_by_data(data or [])
    if not directories:
        raise InputError("expected data", found="none", remedy="give --data work/movielens --data work/frappe")
    known = [name for name, method in METHODS.items() if method.compressor in COMPRESSORS]
    chosen = _checked(methods or [], known, "method")
    choice = Choice(chosen, budgets or BUDGETS, _checked(dtypes or [], DTYPES, "type of rows"), seeds)
    facts = {name: read_facts(directories[name]) for name in MODELS if name in directories}
    points = points_of(facts, choice)
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        locked_directory(work, timeout_seconds=LOCK_TIMEOUT_SECONDS) as lock,
        _logged(out, track and not report_only) as log,
    ):
        kept, failures = Results(work / "results.jsonl"), []
        if not report_only:
            processes = Processes(work, threads=threads, keep_runs=keep_runs, lock=lock)
            failures = _do(points, kept, Bench(work, processes, log), workers)
            time_scorers(points, kept, work, log.add_time if log else None)
        # Curves that this call did not ask for are drawn too, where they are done.
        everything = Choice(known, sorted({*BUDGETS, *choice.budgets}, reverse=True), DTYPES, seeds)
        write_frontier(out, curves_of(points_of(facts, everything), kept), facts)
    for line in failures:
        say(f"failed: {line}")
    raise typer.Exit(1 if failures else 0)


def _do(points: Sequence[Point], kept: Results, bench: Bench, workers: int) -> list[str]:
    missing = len({point.key for point in points} - kept.records.keys())
    try:
        with progress_bar("points", missing, enabled=sys.stderr.isatty()) as advance:

            def run(point: Point) -> Record:
                try:
                    return bench.run(point)
                finally:
                    advance(1, point.name)

            return train_missing(points, kept, run, workers, say)
    finally:
        bench.processes.stop()


def main() -> None:
    """The command of this module."""
    prepare_for_training()
    run_command(app, "frontier")


if __name__ == "__main__":
    main()
