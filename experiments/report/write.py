"""The report directory of a run: every figure and table, written in one go.

n examples, M table rows.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.report.importance import Importance
from experiments.text import csv_text
from features.addressing import Vocabulary, rows_of
from features.files import write_text
from features.layout import TableLayout
from recsys.collisions import CollisionReport, Distinct
from recsys.mask import Mask
from recsys.metrics import Predictions
from recsys.segments import Segment


class Judged(NamedTuple):
    """The split that the report is about: the test split, or the validation split where there is no other."""

    split: str
    predictions: Predictions
    metrics: Mapping[str, float]
    segments: Sequence[Segment]
    importance: Sequence[Importance]


class Kept(NamedTuple):
    """What a pruned table stores of one feature."""

    feature: str
    rows: int
    """Rows that its training values read and of which anything is stored."""
    of_rows: int
    """Rows that its training values read."""
    columns: int
    """Columns that its slots hand on, over all views and probes."""
    of_columns: int
    """Columns of its slots."""


def kept_by_feature(layout: TableLayout, mask: Mask, distinct: Distinct, vocabulary: Vocabulary | None) -> list[Kept]:
    """What a mask leaves of each token feature: of the rows that its training values read, and of its columns."""
    widths, of_slots = mask.row_widths.numpy(), mask.slot_widths.numpy()
    found = []
    for name, (tokens, _) in distinct.items():
        rows = np.unique(rows_of(layout, vocabulary, name, tokens))
        slots = of_slots[layout.positions_of(name)]
        kept_rows, columns = int((widths[rows] > 0).sum()), int(slots.sum())
        found.append(Kept(name, kept_rows, len(rows), columns, len(slots) * layout.width))
    return found


def write_report(
    directory: Path,
    history: Sequence[Mapping[str, Any]],
    best_epoch: int,
    judged: Judged,
    collisions: CollisionReport,
    usage: np.ndarray,
    kept: Sequence[Kept] = (),
) -> None:
    """Write all figures and tables of a run; `usage` holds the entries that read each row [M]."""
    from experiments.report import figures  # matplotlib takes a third of a second to import

    directory.mkdir(parents=True, exist_ok=True)
    labels, probabilities, _, weights = judged.predictions
    figures.save(directory / "curves.png", lambda axes: figures.curves(axes, history, best_epoch), 2)
    figures.save(directory / "roc.png", lambda axes: figures.roc(axes[0], judged.predictions, judged.metrics))
    figures.save(
        directory / "reliability.png", lambda axes: figures.reliability(axes[0], judged.predictions, judged.metrics)
    )
    figures.save(directory / "scores.png", lambda axes: figures.scores(axes[0], labels, probabilities, weights))
    figures.save(directory / "gain_lift.png", lambda axes: figures.gain_lift(axes, judged.predictions), 2)
    names = figures.NAMES
    figures.save(directory / "importance.png", lambda axes: figures.importance(axes[0], judged.importance), left=names)
    figures.save(directory / "row_usage.png", lambda axes: figures.row_usage(axes[0], usage, collisions))
    figures.save(directory / "collisions.png", lambda axes: figures.collisions(axes[0], collisions), left=names)
    if kept:
        figures.save(directory / "kept.png", lambda axes: figures.kept(axes, kept), 2, left=names)
        _write_records(directory / "kept.csv", Kept._fields, kept)
    _write_records(directory / "segments.csv", Segment._fields, judged.segments)
    _write_records(directory / "importance.csv", Importance._fields, judged.importance)
    write_text(directory / "collisions.json", json.dumps(collisions.model_dump(), indent=1))
    write_text(directory / "collisions.csv", csv_text(collisions.rows()))


def _write_records(path: Path, columns: Sequence[str], records: Iterable[NamedTuple]) -> None:
    write_text(path, csv_text([one._asdict() for one in records], columns))
