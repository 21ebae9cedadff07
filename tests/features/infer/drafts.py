"""Registries drafted from frames that are written as files, and drafts of one column."""

from pathlib import Path
from typing import Any

import polars as pl

from features.infer.column_facts import ColumnFacts
from features.infer.draft import draft_registry
from features.infer.rules import Guess, guess_feature
from features.registry import FeatureRegistry


def draft_of(tmp_path: Path, frame: pl.DataFrame, kind: str = "parquet", **options: Any) -> str:
    """The draft, also in draft.yaml; checks that it loads and has a feature per line that is not a comment."""
    path = tmp_path / f"a.{kind}"
    getattr(frame, f"write_{kind}")(path)
    draft = draft_registry(path, **options)
    (tmp_path / "draft.yaml").write_text(draft, encoding="utf-8")
    registry = FeatureRegistry.from_yaml(tmp_path / "draft.yaml")
    used = [line for line in draft.split("features:\n")[1].splitlines() if not line.startswith("  #")]
    assert len(registry.features) == len(used)
    return draft


def guess_of(values: list | pl.Series, name: str = "x", *, is_delimited: bool = True) -> Guess:
    """Draft of a column of these values, read from a file with or without types."""
    column = pl.Series(name, values) if isinstance(values, list) else values.alias(name)
    return guess_feature(ColumnFacts.of(column, is_delimited=is_delimited))
