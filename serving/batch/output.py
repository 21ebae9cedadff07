"""The output directory of a scoring job: its lock, its marks, and the check that it belongs to this job.

OUT/[key=value/...]part-<input name>-<digits>.parquet            scored rows
OUT/_rejected/[key=value/...]rejected-<input name>-<digits>.parquet    the rows that could not be scored
OUT/_manifest.json        model, settings, and how each part was made; present when all parts are
OUT/_SUCCESS              empty; written last
OUT/.*                    drafts, and the lock of the running job
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from features.errors import InputError, differences
from features.files import cannot_write, take_lock, write_text
from serving.batch.drafts import REJECTED, rejected_path
from serving.batch.parts import MANIFEST, SUCCESS, Job, PartEntry, lineage_of

MANIFEST_VERSION = 2
LOCK = ".lock"
LOCK_TIMEOUT_SECONDS = 10.0  # the processes of a job that was killed end by themselves, once they have started


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """Make the directory and lock it for this job; gives the lock's file descriptor.

    Processes that inherit the descriptor hold the lock too: it is free once the last of them has ended, however it
    ended. Raises `InputError` if another job holds it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = take_lock(out / LOCK, timeout_seconds=LOCK_TIMEOUT_SECONDS)
    except OSError as error:
        raise cannot_write(out, error) from None
    if descriptor is None:
        remedy = "wait until it is done, or choose another output"
        raise InputError(f"{out}: expected no other job in it", found="one that holds its lock", remedy=remedy)
    try:
        yield descriptor
    finally:
        (out / LOCK).unlink(missing_ok=True)
        os.close(descriptor)


def open_output(job: Job, planned: Sequence[str], *, overwrite: bool) -> None:
    """Prepare a locked directory for the job to continue; `planned`: names of all parts that it may hold.

    Raises `InputError`, with nothing changed, if the directory holds files that such a job would not make. With
    `overwrite`, parts of any job are deleted, but files of other programs are still refused.
    """
    drafts, parts, rejected = _contents(job.out, planned)
    if overwrite:
        # In this order, so that _SUCCESS is never next to half of the parts.
        stale = [job.out / SUCCESS, job.out / MANIFEST, *(job.out / name for name in parts), *rejected]
    else:
        stale = []
        _check_same_job(job, parts)
        strange = sorted({*parts} - {*planned}) or sorted({*rejected} - {rejected_path(job.out, n) for n in planned})
        if strange:
            expected = f"{job.out}: expected parts of these {len(planned)} inputs"
            raise InputError(expected, found=str(strange[0]), remedy="choose another output, or overwrite this one")
    for path in [*stale, *drafts]:
        path.unlink(missing_ok=True)


def drop_part(out: Path, name: str) -> None:
    """Delete a part that no longer has rows in the job."""
    for path in (out / SUCCESS, out / MANIFEST, out / name, rejected_path(out, name)):
        path.unlink(missing_ok=True)


def write_manifest(job: Job, entries: Mapping[str, PartEntry]) -> None:
    """Write the manifest of a job whose parts are complete."""
    config = {"config": json.loads(job.lineage["config"]), "run_id": job.lineage["run_id"] or None}
    document: dict[str, Any] = {"format_version": MANIFEST_VERSION, **job.lineage, **config}
    for total in ("rows_in", "rows_out", "rows_rejected"):
        document[total] = sum(getattr(entry, total) for entry in entries.values())
    document["parts"] = {
        name: {**entry.model_dump(), "bytes": (job.out / name).stat().st_size} for name, entry in entries.items()
    }
    text = json.dumps(document, indent=1) + "\n"
    path = job.out / MANIFEST
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def mark_success(out: Path) -> None:
    """Mark the directory as complete; an existing mark is left as it is."""
    if not (out / SUCCESS).exists():
        write_text(out / SUCCESS, "")


def _contents(out: Path, planned: Sequence[str]) -> tuple[list[Path], dict[str, dict[str, str]], list[Path]]:
    """Drafts, the lineage of each part by its name, and files of rejected rows; raises `InputError` for others' files.

    A planned part that cannot be read has no lineage; it is made again.
    """
    drafts: list[Path] = []
    parts: dict[str, dict[str, str]] = {}
    rejected: list[Path] = []
    for path in sorted(path for path in out.rglob("*") if not path.is_dir()):
        name = path.relative_to(out).as_posix()
        if name.startswith(".") or "/." in name:
            drafts += [path] if path.name.startswith(".part-") and path.name.endswith(".tmp") else []
        elif name not in (MANIFEST, SUCCESS):
            try:
                lineage = lineage_of(path) if path.name.endswith(".parquet") else {}
            except (OSError, pl.exceptions.PolarsError):
                lineage = {}
            if "model_id" not in lineage and name not in planned:
                expected = f"{out}: expected an empty or a scored directory"
                raise InputError(expected, found=name, remedy="choose another one")
            if name.startswith(f"{REJECTED}/"):
                rejected.append(path)
            else:
                parts[name] = lineage
    return drafts, parts, rejected


def _check_same_job(job: Job, parts: Mapping[str, Mapping[str, str]]) -> None:
    remedy = "choose another output, or overwrite this one"
    ours = job.lineage
    for lineage in filter(None, parts.values()):
        if lineage["model_id"] != ours["model_id"]:
            found = f"scores of {lineage['model']} {lineage['model_id']}"
            expected = f"{job.out}: expected scores of {ours['model']} {ours['model_id']}"
            raise InputError(expected, found=found, remedy=remedy)
        if lineage["config_hash"] != ours["config_hash"]:
            found = differences(json.loads(lineage["config"]), json.loads(ours["config"]))
            raise InputError(f"{job.out}: expected scores by the same settings", found=found, remedy=remedy)
