"""Registries drafted from a file: one guess per column with its reason, for a person to review."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.errors import InputError, missing_column
from features.infer.column_facts import ColumnFacts, label_auc
from features.infer.label import find_label, inline, scalar
from features.infer.rules import ROW_ID_UNIQUENESS, Guess, guess_feature
from features.io.csv_format import CsvFormat
from features.io.frames import frame_of, is_frame
from features.io.readers import columns_of, expand, is_text, read_chunks
from features.registry import FeatureRegistry

GROUP_NAMES = ("user_id", "userid", "user", "uid", "visitor_id", "customer_id", "member_id", "account_id", "msno")
LEAK_AUC, SUSPICIOUS_AUC = 0.99, 0.95
MOSTLY_MISSING = 0.5
MAX_ALIGNED_WIDTH = 64
MAX_FILES = 64
SEPARATORS = {";": "';'", "\t": "tab", "|": "'|'", ",": "','"}  # as written on the command line


Line = tuple[str, str]
"""Text of a line, and the reason for it."""


def draft_registry(
    rows: Any, *, sample_rows: int = 200_000, label: str | None = None, csv: CsvFormat | None = None
) -> str:
    """Text of a registry file drafted from the first `sample_rows` rows, with the reason of each guess.

    `rows` is a path, a polars or pandas frame, or anything with an Arrow C stream. `csv` is the format of delimited
    text, if not commas; the draft repeats it.

    Columns that should not be features are comments: row identifiers, constants, targets in disguise, moments in time,
    unsupported types. If no label is found, a comment reports it and `label:` names a column that does not exist yet.
    Raises `InputError` for a file that cannot be read or has no rows, for a `label` that is not a column, and if no
    column can be a feature.
    """
    if sample_rows < 1:
        raise InputError("sample_rows must be positive", found=str(sample_rows))
    files = [] if is_frame(rows) else expand(rows)
    where = "the frame" if not files else str(files[0] if len(files) == 1 else rows)
    if files:
        sample = _sample_of_files(files, sample_rows, csv, where)
    else:
        sample = frame_of(rows.head(sample_rows) if hasattr(rows, "head") else rows, (), None).head(sample_rows)
    if sample.is_empty():
        raise InputError(f"{where}: expected rows", found="none", remedy="draft the registry from another file")
    if label is not None and label not in sample.columns:
        raise missing_column(label, sample.columns).located(where)
    is_delimited = any(map(is_text, files))
    facts = {name: ColumnFacts.of(sample[name], is_delimited=is_delimited) for name in sample.columns}
    found = find_label(facts, label)
    is_one = found.outcome.is_one if found.outcome else None
    guesses = {name: _guess(facts[name], is_one) for name in facts if name != found.name}
    if not any(guess.is_used for guess in guesses.values()):
        reasons = ", ".join(f"{name!r}: {guess.reason.split(':')[0]}" for name, guess in list(guesses.items())[:6])
        remedy = "add columns that are known before the label is"
        raise InputError(f"{where}: expected a column to learn from", found=reasons or "the label alone", remedy=remedy)
    lines = [(f"label: {found.setting}", found.reason)]
    if settings := csv.model_dump(mode="json", exclude_defaults=True) if csv else {}:
        lines.append((f"csv: {inline(settings)}", "as asked for; of every delimited file"))
    lines += [_group_line(facts, found.name), ("features:", "")]
    for name, guess in guesses.items():
        lines.append((f"{'  ' if guess.is_used else '  # '}{scalar(name)}: {guess.setting}", guess.reason))
    title = f"Drafted from the first {len(sample):,} rows of {files[0].name if files else 'a frame'}"
    if len(files) > 1:
        read = min(len(files), MAX_FILES)
        title = f"Drafted from {len(sample):,} rows, the first ones of {read:,} of {len(files):,} files"
    return _rendered(f"{title}. Read every line before use.", lines)


def _sample_of_files(files: list[Path], num_rows: int, csv: CsvFormat | None, where: str) -> pl.DataFrame:
    """First rows of each file, or of some files spread evenly: partition columns vary by file."""
    some = [files[k * len(files) // MAX_FILES] for k in range(MAX_FILES)] if len(files) > MAX_FILES else files
    frames = [_typed(frame) for file in some if len(frame := _sample(file, -(-num_rows // len(some)), csv))]
    try:
        return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()
    except pl.exceptions.PolarsError as error:
        found, remedy = " ".join(str(error).split())[:160], "draft the registry from one of them"
        raise InputError(f"{where}: expected files of the same columns", found=found, remedy=remedy) from None


def _typed(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame, its columns without values as null: pandas writes an empty list column as floats."""
    return frame.with_columns(
        pl.lit(None).alias(column.name)
        for column in frame
        if column.null_count() == len(column) or (column.dtype.is_float() and np.isnan(column.to_numpy()).all())
    )


def _sample(file: Path, num_rows: int, csv: CsvFormat | None) -> pl.DataFrame:
    names = columns_of(file, csv)
    if is_text(file) and len(names) == 1:
        counts = {separator: names[0].count(separator) for separator in SEPARATORS}
        if any(counts.values()):
            separator = max(counts, key=lambda separator: counts[separator])
            renamed = "rename it to .csv and " if ".tsv" in file.name.lower() else ""
            remedy = f"{renamed}pass `--separator {SEPARATORS[separator]}`"
            raise InputError(f"{file}: expected several columns", found=f"one, {names[0][:60]!r}", remedy=remedy)
    frames: list[pl.DataFrame] = []
    for chunk in read_chunks(file, chunk_rows=min(num_rows, 65_536), csv=csv):
        frames.append(chunk)
        if sum(map(len, frames)) >= num_rows:
            break
    return pl.concat(frames).head(num_rows) if frames else pl.DataFrame()


def _group_line(facts: Mapping[str, ColumnFacts], label: str | None) -> Line:
    by_name = {name.lower(): name for name in facts if name != label}
    for name in (by_name[name] for name in GROUP_NAMES if name in by_name):
        column = facts[name]
        if column.kind in ("text", "integer") and column.uniqueness < ROW_ID_UNIQUENESS:
            rows = len(column.values) / column.num_values
            reason = f"by its name; {rows:.1f} rows per value, ranked among themselves (gAUC)"
            return f"group: {scalar(name)}", reason
    return ("# group: COLUMN", "optional, for gAUC; no column is named like a user")


def _guess(facts: ColumnFacts, is_one: pl.Series | None) -> Guess:
    guess = guess_feature(facts)
    reason = guess.reason
    if guess.is_used and is_one is not None and facts.kind != "list":
        auc = label_auc(facts.column.filter(is_one.is_not_null()), is_one.drop_nulls().to_numpy())
        if auc >= LEAK_AUC:
            return guess._replace(reason=f"target in disguise: alone it tells the label, AUC {auc:.3f}", is_used=False)
        if auc >= SUSPICIOUS_AUC:
            reason += f"; SUSPICIOUS: alone it reaches AUC {auc:.3f}, is it known before the label?"
    if facts.missing >= MOSTLY_MISSING:
        reason += f"; MOSTLY MISSING: {facts.missing:.1%}"
    elif facts.missing:
        reason += f"; {facts.missing:.1%} missing"
    return guess._replace(reason=reason)


def _rendered(title: str, lines: list[Line]) -> str:
    width = max(len(text) for text, _ in lines if len(text) <= MAX_ALIGNED_WIDTH)
    rows = [f"# {title}"] + [f"{text:<{width}}  # {reason}" if reason else text for text, reason in lines]
    # Comments hold names and values of the file, but YAML allows no control characters.
    return "".join("".join(c if c.isprintable() else "?" for c in row) + "\n" for row in rows)


def infer_registry(rows: Any, *, label: str | None = None) -> FeatureRegistry:
    """Registry of `draft_registry`, without the reasons.

    >>> infer_registry(pl.DataFrame({"click": [0, 1, 1] * 9, "user": ["a", "b", "a"] * 9})).label
    'click'
    """
    return FeatureRegistry.from_text(draft_registry(rows, label=label), "the draft")
