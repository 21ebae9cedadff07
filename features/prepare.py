"""Raw files to a dataset directory, a chunk at a time; statistics are fitted on the training rows alone.

A dataset directory holds `registry.json`, `dataset.json` and `train/ valid/ test/` of parquet parts: `label`, optional
`weight` and `group`, then a lowered column a feature. `dataset.json` is written last: without it there is no dataset.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from features.dataset_info import DatasetInfo, DatasetSource, PartInfo, SplitInfo
from features.encode import encode_frame, missing_column
from features.errors import InputError
from features.files import cannot_write, sha256_of, temporary_directory_beside, write_text
from features.fit import fit_registry
from features.hashing import mix64, token_of_text
from features.progress import progress_bar
from features.readers import columns_of, expand, parse_numbers, read_chunks
from features.registry import FeatureRegistry
from features.spec import Categorical, Numeric, canonical_text

SPLITS = ("train", "valid", "test")
PART_ROWS = 1_048_576
ROW_GROUP_ROWS = 131_072

Assignment = npt.NDArray[np.int64]


def prepare(
    registry: FeatureRegistry,
    splits: Mapping[str, Sequence[str | Path]],
    out: str | Path,
    *,
    source: DatasetSource | None = None,
    holdout: float = 0.1,
    overwrite: bool = False,
    progress: bool = False,
    part_rows: int = PART_ROWS,
) -> DatasetInfo:
    """Lower raw files (paths, directories or globs a split) and write a dataset directory.

    Without `valid` files a share `holdout` of the training rows becomes the validation split; without `valid` and
    `test` files a second such share becomes the test split. A row's side follows from its position alone.

    Raises `InputError` for files, columns, values or labels that cannot be used, and when `out` holds a dataset and
    `overwrite` is not set; nothing is left behind then.
    """
    out = Path(out)
    files = {split: expand(list(patterns)) for split, patterns in splits.items() if patterns}
    if "train" not in files or not set(files) <= set(SPLITS):
        raise InputError("expected training files", found=f"splits {sorted(files)}", remedy="give --train GLOB")
    if not 0 < holdout < 0.5:
        raise InputError("holdout must be between 0 and 0.5", found=str(holdout))
    if (out / "dataset.json").exists() and not overwrite:
        raise InputError(f"{out} holds a dataset already", remedy="pass --overwrite, or choose another --out")
    unknown = _check_columns(registry, [path for paths in files.values() for path in paths])
    shares = _held_out(files, holdout)
    rule = f"{holdout:g} of the training rows each for {', '.join(shares)}, by position" if shares else "as given"
    source = source or DatasetSource(name=out.name, split_rule=rule)

    existed = out.is_dir()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with temporary_directory_beside(out / "parts") as temporary:
            reader = _Reader(registry, shares, progress)
            fitted = fit_registry(registry, lambda: reader.train_rows(files["train"]))
            written = _write_splits(fitted, reader, files, temporary, part_rows)
            info = DatasetInfo(
                **source.model_dump(),
                registry_fingerprint=fitted.fingerprint(),
                unknown_columns=tuple(unknown),
                splits=written,
            )
            _move_into_place(temporary, out, info, fitted)
    except OSError as error:
        raise cannot_write(out, error) from None
    finally:
        if not existed and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
    return info


def _check_columns(registry: FeatureRegistry, paths: Sequence[Path]) -> list[str]:
    """Refuse a file without a needed column; return the columns that the registry does not use."""
    needed = _needed_columns(registry)
    unknown: dict[str, None] = {}
    for path in paths:
        names = columns_of(path)
        for name in needed:
            if name not in names:
                raise InputError(f"{path}: {missing_column(name, names)}")
        unknown |= dict.fromkeys(name for name in names if name not in needed)
    return list(unknown)


def _needed_columns(registry: FeatureRegistry) -> list[str]:
    extra = [name for name in (registry.label, registry.weight, registry.group) if name is not None]
    return list(dict.fromkeys(extra + [feature.name for feature in registry.features]))


def _held_out(files: Mapping[str, Sequence[Path]], holdout: float) -> dict[str, float]:
    """Shares of the training rows that become other splits."""
    if "valid" in files:
        return {}
    return {"valid": holdout} if "test" in files else {"valid": holdout, "test": holdout}


class _Reader:
    """Reads raw chunks and says which split each row of a file belongs to."""

    def __init__(self, registry: FeatureRegistry, shares: Mapping[str, float], progress: bool) -> None:
        self.columns = _needed_columns(registry)
        self.numeric = {feature.name for feature in registry.features if isinstance(feature, Numeric)}
        self.numeric |= {registry.weight} if registry.weight else set()
        self.shares = shares
        self.progress = progress

    def chunks(self, paths: Sequence[Path], title: str) -> Iterator[tuple[int, pl.DataFrame]]:
        """(position of the first row among all files' rows, raw rows) pairs."""
        position = 0
        with progress_bar(title, None, enabled=self.progress) as advance:
            for path in paths:
                for chunk in read_chunks(path, self.columns, numeric=self.numeric):
                    yield position, chunk
                    position += len(chunk)
                    advance(len(chunk), note=path.name)

    def split(self, position: int, chunk: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
        """Parts of a chunk of training files by split; the rows keep their order."""
        if not self.shares:
            yield "train", chunk
            return
        positions = np.arange(position, position + len(chunk), dtype=np.uint64)
        uniform = (mix64(positions + np.uint64(1)) >> np.uint64(11)).astype(np.float64) / 2**53
        low = 0.0
        for split, share in self.shares.items():
            yield split, chunk.filter(pl.Series((uniform >= low) & (uniform < low + share)))
            low += share
        yield "train", chunk.filter(pl.Series(uniform >= low))

    def train_rows(self, paths: Sequence[Path]) -> Iterator[pl.DataFrame]:
        """Raw training rows alone, for fitting."""
        for position, chunk in self.chunks(paths, "fit"):
            for split, rows in self.split(position, chunk):
                if split == "train":
                    yield rows


def _write_splits(
    registry: FeatureRegistry, reader: _Reader, files: Mapping[str, Sequence[Path]], directory: Path, part_rows: int
) -> dict[str, SplitInfo]:
    names = [split for split in SPLITS if split in files or split in reader.shares]
    writers = {split: _SplitWriter(registry, directory / split, part_rows) for split in names}
    for origin, paths in files.items():
        for position, chunk in reader.chunks(paths, f"prepare {origin}"):
            parts = reader.split(position, chunk) if origin == "train" else [(origin, chunk)]
            for split, rows in parts:
                writers[split].add(rows)
    return {split: writer.finish() for split, writer in writers.items()}


class _SplitWriter:
    """Lowers raw rows and writes them as parquet parts of at most `part_rows` rows."""

    def __init__(self, registry: FeatureRegistry, directory: Path, part_rows: int) -> None:
        directory.mkdir()
        self.registry, self.directory, self.part_rows = registry, directory, part_rows
        self.frames: list[pl.DataFrame] = []
        self.buffered = self.rows = self.positives = 0
        self.parts: list[PartInfo] = []
        self.missing = {feature.name: 0 for feature in registry.features}

    def add(self, raw: pl.DataFrame) -> None:
        """Lower and keep raw rows; full parts go to the disk."""
        if not len(raw):
            return
        label = label_column(raw, self.registry.label)
        lowered = encode_frame(raw, self.registry)
        for feature in self.registry.features:
            self.missing[feature.name] += count_missing(raw[feature.name])
        extra = [label]
        if self.registry.weight is not None:
            extra.append(weight_column(raw, self.registry.weight))
        if self.registry.group is not None:
            extra.append(group_column(raw, self.registry.group))
        self.rows += len(raw)
        self.positives += int(label.sum())
        self.frames.append(lowered.select(extra + [pl.col(name) for name in lowered.columns]))
        self.buffered += len(raw)
        while self.buffered >= self.part_rows:
            self._write(self.part_rows)

    def _write(self, num_rows: int) -> None:
        frame = pl.concat(self.frames)
        path = self.directory / f"part-{len(self.parts):05d}.parquet"
        frame.head(num_rows).write_parquet(path, row_group_size=ROW_GROUP_ROWS)
        name = f"{self.directory.name}/{path.name}"
        rows, size = min(num_rows, len(frame)), path.stat().st_size
        self.parts.append(PartInfo(file=name, rows=rows, bytes=size, sha256=sha256_of(path)))
        self.frames = [frame.slice(num_rows)]
        self.buffered -= rows

    def finish(self) -> SplitInfo:
        """Write the rest and check the split as a whole; raises `InputError` for no rows or a single class."""
        split = self.directory.name
        if self.rows == 0:
            raise InputError(f"split {split!r}: expected rows", found="none", remedy="check the input files")
        if self.positives in (0, self.rows):
            found = f"{self.rows} rows that are all {int(self.positives > 0)}"
            remedy = "check the label column, or take more rows"
            raise InputError(f"split {split!r}: expected both labels, 0 and 1", found=found, remedy=remedy)
        if self.buffered:
            self._write(self.part_rows)
        missing = {name: count / self.rows for name, count in self.missing.items()}
        rate = self.positives / self.rows
        return SplitInfo(rows=self.rows, label_rate=rate, missing_rates=missing, parts=tuple(self.parts))


def count_missing(column: pl.Series) -> int:
    """Values that read as missing: nulls and NaNs."""
    return column.null_count() + (int(column.is_nan().sum()) if column.dtype.is_float() else 0)


def label_column(raw: pl.DataFrame, name: str) -> pl.Series:
    """Labels [B] as UInt8 0 or 1; raises `InputError` for anything else, null included."""
    column = raw[name]
    if column.null_count():
        row = column.is_null().arg_max()
        raise InputError(f"label {name!r}: expected 0 or 1", found=f"null in row {row}", remedy="drop those rows")
    values = parse_numbers(column) if column.dtype == pl.String else column
    if not (values.dtype.is_numeric() or values.dtype == pl.Boolean):
        remedy = "name the right column under `label:`"
        raise InputError(f"label {name!r}: expected 0 or 1", found=str(values.dtype), remedy=remedy)
    numbers = values.cast(pl.Float64)
    wrong = numbers.filter(~numbers.is_in([0.0, 1.0]))
    if len(wrong):
        remedy = "map the label to 0 and 1 before (a rating, say, by a threshold)"
        raise InputError(f"label {name!r}: expected 0 or 1", found=f"{wrong[0]:g}", remedy=remedy)
    return numbers.cast(pl.UInt8).alias("label")


def weight_column(raw: pl.DataFrame, name: str) -> pl.Series:
    """Example weights [B] as Float32; raises `InputError` for negative, missing or infinite ones."""
    column = raw[name]
    weights = parse_numbers(column) if column.dtype == pl.String else column.cast(pl.Float64)
    if weights.null_count() or not weights.is_finite().all() or (weights < 0).any():
        raise InputError(f"weight {name!r}: expected finite numbers from 0", remedy="mend or drop those rows")
    return weights.cast(pl.Float32).alias("weight")


def group_column(raw: pl.DataFrame, name: str) -> pl.Series:
    """Group tokens [B] as UInt64, made as a categorical feature's are."""
    Categorical(name=name).check(raw[name])
    return raw.select(token_of_text(canonical_text(pl.col(name), raw[name].dtype)).alias("group")).to_series()


def _move_into_place(temporary: Path, out: Path, info: DatasetInfo, registry: FeatureRegistry) -> None:
    """Put the parts where they belong; the old dataset ends with its `dataset.json`, the new one begins with it."""
    (out / "dataset.json").unlink(missing_ok=True)
    for split in SPLITS:
        if (out / split).exists():
            shutil.rmtree(out / split)
        if (temporary / split).exists():
            (temporary / split).rename(out / split)
    write_text(out / "registry.json", registry.to_json())
    write_text(out / "dataset.json", info.model_dump_json(indent=1))
