"""Scores one input file into one part, which appears whole or not at all, with its lineage in its metadata.

The same input, bundle and settings give the same bytes. These do not depend on the time, nor on the number of threads,
processes and interruptions.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import polars as pl
from polars.io.plugins import register_io_source
from pydantic import BaseModel, ConfigDict

from features.errors import InputError
from features.files import cannot_write, sha256_of, system_error
from features.io.partitions import partitions_of
from features.io.readers import read_chunks, schema_of
from serving.batch.drafts import Draft, rejected_path
from serving.batch.inputs import Part
from serving.batch.rejects import ScoredRows, score_rows
from serving.bundle import Bundle
from serving.coverage import Coverage, add_coverage
from serving.scorer import Scorer

SCORE = "score"
MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
LINEAGE_PREFIX = "muxrec."

Note = Callable[[str], None]
T = TypeVar("T")
R = TypeVar("R")


class Job(BaseModel):
    """Settings of a scoring job, as each of its processes is given them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path
    out: Path
    keep: tuple[str, ...]
    allow_missing: bool
    lineage: dict[str, str]
    """Model and settings, as in the metadata of every part."""
    num_threads: int
    """Chunks that one process scores at the same time."""
    chunk_rows: int
    row_group_rows: int


class PartEntry(BaseModel):
    """Description of a part, in its own metadata and in the manifest of the job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str
    input_sha256: str
    row_limit: int | None
    """Rows that the job's `limit` left for this input."""
    rows_in: int
    rows_out: int
    rows_rejected: int
    first_rejected: str | None
    """Row and reason of the first one."""
    coverage: dict[str, dict[str, int]]
    """`serving.coverage.Coverage` of each feature, over the rows that were scored."""


def lineage_of(part: str | Path) -> dict[str, str]:
    """Lineage in a part's parquet metadata: `model`, `model_id`, `run_id`, `version`, `input`, `input_sha256`, ..."""
    pairs = pl.read_parquet_metadata(part).items()
    return {key.removeprefix(LINEAGE_PREFIX): value for key, value in pairs if key.startswith(LINEAGE_PREFIX)}


def entry_of(part: Path) -> PartEntry | None:
    """Description of a part; None if there is no complete part."""
    try:
        return PartEntry.model_validate_json(lineage_of(part)["part"])
    except (OSError, pl.exceptions.PolarsError, ValueError, KeyError):
        return None


class PartScorer:
    """Makes parts, one after the other; each process of a job has its own.

    Raises `InputError` if the bundle is no longer the one that the job began with.
    """

    def __init__(self, job: Job, bundle: Bundle | None = None) -> None:
        self.job = job
        # One thread per chunk, and several chunks at once: splitting a matrix product between threads changes its bits.
        self.scorer = Scorer(bundle or Bundle.open(job.bundle, verify=False), num_threads=1)
        expected, found = job.lineage["model_id"], self.scorer.bundle.model_id
        if found != expected:
            remedy = "leave the bundle as it is while a job reads it, and start again"
            raise InputError(f"{job.bundle}: expected model {expected}", found=found, remedy=remedy)

    def ensure_part(self, part: Part, note: Note = lambda text: None) -> bool:
        """Make a part unless it has been made from the same bytes, which is True.

        Raises `InputError` for an input that cannot be read and an output that cannot be written.
        """
        before, digest = _state(part.file), _digest(part.file)
        target = self.job.out / part.name
        entry = entry_of(target)
        has_rejected = rejected_path(self.job.out, part.name).is_file()
        found = entry and (entry.input_sha256, entry.row_limit, entry.rows_rejected > 0)
        if found == (digest, part.row_limit, has_rejected):
            return True
        try:
            for name in (SUCCESS, MANIFEST):  # before the files change that these describe
                (self.job.out / name).unlink(missing_ok=True)
            with Draft(self.job.out, part.name) as draft:
                metadata = self._write(part, digest, draft, note)
                if _state(part.file) != before:
                    remedy = "start again when its writer has finished"
                    raise InputError(
                        f"{part.file}: expected an unchanged file", found="one that changed", remedy=remedy
                    )
                draft.publish(metadata)
        except OSError as error:
            raise cannot_write(target, error) from None
        except pl.exceptions.PolarsError as error:
            reason = system_error(error, target)
            if reason is None:
                raise
            raise cannot_write(target, reason) from None
        return False

    def _write(self, part: Part, digest: str, draft: Draft, note: Note) -> dict[str, str]:
        """Score an input into a draft; the metadata of its files."""
        rows_in = rows_rejected = 0
        first_rejected: str | None = None
        coverage: dict[str, Coverage] = {}
        metadata: dict[str, str] = {}

        # polars pulls the frames from here while it writes; an exception passes through it unchanged.
        def source(*_pushed_down: object) -> Iterator[pl.DataFrame]:
            nonlocal rows_in, rows_rejected, first_rejected
            for num_rows, scored in in_order(partial(self._score, part), self._read(part), self.job.num_threads):
                rows_in += num_rows
                rows_rejected += len(scored.rejected)
                if first_rejected is None and len(scored.rejected):
                    first_rejected = "{1} in row {0}".format(*scored.rejected.row(0))
                coverage.update(add_coverage(coverage, scored.coverage))
                draft.reject(scored.rejected)
                note(f"{part.file.name}: {rows_in:,} rows")
                yield scored.good.select(*self._kept(part), pl.Series(SCORE, scored.probabilities))

        def describe(_context: object) -> dict[str, str]:  # polars asks when all rows are written
            entry = PartEntry(
                input=str(part.file.absolute()),
                input_sha256=digest,
                row_limit=part.row_limit,
                rows_in=rows_in,
                rows_out=rows_in - rows_rejected,
                rows_rejected=rows_rejected,
                first_rejected=first_rejected,
                coverage={name: counts._asdict() for name, counts in coverage.items()},
            )
            pairs = {**self.job.lineage, "input": entry.input, "input_sha256": digest, "part": entry.model_dump_json()}
            metadata.update({LINEAGE_PREFIX + key: value for key, value in pairs.items()})
            return metadata

        frame = register_io_source(source, schema=self._schema(part))
        frame.sink_parquet(draft.scored, metadata=describe, row_group_size=self.job.row_group_rows)
        written = pl.scan_parquet(draft.scored, glob=False).select(pl.len()).collect().item()
        entry = entry_of(draft.scored)
        if entry is None or not written == entry.rows_out == rows_in - rows_rejected:
            raise RuntimeError(f"{part.file}: read {rows_in} rows, rejected {rows_rejected} and wrote {written}")
        return metadata

    def _read(self, part: Part) -> Iterator[tuple[int, pl.DataFrame]]:
        """Frames of one size (the last may be shorter), each with the position of its first row."""
        first_row = 0
        chunks = read_chunks(part.file, part.columns, csv=self.scorer.registry.csv, chunk_rows=self.job.chunk_rows)
        for frame in chunks:
            limited = frame if part.row_limit is None else frame.head(part.row_limit - first_row)
            yield first_row, limited
            first_row += len(limited)
            if first_row == part.row_limit:
                return

    def _score(self, part: Part, chunk: tuple[int, pl.DataFrame]) -> tuple[int, ScoredRows]:
        """Number of rows in a chunk, and its scored and rejected rows."""
        first_row, raw = chunk
        try:
            return len(raw), score_rows(self.scorer, raw, allow_missing=self.job.allow_missing, first_row=first_row)
        except InputError as error:
            raise error.located(str(part.file), first_row) from None

    def _kept(self, part: Part) -> list[str]:
        """Kept columns to write: those in the part's own path are not repeated."""
        return [name for name in self.job.keep if name not in partitions_of(part.name.split("/")[:-1])]

    def _schema(self, part: Part) -> dict[str, pl.DataType]:
        types = schema_of(part.file, self.scorer.registry.csv)
        return {**{name: types.get(name, pl.String()) for name in self._kept(part)}, SCORE: pl.Float64()}


def _state(file: Path) -> tuple[int, int] | None:
    """Size and time of a file, which change when it is written to; None if there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _digest(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        remedy = "put it back, or permit to read it"
        raise InputError(f"{file}: expected a readable file", found=error.strerror, remedy=remedy) from None


def in_order(function: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[R]:
    """Apply a function to items in parallel, with results in order; reads no more than `num_threads` items ahead.

    >>> list(in_order(str, range(5), 2))
    ['0', '1', '2', '3', '4']
    """
    if num_threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
