"""Raw files to a dataset directory, chunk by chunk; statistics are fitted on the training rows only.

A dataset directory holds `registry.json`, `dataset.json` and `train/ valid/ test/` of parquet parts: `label`, optional
`weight` and `group`, then one encoded column per feature. `dataset.json` is written last and marks a finished dataset.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from features.dataset.fit import fit_registry
from features.dataset.info import DatasetInfo, DatasetSource, PartInfo, SplitInfo
from features.encode import count_missing, encode_parsed, parse_frame
from features.errors import InputError, missing_column
from features.files import cannot_write, sha256_of, temporary_directory_beside, write_parquet, write_text
from features.hashing import mix64
from features.io.frames import columns_of_frame, frame_of, is_frame
from features.io.readers import CHUNK_ROWS, check_out_of_inputs, columns_of, expand, read_chunks
from features.labels import LabelReader, group_column, weight_column
from features.progress import progress_bar
from features.registry import FeatureRegistry
from features.spec import Numeric

SPLITS = ("train", "valid", "test")
PART_ROWS = 1_048_576
ROW_GROUP_ROWS = 131_072


def prepare(
    registry: FeatureRegistry,
    splits: Mapping[str, Any],
    out: str | Path,
    *,
    source: DatasetSource | None = None,
    holdout: float = 0.1,
    overwrite: bool = False,
    progress: bool = False,
    part_rows: int = PART_ROWS,
) -> DatasetInfo:
    """Encode raw rows and write a dataset directory.

    `splits` maps a split to a frame (polars, pandas, anything with an Arrow C stream) or a list of paths, directories
    and globs. Without `valid`, a share `holdout` of the training rows becomes the validation split; without `valid` and
    `test`, a second such share becomes the test split. The split of a row depends only on its position.

    Raises `InputError` for files, columns, values or labels that cannot be used, and if `out` holds a dataset and
    `overwrite` is not set; then nothing is left behind.
    """
    out = Path(out)
    if not 0 < holdout < 0.5:
        raise InputError("holdout must be between 0 and 0.5", found=str(holdout), remedy="0.1 is usual")
    if part_rows < 1:
        raise InputError("part_rows must be positive", found=str(part_rows), remedy=f"{PART_ROWS} is usual")
    files = {split: _sources(rows, split, registry) for split, rows in splits.items() if is_frame(rows) or rows}
    if "train" not in files or not set(files) <= set(SPLITS):
        raise InputError("expected training files", found=f"splits {sorted(files)}", remedy="give --train GLOB")
    _check_out(out, files, overwrite)
    for rows in splits.values():
        check_out_of_inputs(out, [] if is_frame(rows) else rows)
    unknown = _check_files(registry, files)
    shares = {} if "valid" in files else {split: holdout for split in ("valid", "test") if split not in files}
    rule = f"{holdout:g} of the training rows each for {', '.join(shares)}, by position" if shares else "as given"
    source = source or DatasetSource(name=out.resolve().name)
    if source.split_rule == "as given":
        source = source.model_copy(update={"split_rule": rule})
    reader = _Reader(registry, shares, progress)
    with _output(out) as temporary:
        fitted = fit_registry(registry, lambda: reader.train_rows(files["train"]))
        info = DatasetInfo(
            **source.model_dump(),
            format_version=2 if registry.has_later_settings else 1,
            registry_fingerprint=fitted.fingerprint(),
            unknown_columns=tuple(unknown),
            splits=_write_splits(fitted, reader, files, temporary, part_rows),
        )
        _move_into_place(temporary, out, info, fitted)
    return info


class _Frame(NamedTuple):
    split: str
    rows: pl.DataFrame
    columns: list[str]
    """Columns of the given frame; `rows` may have fewer."""

    def __str__(self) -> str:
        return f"the frame of {self.split!r}"


_Source = Path | _Frame


def _sources(rows: Any, split: str, registry: FeatureRegistry) -> list[_Source]:
    if not is_frame(rows):
        return [*expand(list(rows))]
    frame = frame_of(rows, registry.features, _needed_columns(registry))
    return [_Frame(split, frame, columns_of_frame(rows))]


@contextmanager
def _output(out: Path) -> Iterator[Path]:
    """A temporary directory in `out`, which is created if needed and deleted again if it stays empty."""
    existed = out.is_dir()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with temporary_directory_beside(out / "parts") as temporary:
            try:
                yield temporary
            except OSError as error:
                raise cannot_write(out, error) from None
    except OSError as error:
        raise cannot_write(out, error) from None
    finally:
        if not existed and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def _check_out(out: Path, files: Mapping[str, Sequence[_Source]], overwrite: bool) -> None:
    """Refuse an output that would replace a dataset without `overwrite`, or files that `prepare` did not write."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a directory to write to", found="a file", remedy="choose another --out")
    if (out / "dataset.json").exists() and not overwrite:
        remedy = "pass --overwrite, or choose another --out"
        raise InputError(f"{out}: expected no dataset yet", found="one", remedy=remedy)
    inputs = [path.resolve() for paths in files.values() for path in paths if isinstance(path, Path)]
    for folder in (out / split for split in SPLITS):
        if any(path.is_relative_to(folder.resolve()) for path in inputs):
            raise InputError(f"{folder} would be replaced", found="input files in it", remedy="choose another --out")
        if folder.exists() and not (out / "registry.json").exists():
            found = "a folder that no dataset owns"
            raise InputError(f"{folder} would be replaced", found=found, remedy="choose another --out, or remove it")


def _check_files(registry: FeatureRegistry, files: Mapping[str, Sequence[_Source]]) -> list[str]:
    """Refuse a file in two splits or without a needed column; return the columns that the registry does not use."""
    needed = _needed_columns(registry)
    unknown: dict[str, None] = {}
    split_of: dict[Path, str] = {}
    for split, paths in files.items():
        for path in paths:
            other = split_of.setdefault(path.resolve(), split) if isinstance(path, Path) else split
            if other != split:
                remedy = "a model must not be evaluated on rows that it learned from: narrow one of the patterns"
                raise InputError(f"{path}: expected a file of one split", found=f"{other} and {split}", remedy=remedy)
            names = columns_of(path, registry.csv) if isinstance(path, Path) else path.columns
            if isinstance(path, Path) and not names:
                continue  # an empty file has no rows
            for name in needed:
                if name not in names:
                    raise missing_column(name, names).located(str(path))
            unknown |= dict.fromkeys(name for name in names if name not in needed)
    return list(unknown)


def _needed_columns(registry: FeatureRegistry) -> list[str]:
    extra = [name for name in (registry.label, registry.weight, registry.group) if name is not None]
    return list(dict.fromkeys(extra + [feature.name for feature in registry.features]))


class _Chunk(NamedTuple):
    path: _Source
    first_row: int
    """Position of the first row in it."""
    position: int
    """Position of the first row among all rows of the split's files."""
    raw: pl.DataFrame


class _Reader:
    def __init__(self, registry: FeatureRegistry, shares: Mapping[str, float], progress: bool) -> None:
        self.registry = registry
        self.columns = _needed_columns(registry)
        self.unfitted = [feature for feature in registry.features if isinstance(feature, Numeric) and feature.needs_fit]
        self.shares = shares
        self.progress = progress

    def chunks(self, paths: Sequence[_Source], title: str) -> Iterator[_Chunk]:
        """Rows of the files in order, parsed."""
        position = 0
        with progress_bar(title, None, enabled=self.progress) as advance:
            for path in paths:
                first_row = 0
                if isinstance(path, Path):
                    name, frames = path.name, read_chunks(path, self.columns, csv=self.registry.csv)
                else:
                    name, frames = path.split, path.rows.select(self.columns).iter_slices(CHUNK_ROWS)
                for raw in frames:
                    chunk = _Chunk(path, first_row, position, raw)
                    with _faults_in(chunk):
                        chunk = chunk._replace(raw=parse_frame(raw, self.registry))
                    yield chunk
                    first_row += raw.height
                    position += raw.height
                    advance(raw.height, note=name)

    def masks(self, chunk: _Chunk) -> dict[str, pl.Series]:
        """Split to flags [N] of its rows in a chunk of training files; empty if all rows are for training."""
        if not self.shares:
            return {}
        positions = np.arange(chunk.position, chunk.position + chunk.raw.height, dtype=np.uint64)
        uniform = (mix64(positions + np.uint64(1)) >> np.uint64(11)).astype(np.float64) / 2**53
        masks: dict[str, pl.Series] = {}
        low = 0.0
        for split, share in self.shares.items():
            masks[split] = pl.Series((uniform >= low) & (uniform < low + share))
            low += share
        return masks | {"train": pl.Series(uniform >= low)}

    def train_rows(self, paths: Sequence[_Source]) -> Iterator[pl.DataFrame]:
        """Raw training rows, without held-out rows, for fitting."""
        for chunk in self.chunks(paths, "fit"):
            with _faults_in(chunk):
                for feature in self.unfitted:
                    feature.check(chunk.raw[feature.name])
            masks = self.masks(chunk)
            yield chunk.raw.filter(masks["train"]) if masks else chunk.raw


@contextmanager
def _faults_in(chunk: _Chunk) -> Iterator[None]:
    """Add the file and the row to an `InputError` about a chunk."""
    try:
        yield
    except InputError as error:
        raise error.located(str(chunk.path), chunk.first_row) from None


def _write_splits(
    registry: FeatureRegistry, reader: _Reader, files: Mapping[str, Sequence[_Source]], directory: Path, part_rows: int
) -> dict[str, SplitInfo]:
    names = [split for split in SPLITS if split in files or split in reader.shares]
    writers = {split: _SplitWriter(directory / split, part_rows) for split in names}
    for origin, paths in files.items():
        labels = LabelReader(registry.label, registry.label_rule)
        for chunk in reader.chunks(paths, f"prepare {origin}"):
            with _faults_in(chunk):
                encoded = _encode(chunk.raw, registry, labels)
            masks = reader.masks(chunk) if origin == "train" else {}
            for split, mask in masks.items():
                writers[split].add(encoded.filter(mask), _missing_counts(chunk.raw, registry, mask))
            if not masks:
                writers[origin].add(encoded, _missing_counts(chunk.raw, registry))
    return {split: writer.finish() for split, writer in writers.items()}


def _encode(raw: pl.DataFrame, registry: FeatureRegistry, labels: LabelReader) -> pl.DataFrame:
    """Columns of a part: label, weight and group if the registry has them, then the features."""
    columns = [labels.read(raw)]
    if registry.weight is not None:
        columns.append(weight_column(raw, registry.weight))
    if registry.group is not None:
        columns.append(group_column(raw, registry.group))
    return pl.DataFrame(columns).hstack(encode_parsed(raw, registry))


class _SplitWriter:
    """Writes encoded rows as parquet parts of at most `part_rows` rows."""

    def __init__(self, directory: Path, part_rows: int) -> None:
        directory.mkdir()
        self.directory, self.part_rows = directory, part_rows
        self.frames: list[pl.DataFrame] = []
        self.buffered = self.rows = self.positives = 0
        self.weights = np.zeros(2)  # sums over negatives and over positives
        self.parts: list[PartInfo] = []
        self.missing: Counter[str] = Counter()

    def add(self, encoded: pl.DataFrame, missing: Mapping[str, int]) -> None:
        """Buffer encoded rows and add their missing values; full parts are written to the disk."""
        self.missing.update(missing)
        self.rows += encoded.height
        self.positives += int(encoded["label"].sum())
        if "weight" in encoded:
            self.weights += np.bincount(encoded["label"], weights=encoded["weight"], minlength=2)
        self.frames.append(encoded)
        self.buffered += encoded.height
        while self.buffered >= self.part_rows:
            self._write(self.part_rows)

    def _write(self, num_rows: int) -> None:
        frame = pl.concat(self.frames)
        path = self.directory / f"part-{len(self.parts):05d}.parquet"
        # Tokens are random bits: statistics are useless, and a slower codec saves 5%.
        options = {"row_group_size": ROW_GROUP_ROWS, "compression": "lz4", "statistics": False}
        write_parquet(frame.head(num_rows), path, **options)
        name, rows = f"{self.directory.name}/{path.name}", min(num_rows, frame.height)
        self.parts.append(PartInfo(file=name, rows=rows, bytes=path.stat().st_size, sha256=sha256_of(path)))
        self.frames = [frame.slice(num_rows)]
        self.buffered -= rows

    def finish(self) -> SplitInfo:
        """Write the rest and check the whole split; raises `InputError` for no rows or a single class."""
        split = self.directory.name
        if self.rows == 0:
            raise InputError(f"split {split!r}: expected rows", found="none", remedy="check the input files")
        if self.positives in (0, self.rows):
            found = f"{self.rows} rows that are all {int(self.positives > 0)}"
            remedy = "check the label column, or take more rows"
            raise InputError(f"split {split!r}: expected both labels, 0 and 1", found=found, remedy=remedy)
        if self.weights.any() != self.weights.all() or ("weight" in self.frames[0] and not self.weights.any()):
            found = f"only rows of label {int(self.weights[1] > 0)}" if self.weights.any() else "no row"
            expected = f"split {split!r}: expected rows of both labels with a weight above 0"
            raise InputError(expected, found=found, remedy="check the weight column, or leave out `weight:`")
        if self.buffered:
            self._write(self.part_rows)
        missing = {name: count / self.rows for name, count in self.missing.items()}
        rate = self.positives / self.rows
        return SplitInfo(rows=self.rows, label_rate=rate, missing_rates=missing, parts=tuple(self.parts))


def _missing_counts(raw: pl.DataFrame, registry: FeatureRegistry, mask: pl.Series | None = None) -> dict[str, int]:
    counts: dict[str, int] = {}
    for feature in registry.features:
        column = raw[feature.name]
        count = count_missing(column)
        counts[feature.name] = count_missing(column.filter(mask)) if count and mask is not None else count
    return counts


def _move_into_place(temporary: Path, out: Path, info: DatasetInfo, registry: FeatureRegistry) -> None:
    """Replace the old dataset: first remove its `dataset.json`, last add the new one.

    All bytes are on the disk before the first old file moves, so a full disk leaves the old dataset complete.
    """
    write_text(temporary / "registry.json", registry.to_json())
    write_text(temporary / "dataset.json", info.model_dump_json(indent=1))
    (out / "dataset.json").unlink(missing_ok=True)
    # From here on, `_check_out` takes the folders for a dataset's, even if the process is killed.
    (temporary / "registry.json").replace(out / "registry.json")
    old = temporary / "old"
    old.mkdir()
    for split in SPLITS:
        if (out / split).exists():
            (out / split).rename(old / split)
        if (temporary / split).exists():
            (temporary / split).rename(out / split)
    (temporary / "dataset.json").replace(out / "dataset.json")
