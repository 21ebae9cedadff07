"""Batch scoring: files to files, part by part; what is visible is whole, and a second run goes on where one stopped.

    OUT/part-00000-<input name>.parquet    the columns to keep, and `score` in [0, 1]; lineage in the file's metadata
    OUT/_manifest.json                     model, settings, and for each part its input's sha256 and its rows
    OUT/_SUCCESS                           empty, written last

Nothing in these files depends on the clock, so that a run that was cut off and taken up again ends in the same bytes.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source
from pydantic import BaseModel, ConfigDict, ValidationError

from features.encode import missing_column
from features.errors import InputError
from features.files import cannot_write, sha256_of, write_text
from features.progress import progress_bar
from features.readers import SUFFIXES, columns_of, expand, parse_numbers, read_chunks
from features.registry import describe_validation_error
from serving.bundle import Bundle, installed_version
from serving.distribution import ScoreDistribution
from serving.scorer import Scorer

SCORE = "score"
MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
LINEAGE_PREFIX = "muxrec."
BATCH_ROWS = 65_536
ROW_GROUP_ROWS = 262_144
_PART = re.compile(r"part-\d{5,}-.*\.parquet")


@dataclass(frozen=True, kw_only=True)
class ScoringReport:
    """What a scoring job did."""

    path: Path
    """Output directory."""
    model_id: str
    rows: int
    """Rows of all parts, those of skipped parts included."""
    parts: int
    """Parts in the output."""
    skipped_parts: int
    """Parts that an earlier run had finished."""
    seconds: float
    score_mean: float | None
    """None for no rows."""
    score_quantiles: dict[str, float]
    """`min`, `p01` ... `max` of all scores, to 1 part in 200 of the odds; empty for no rows."""


class PartEntry(BaseModel):
    """A finished part, as the manifest of the output lists it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: str
    input_sha256: str
    row_limit: int | None
    """Rows that `limit` still allowed when the part was scored."""
    rows_in: int
    rows_out: int
    bytes: int


class ScoringManifest(BaseModel):
    """_manifest.json of an output directory."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    format_version: int = 1
    muxrec_version: str
    model: str
    model_id: str
    run_id: str | None
    config: dict[str, Any]
    config_hash: str
    parts: dict[str, PartEntry] = {}


def score_files(
    bundle: Bundle | str | Path,
    inputs: Sequence[str | Path],
    out: str | Path,
    *,
    keep: Sequence[str] = (),
    overwrite: bool = False,
    limit: int | None = None,
    allow_missing: bool = False,
    progress: bool = True,
) -> ScoringReport:
    """Score the rows of files into a directory, one part an input file; a file's rows keep their order.

    `inputs`: files, directories or globs of parquet, csv(.gz), ndjson. `keep`: columns to copy as they are.
    `limit`: rows in all. Memory does not grow with the files.

    Parts that an earlier run finished from the same bytes are skipped. Raises `InputError`, before anything is
    written, for a column that is not there, and for a directory that another model or other settings scored (unless
    `overwrite`, which deletes its parts first); later, for a file or value that cannot be read and for a full disk.
    """
    started = time.perf_counter()
    _check_request(keep, limit)
    job = _Job(scorer=Scorer(bundle), out=Path(out), keep=tuple(keep), allow_missing=allow_missing, limit=limit)
    plan = [
        _Part(name=_part_name(index, file), file=file, columns=job.columns(file))
        for index, file in enumerate(expand(inputs))
    ]
    manifest = _open_output(job, plan, overwrite=overwrite)
    scores = ScoreDistribution()
    skipped = _score_parts(job, plan, manifest, scores, progress=progress)
    return ScoringReport(
        path=job.out,
        model_id=manifest.model_id,
        rows=sum(entry.rows_out for entry in manifest.parts.values()),
        parts=len(manifest.parts),
        skipped_parts=skipped,
        seconds=time.perf_counter() - started,
        score_mean=scores.mean,
        score_quantiles=scores.quantiles(),
    )


def lineage_of(part: str | Path) -> dict[str, str]:
    """Lineage in a part's parquet metadata: `model`, `model_id`, `run_id`, `version`, `input`, `input_sha256`, ..."""
    pairs = pl.read_parquet_metadata(part).items()
    return {key.removeprefix(LINEAGE_PREFIX): value for key, value in pairs if key.startswith(LINEAGE_PREFIX)}


@dataclass(frozen=True, kw_only=True)
class _Part:
    name: str
    file: Path
    columns: list[str]
    """Columns to read."""
    digest: str = ""
    row_limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Job:
    scorer: Scorer
    out: Path
    keep: tuple[str, ...]
    allow_missing: bool
    limit: int | None

    @property
    def numeric(self) -> set[str]:
        """Features that are made of numbers, which text files have to be parsed for."""
        return {feature.name for feature in self.scorer.registry.features if feature.type == "numeric"}

    def columns(self, file: Path) -> list[str]:
        """Columns to read from a file; raises `InputError` for one that is not there."""
        present = columns_of(file)
        names = [feature.name for feature in self.scorer.registry.features]
        absent = [name for name in names if name not in present]
        if absent and (not self.allow_missing or len(absent) == len(names)):
            raise missing_column(absent[0], present).located(str(file))
        for name in self.keep:
            if name not in present:
                found = f"columns {', '.join(present[:12])}"
                raise InputError(f"{file}: expected a column {name!r} to keep", found=found, remedy="correct `keep`")
        return list(dict.fromkeys([*(name for name in names if name in present), *self.keep]))

    def read(self, part: _Part) -> Iterator[pl.DataFrame]:
        """Frames of one size, so that every run multiplies matrices of the same height and ends in the same bits."""
        left = part.row_limit
        numeric = () if _is_text(part.file) else self.numeric
        for frame in read_chunks(part.file, part.columns, numeric=numeric, chunk_rows=BATCH_ROWS):
            yield frame if left is None else frame.head(left)
            if left is not None and (left := left - len(frame)) <= 0:
                return

    def score(self, file: Path, frame: pl.DataFrame, first_row: int) -> pl.DataFrame:
        """The columns to keep, and the score; errors name the file and the row."""
        try:
            features = frame
            if _is_text(file):  # kept as it is, and parsed for the model alone
                features = frame.with_columns([parse_numbers(frame[name]) for name in self.numeric if name in frame])
            scores = self.scorer.score(features, allow_missing=self.allow_missing)
        except InputError as error:
            raise error.located(str(file), first_row) from None
        return frame.select(*self.keep, pl.Series(SCORE, scores))

    def output_schema(self, part: _Part) -> dict[str, pl.DataType]:
        """Types of a part's columns."""
        if _is_text(part.file):
            types: Mapping[str, pl.DataType] = dict.fromkeys(self.keep, pl.String())
        elif part.file.name.endswith(".parquet"):  # it may have no rows, and then hands out no frame
            types = pl.read_parquet_schema(part.file)
        else:
            types = next(self.read(part)).schema
        return {**{name: types[name] for name in self.keep}, SCORE: pl.Float64()}


def _is_text(file: Path) -> bool:
    return file.name.endswith((".csv", ".csv.gz"))


def _check_request(keep: Sequence[str], limit: int | None) -> None:
    if isinstance(keep, str):
        raise InputError("keep: expected a list of columns", found=repr(keep), remedy=f"write [{keep!r}]")
    if SCORE in keep:
        remedy = "rename that column in the input, or leave it out"
        raise InputError(f"keep: the column {SCORE!r} is the output's own", found=", ".join(keep), remedy=remedy)
    if len(set(keep)) != len(keep):
        raise InputError("keep: expected different columns", found=", ".join(keep), remedy="name each one once")
    if limit is not None and limit < 1:
        raise InputError("limit: expected at least 1 row", found=str(limit), remedy="leave it out to score all rows")


def _part_name(index: int, file: Path) -> str:
    """Name of the part of the index-th input: deterministic, and safe for every file system and reader."""
    suffix = next(suffix for suffix in sorted((*SUFFIXES, ""), key=len, reverse=True) if file.name.endswith(suffix))
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", file.name.removesuffix(suffix))[:100]
    return f"part-{index:05d}-{stem}.parquet"


def _open_output(job: _Job, plan: list[_Part], *, overwrite: bool) -> ScoringManifest:
    """Manifest to go on with; raises `InputError` when the directory holds anything that this job would not make."""
    config = {"keep": list(job.keep), "limit": job.limit, "allow_missing": job.allow_missing}
    about = job.scorer.bundle.manifest
    fresh = ScoringManifest(
        muxrec_version=installed_version(),
        model=about.model,
        model_id=about.model_id,
        run_id=about.run_id,
        config=config,
        config_hash=sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16],
    )
    for part in plan:
        if part.file.resolve().is_relative_to(job.out.resolve()):
            raise InputError(f"{job.out} holds an input", found=str(part.file), remedy="choose another output")
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in job.out.iterdir()]
    except OSError as error:
        raise cannot_write(job.out, error) from None
    foreign = [name for name in names if not name.startswith(".") and name not in (MANIFEST, SUCCESS)]
    parts = [name for name in foreign if _PART.fullmatch(name)]
    if len(foreign) > len(parts):
        found = next(name for name in foreign if name not in parts)
        raise InputError(
            f"{job.out}: expected an empty or a scored directory", found=found, remedy="choose another one"
        )
    if overwrite:
        for name in (SUCCESS, MANIFEST, *parts):  # in this order: never a _SUCCESS beside half of the parts
            (job.out / name).unlink(missing_ok=True)
    elif names:
        fresh = _same_job(job.out, fresh, plan, parts)
    for name in names:
        if name.startswith(".part-"):  # of a run that was killed
            (job.out / name).unlink(missing_ok=True)
    _write_manifest(job.out, fresh)
    return fresh


def _same_job(out: Path, fresh: ScoringManifest, plan: list[_Part], parts: list[str]) -> ScoringManifest:
    """The manifest in the directory, or the fresh one where there is none; raises `InputError` for another job's."""
    remedy = "choose another output, or overwrite this one"
    found = fresh
    if (out / MANIFEST).is_file():
        try:
            found = ScoringManifest.model_validate_json((out / MANIFEST).read_bytes())
        except ValidationError as error:
            line = describe_validation_error(error, ScoringManifest)
            raise InputError(f"{out / MANIFEST}: expected a scoring manifest", found=line, remedy=remedy) from None
    if found.model_id != fresh.model_id:
        other = f"scores of {found.model} {found.model_id}"
        raise InputError(f"{out}: expected scores of {fresh.model} {fresh.model_id}", found=other, remedy=remedy)
    if found.config_hash != fresh.config_hash:
        raise InputError(f"{out}: expected settings {fresh.config}", found=str(found.config), remedy=remedy)
    strange = sorted({*parts, *found.parts} - {part.name for part in plan})
    if strange:
        raise InputError(f"{out}: expected parts of these {len(plan)} inputs", found=strange[0], remedy=remedy)
    return found


def _is_finished(path: Path, entry: PartEntry, part: _Part) -> bool:
    is_same = entry.input_sha256 == part.digest and entry.row_limit == part.row_limit
    return is_same and path.is_file() and path.stat().st_size == entry.bytes


def _score_parts(
    job: _Job, plan: list[_Part], manifest: ScoringManifest, scores: ScoreDistribution, *, progress: bool
) -> int:
    """Bring the directory to the plan; the number of parts that were there already."""
    skipped = rows = 0
    with progress_bar("scoring files", len(plan), enabled=progress) as advance:
        for planned in plan:
            name = planned.name
            row_limit = None if job.limit is None else job.limit - rows
            if row_limit == 0:  # an earlier input has grown since this part was made
                (job.out / name).unlink(missing_ok=True)
                manifest.parts.pop(name, None)
                continue
            part = replace(planned, digest=sha256_of(planned.file), row_limit=row_limit)
            entry = manifest.parts.get(name)
            if entry and _is_finished(job.out / name, entry, part):
                skipped += 1
                for frame in read_chunks(job.out / name, [SCORE]):
                    scores.add(frame[SCORE].to_numpy())
            else:
                (job.out / SUCCESS).unlink(missing_ok=True)
                entry = _score_part(job, manifest, part, scores, lambda text: advance(0, note=text))
                manifest.parts[name] = entry
                _write_manifest(job.out, manifest)
            rows += entry.rows_out
            advance(1, note=f"{rows:,} rows")
    _write_manifest(job.out, manifest)
    if not (job.out / SUCCESS).exists():
        write_text(job.out / SUCCESS, "")
    return skipped


def _score_part(
    job: _Job, manifest: ScoringManifest, part: _Part, scores: ScoreDistribution, note: Callable[[str], None]
) -> PartEntry:
    """Score one file under a hidden name, and show the part when it is whole and on the disk."""
    target = job.out / part.name
    temporary = job.out / f".{part.name}.{os.getpid()}.tmp"
    lineage = {
        "model": manifest.model,
        "model_id": manifest.model_id,
        "run_id": manifest.run_id or "",
        "version": manifest.muxrec_version,
        "config_hash": manifest.config_hash,
        "input": str(part.file),
        "input_sha256": part.digest,
    }
    rows_in = 0

    # polars pulls the frames from here while it writes; an exception passes through it unchanged.
    def source(*_pushed_down: object) -> Iterator[pl.DataFrame]:
        nonlocal rows_in
        for frame in job.read(part):
            result = job.score(part.file, frame, rows_in)
            rows_in += len(frame)
            scores.add(result[SCORE].to_numpy())
            note(f"{part.file.name}: {rows_in:,} rows")
            yield result

    try:
        register_io_source(source, schema=job.output_schema(part)).sink_parquet(
            temporary,
            metadata={LINEAGE_PREFIX + key: value for key, value in lineage.items()},
            row_group_size=ROW_GROUP_ROWS,
        )
        rows_out = pl.scan_parquet(temporary, glob=False).select(pl.len()).collect().item()
        if rows_out != rows_in:
            raise RuntimeError(f"{part.file}: read {rows_in} rows and wrote {rows_out}")
        _publish(temporary, target)
    except OSError as error:
        raise cannot_write(target, error) from None
    except pl.exceptions.PolarsError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))  # how polars wraps a full disk: "... (os error 28)"
        if code is None:
            raise
        raise cannot_write(target, OSError(int(code[1]), os.strerror(int(code[1])))) from None
    finally:
        temporary.unlink(missing_ok=True)
    return PartEntry(
        input=str(part.file),
        input_sha256=part.digest,
        row_limit=part.row_limit,
        rows_in=rows_in,
        rows_out=rows_out,
        bytes=target.stat().st_size,
    )


def _publish(temporary: Path, part: Path) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(part)
    descriptor = os.open(part.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_manifest(out: Path, manifest: ScoringManifest) -> None:
    write_text(out / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
