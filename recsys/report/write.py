"""The report directory of a run: every figure and table, written in one go.

n examples, M table rows.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from features.files import write_text
from recsys.compression.kept import KeptColumns
from recsys.evaluation.collisions import CollisionReport
from recsys.evaluation.permutation_importance import Importance
from recsys.evaluation.predictions import Predictions
from recsys.evaluation.segments import Segment, segment_columns
from recsys.report.text import csv_text


class EvaluatedSplit(NamedTuple):
    """The split that the report is about: the test split, or the validation split where there is no other."""

    split: str
    predictions: Predictions
    metrics: Mapping[str, float]
    segments: Sequence[Segment]
    importance: Sequence[Importance]


def write_report(
    directory: Path,
    history: Sequence[Mapping[str, Any]],
    best_epoch: int,
    judged: EvaluatedSplit,
    collisions: CollisionReport,
    usage: np.ndarray,
    kept: Sequence[KeptColumns] = (),
) -> None:
    """Write all figures and tables of a run; `usage` holds the entries that read each row [M]."""
    from recsys.report import figures  # matplotlib takes a third of a second to import

    directory.mkdir(parents=True, exist_ok=True)
    predictions, metrics, names = judged.predictions, judged.metrics, figures.NAMES
    figures.save(directory / "curves.png", figures.curves, history, best_epoch, num_axes=2)
    figures.save(directory / "roc.png", figures.roc, predictions, metrics)
    figures.save(directory / "reliability.png", figures.reliability, predictions, metrics)
    figures.save(directory / "scores.png", figures.scores, predictions)
    figures.save(directory / "gain_lift.png", figures.gain_lift, predictions, num_axes=2)
    figures.save(directory / "importance.png", figures.importance, judged.importance, left=names)
    figures.save(directory / "row_usage.png", figures.row_usage, usage, collisions)
    figures.save(directory / "collisions.png", figures.collisions, collisions, left=names)
    if kept:
        figures.save(directory / "kept.png", figures.kept, kept, num_axes=2, left=names)
        write_text(directory / "kept.csv", csv_text([one._asdict() for one in kept], KeptColumns._fields))
    write_text(directory / "segments.csv", csv_text([one.record() for one in judged.segments], segment_columns()))
    losses = csv_text([one._asdict() for one in judged.importance], Importance._fields)
    write_text(directory / "importance.csv", losses)
    write_text(directory / "collisions.json", json.dumps(collisions.model_dump(), indent=1))
    write_text(directory / "collisions.csv", csv_text(collisions.rows()))
