"""Batch scoring of files: one part per input, never visible in half, and a second run continues where one stopped.

`serving.batch.output` has the layout of the directory. Its bytes do not depend on the time or on interruptions.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from features.errors import InputError
from features.io.readers import check_out_of_inputs, read_chunks
from features.progress import progress_bar
from serving.batch.distribution import ScoreDistribution
from serving.batch.inputs import Part, limit_parts, plan_parts
from serving.batch.output import drop_part, locked, mark_success, open_output, write_manifest
from serving.batch.parts import SCORE, SUCCESS, Job, PartEntry, PartScorer, entry_of, lineage_of
from serving.batch.rejects import REASON, ROW
from serving.batch.workers import score_in_processes
from serving.bundle.bundle import Bundle
from serving.bundle.manifest import installed_version
from serving.coverage import Coverage, add_coverage, coverage_warnings, training_unseen_rates
from serving.scorer import CHUNK_ROWS

__all__ = ["Engine", "ScoringReport", "lineage_of", "score_files"]

BATCH_ROWS = CHUNK_ROWS
ROW_GROUP_ROWS = 262_144
MAX_THREADS = 8  # a chunk of wide embeddings takes 64 MB

Engine = Callable[[Job, Sequence[Part]], Iterator[tuple[str, bool]]]
"""Makes the parts of a job; yields the name of each, and whether an earlier run had made it."""


@dataclass(frozen=True, kw_only=True)
class ScoringReport:
    """Result of a scoring job."""

    path: Path
    model_id: str
    rows_in: int
    """Rows of all inputs, those of skipped parts included, as in all counts and rates here."""
    rows: int
    rows_rejected: int
    """Rows that could not be scored; they are in `_rejected`."""
    parts: int
    skipped_parts: int
    """Parts that an earlier run had finished."""
    seconds: float
    rows_per_second: float
    """Rate without the skipped parts."""
    score_mean: float | None
    """None if there are no rows."""
    score_quantiles: dict[str, float]
    """`min`, `p01` ... `max` of all scores, to 1 part in 200 of the odds; empty if there are no rows."""
    missing_rates: dict[str, float]
    """Share of the rows without a value, by feature."""
    training_missing_rates: dict[str, float]
    """The same in the training data, as far as the bundle says."""
    unseen_rates: dict[str, float]
    """Share of the values that certainly no training example had, by feature (`serving.coverage.Coverage`)."""
    training_unseen_rates: dict[str, float]
    """The same in the validation rows of the training, as far as the bundle says."""
    warnings: list[str]
    """One line per feature whose values are far from training's (`serving.coverage`)."""


def score_files(
    bundle: Bundle | str | Path,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    keep: Sequence[str] = (),
    overwrite: bool = False,
    limit: int | None = None,
    allow_missing: bool = False,
    max_rejected: float = 0.0,
    workers: int = 1,
    engine: Engine | None = None,
    progress: bool = True,
) -> ScoringReport:
    """Score the rows of files into a directory, with one part per input file and the rows in their order.

    `inputs`: files, directories or globs of parquet, delimited text or JSON lines. `keep`: columns to copy as they are.
    `limit`: input rows in all. `workers`: processes, or `engine` in their place. Neither changes a byte of the output,
    and memory does not grow with the files.

    A row that cannot be scored is written to `_rejected` with the reason, and all others are scored. If the share of
    rejected rows is above `max_rejected`, the job raises `InputError` and writes no `_SUCCESS`.

    Parts that an earlier run finished from the same bytes are skipped. Raises `InputError`, before anything is written,
    for an absent column, and for a directory that another job is writing to, or that was scored by another model or
    with other settings (unless `overwrite`, which deletes its parts first); later, for a file that cannot be read and
    for a full disk.
    """
    started = time.perf_counter()
    _check_request(keep, limit, max_rejected, workers)
    check_out_of_inputs(Path(out), inputs)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    planned = plan_parts(inputs, bundle.registry, keep=keep, allow_missing=allow_missing)
    job = _job(bundle, Path(out), {"keep": [*keep], "limit": limit, "allow_missing": allow_missing}, workers)
    _check_paths(job.out, planned)
    parts = planned if limit is None else limit_parts(planned, limit, bundle.registry.csv)
    with locked(job.out) as lock:
        open_output(job, [part.name for part in planned], overwrite=overwrite)
        for part in planned[len(parts) :]:  # an earlier input has grown since these were made
            drop_part(job.out, part.name)
        if engine is None and workers > 1:
            engine = partial(score_in_processes, num_workers=workers, lock=lock)
        already_done, scores = _make_parts(job, parts, bundle, engine, progress=progress)
        entries = _entries(job.out, parts)
        write_manifest(job, entries)
        _check_rejected(job.out, entries, max_rejected)
        mark_success(job.out)
    return _report(job, entries, already_done, scores, bundle, time.perf_counter() - started)


def _check_request(keep: Sequence[str], limit: int | None, max_rejected: float, workers: int) -> None:
    if isinstance(keep, str):
        raise InputError("keep: expected a list of columns", found=repr(keep), remedy=f"write [{keep!r}]")
    for name in (SCORE, ROW, REASON):
        if name in keep:
            remedy = "rename that column in the input, or leave it out"
            raise InputError(f"keep: the column {name!r} is the output's own", found=", ".join(keep), remedy=remedy)
    if len(set(keep)) != len(keep):
        raise InputError("keep: expected different columns", found=", ".join(keep), remedy="name each one once")
    if limit is not None and limit < 1:
        raise InputError("limit: expected at least 1 row", found=str(limit), remedy="leave it out to score all rows")
    if not 0 <= max_rejected <= 1:
        raise InputError("max_rejected: expected a share from 0 to 1", found=str(max_rejected), remedy="0.01 is 1 %")
    if workers < 1:
        raise InputError("workers: expected at least 1 process", found=str(workers), remedy="leave it out for one")


def _check_paths(out: Path, parts: Sequence[Part]) -> None:
    names: dict[str, Path] = {}
    for part in parts:
        if part.file.resolve().is_relative_to(out.resolve()):
            raise InputError(f"{out} holds an input", found=str(part.file), remedy="choose another output")
        if names.setdefault(part.name, part.file) != part.file:
            found, remedy = f"{names[part.name]} and {part.file}", "rename one of them, or score them apart"
            raise InputError(f"{part.name}: expected one input", found=found, remedy=remedy)


def _job(bundle: Bundle, out: Path, config: Mapping[str, Any], workers: int) -> Job:
    about = bundle.manifest
    text = json.dumps(config, sort_keys=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Job(
        bundle=bundle.path,
        out=out,
        keep=tuple(config["keep"]),
        allow_missing=config["allow_missing"],
        lineage={
            "model": about.model,
            "model_id": about.model_id,
            "run_id": about.run_id or "",
            "version": installed_version(),
            "config": text,
            "config_hash": sha256(text.encode()).hexdigest()[:16],
        },
        num_threads=min(MAX_THREADS, max(1, cores // workers)),
        chunk_rows=BATCH_ROWS,
        row_group_rows=ROW_GROUP_ROWS,
    )


def _make_parts(
    job: Job, parts: Sequence[Part], bundle: Bundle, engine: Engine | None, *, progress: bool
) -> tuple[set[str], ScoreDistribution]:
    """Make the parts that are not there yet; the names of those that were, and all scores as they are on the disk."""
    already_done: set[str] = set()
    scores = ScoreDistribution()
    num_rows = 0
    with progress_bar("scoring files", len(parts), enabled=progress) as advance:
        if engine is None:
            scorer = PartScorer(job, bundle)
            results = ((part.name, scorer.ensure_part(part, lambda text: advance(0, note=text))) for part in parts)
        else:
            results = engine(job, parts)
        with closing(results):  # pyright: ignore[reportArgumentType]  (a generator; ends the processes of an engine)
            for name, is_old in results:
                already_done |= {name} if is_old else set()
                num_rows += _add_scores(job.out / name, scores)
                advance(1, note=f"{num_rows:,} rows")
    return already_done, scores


def _add_scores(part: Path, scores: ScoreDistribution) -> int:
    """Read the scores of a part back and count them; the number of rows."""
    num_rows = 0
    for frame in read_chunks(part, [SCORE]):
        column = frame[SCORE]
        if not column.is_between(0, 1).fill_null(False).all():
            raise RuntimeError(f"{part}: a score is not a probability")
        scores.add(column.to_numpy())
        num_rows += len(frame)
    return num_rows


def _entries(out: Path, parts: Sequence[Part]) -> dict[str, PartEntry]:
    entries: dict[str, PartEntry] = {}
    for part in parts:
        entry = entry_of(out / part.name)
        if entry is None:
            remedy = "leave the output alone, and start again"
            raise InputError(f"{out / part.name}: expected a part", found="none", remedy=remedy)
        entries[part.name] = entry
    return entries


def _check_rejected(out: Path, entries: Mapping[str, PartEntry], max_rejected: float) -> None:
    num_rejected = sum(entry.rows_rejected for entry in entries.values())
    num_rows = sum(entry.rows_in for entry in entries.values())
    if num_rejected <= max_rejected * num_rows:
        return
    (out / SUCCESS).unlink(missing_ok=True)  # of a run that allowed for more
    first = next(entry for entry in entries.values() if entry.rows_rejected)
    found = (
        f"{num_rejected:,} of {num_rows:,} ({num_rejected / num_rows:.3%}), first {first.input}: {first.first_rejected}"
    )
    remedy = "the others are scored: look at `_rejected`, then repair the input, or allow them by `max_rejected`"
    raise InputError(f"{out}: expected at most {max_rejected:.3%} rejected rows", found=found, remedy=remedy)


def _report(
    job: Job,
    entries: Mapping[str, PartEntry],
    already_done: set[str],
    scores: ScoreDistribution,
    bundle: Bundle,
    seconds: float,
) -> ScoringReport:
    totals: dict[str, Coverage] = {}
    for entry in entries.values():
        totals = add_coverage(totals, {name: Coverage(**counts) for name, counts in entry.coverage.items()})
    fresh = sum(entry.rows_in for name, entry in entries.items() if name not in already_done)
    return ScoringReport(
        path=job.out,
        model_id=job.lineage["model_id"],
        rows_in=sum(entry.rows_in for entry in entries.values()),
        rows=sum(entry.rows_out for entry in entries.values()),
        rows_rejected=sum(entry.rows_rejected for entry in entries.values()),
        parts=len(entries),
        skipped_parts=len(already_done),
        seconds=seconds,
        rows_per_second=fresh / seconds,
        score_mean=scores.mean,
        score_quantiles=scores.quantiles(),
        missing_rates={name: counts.missing_rate for name, counts in totals.items()},
        training_missing_rates=dict(bundle.profile.get("missing_rates", {})),
        unseen_rates={name: counts.unseen_rate for name, counts in totals.items()},
        training_unseen_rates=training_unseen_rates(bundle),
        warnings=coverage_warnings(totals, bundle),
    )
