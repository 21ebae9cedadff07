"""Dataset directories for tests that read or train: given rows, or planted rows with known probabilities."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from data.synthetic import Planted, planted_frame
from features.dataset.prepare import prepare
from features.registry import FeatureRegistry


def write_dataset(
    directory: Path, registry: FeatureRegistry, splits: Mapping[str, pl.DataFrame], **options: Any
) -> Path:
    """Prepare raw frames, one per split, into `directory/dataset` and return that path; `options` are `prepare`'s."""
    files: dict[str, list[str | Path]] = {}
    for split, frame in splits.items():
        path = directory / f"{split}.parquet"
        frame.write_parquet(path)
        files[split] = [path]
    prepare(registry, files, directory / "dataset", **options)
    return directory / "dataset"


def planted_dataset(directory: Path, num_rows: int, *, seed: int = 1, part_rows: int = 1_048_576, **sizes: int) -> Path:
    """The first planted rows of a seed, 8:1:1 in order, as a dataset directory; `sizes` are the fields of `Planted`."""
    rows = planted_frame(num_rows, seed=seed, **sizes)
    train, valid = num_rows * 8 // 10, num_rows // 10
    splits = {"train": rows[:train], "valid": rows[train : train + valid], "test": rows[train + valid :]}
    registry = FeatureRegistry.of(features=Planted(seed=seed, **sizes).features)
    return write_dataset(directory, registry, splits, part_rows=part_rows)
