"""Metrics by how often training saw an example's value: shows whether a model is good on frequent values only.

n examples, T tokens of a feature in a window, V distinct tokens. Only tokens are read, no raw values.
"""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from features.encode import EncodedBatch
from features.errors import InputError
from features.hashing import MISSING_TOKEN
from recsys.evaluation.metrics import METRICS
from recsys.evaluation.predictions import Predictions

SEGMENTS = ("0", "1-9", "10-99", "100+", "missing")
"""Occurrences of the value in the training rows; of a list, the rarest value decides."""
BOUNDS = (1, 10, 100)
MISSING = len(SEGMENTS) - 1

Levels = npt.NDArray[np.int64]


class Segment(NamedTuple):
    """Examples whose value of a feature was seen about equally often, with their metrics."""

    feature: str
    seen_in_train: str
    """One of SEGMENTS."""
    rows: int
    label_rate: float | None
    metrics: dict[str, float | None]
    """Every entry of METRICS; None if it is undefined, such as the AUC of labels of one class."""

    def record(self) -> dict[str, Any]:
        """One flat record, for files and JSON."""
        *own, metrics = self
        return {**dict(zip(self._fields, own, strict=False)), **metrics}


def segment_columns() -> list[str]:
    """Names in a segment's record."""
    return [*Segment._fields[:-1], *METRICS]


def token_counts(batches: Iterable[EncodedBatch], features: Collection[str]) -> dict[str, pl.DataFrame]:
    """Feature to a frame [V] of `token` and `count`, over all batches; the missing token is one of them."""
    counts = {name: pl.DataFrame(schema={"token": pl.UInt64, "count": pl.Int64}) for name in features}
    for batch in batches:
        for name in features:
            found = pl.Series("token", batch.tokens[name]).value_counts().cast({"count": pl.Int64})
            counts[name] = pl.concat([counts[name], found]).group_by("token").agg(pl.col("count").sum())
    return counts


def segment_report(
    predictions: Predictions, batches: Iterable[EncodedBatch], counts: dict[str, pl.DataFrame]
) -> list[Segment]:
    """The segments that have examples, by feature of `counts`; `batches` are the predicted examples in their order.

    >>> seen = {"user": pl.DataFrame({"token": [7], "count": [12]}, schema={"token": pl.UInt64, "count": pl.Int64})}
    >>> tokens = {"user": np.array([7, 8, 7], dtype=np.uint64)}
    >>> batch = EncodedBatch(num_examples=3, tokens=tokens, lengths={}, dense=np.zeros((3, 0), np.float32))
    >>> predictions = Predictions(np.float32([0, 1, 1]), np.array([0.25, 0.5, 0.75]))
    >>> [(one.seen_in_train, one.rows, one.metrics["auc"]) for one in segment_report(predictions, [batch], seen)]
    [('0', 1, None), ('10-99', 2, 1.0)]
    """
    levels: dict[str, list[Levels]] = {name: [] for name in counts}
    for batch in batches:
        for name, parts in levels.items():
            parts.append(_levels(batch, name, counts[name]))
    segments: list[Segment] = []
    for name, parts in levels.items():
        level = np.concatenate(parts)
        for number, seen in enumerate(SEGMENTS):
            rows = np.flatnonzero(level == number)
            if len(rows):
                segments.append(_segment(name, seen, predictions.take(rows)))
    return segments


def _levels(batch: EncodedBatch, name: str, counts: pl.DataFrame) -> Levels:
    """Index into SEGMENTS of each example [n]."""
    tokens = pl.DataFrame({"token": batch.tokens[name]})  # [T]
    seen = tokens.join(counts, on="token", how="left", maintain_order="left")["count"].fill_null(0)
    levels = np.searchsorted(BOUNDS, seen.to_numpy(), side="right")
    levels[batch.tokens[name] == np.uint64(MISSING_TOKEN)] = MISSING
    if name not in batch.lengths:
        return levels
    lengths = batch.lengths[name]
    rarest = np.full(len(lengths), MISSING)
    starts = (np.cumsum(lengths) - lengths)[lengths > 0]
    if len(starts):
        rarest[lengths > 0] = np.minimum.reduceat(levels, starts)
    return rarest


def _segment(feature: str, seen: str, predictions: Predictions) -> Segment:
    labels, weights = predictions.labels, predictions.weights
    amounts = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    metrics: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        try:
            metrics[name] = metric.function(predictions)
        except InputError:  # of one class, or without a group that has both
            metrics[name] = None
    label_rate = float(labels @ amounts / amounts.sum()) if amounts.any() else None
    return Segment(feature, seen, len(labels), label_rate, metrics)
