"""Scores the rows that can be scored, and rejects each of the others with its reason.

B rows. The rules are those of the features and the scorer, so a batch job rejects what a server rejects.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from features.errors import InputError
from features.registry import FeatureRegistry
from serving.coverage import Coverage
from serving.scorer import Probabilities, Scorer

ROW, REASON = "_row", "_reason"


class ScoredRows(NamedTuple):
    """The scored and the rejected rows of a raw frame [B]."""

    good: pl.DataFrame
    probabilities: Probabilities
    rejected: pl.DataFrame
    """The other rows, after `_row` (in the file, from 1) and `_reason`."""
    coverage: dict[str, Coverage]
    """Missing and unseen values of the good rows."""


def score_rows(scorer: Scorer, raw: pl.DataFrame, *, allow_missing: bool, first_row: int) -> ScoredRows:
    """Score the rows of a raw frame [B] that can be scored; `first_row`: position of the frame in its file.

    Raises `InputError` for a column that its feature cannot take as a whole.
    """

    def score(rows: pl.DataFrame) -> tuple[Probabilities, dict[str, Coverage]]:
        encoded = scorer.encode(rows, allow_missing=allow_missing)
        return scorer.score_encoded(encoded), scorer.coverage(encoded)

    finders: list[Callable[[pl.DataFrame], dict[int, str]] | None] = [
        lambda rows: faults_in_values(rows, scorer.registry),
        lambda rows: faults_of(len(rows), lambda start, stop: score(rows[start:stop])),  # NaN logits
        None,
    ]
    good, positions = raw, np.arange(len(raw))
    reasons: dict[int, str] = {}
    for find in finders:
        try:
            probabilities, coverage = score(good)
        except InputError as error:
            if error.row is None or find is None:
                raise
            found = find(good)
            reasons |= {int(positions[row]): reason for row, reason in found.items()}
            positions = np.delete(positions, list(found))
            good = raw[positions]
        else:
            return ScoredRows(good, probabilities, rejected_rows(raw, reasons, first_row), coverage)
    raise AssertionError("the last attempt returns or raises")


def faults_of(num_rows: int, check: Callable[[int, int], Any]) -> dict[int, str]:
    """All rows that `check(start, stop)` refuses, where each check raises `InputError` for its first such row only.

    After a fault the spans start at one row and double, so neither one fault nor a frame full of them costs much more
    than one check per row. An `InputError` without a row concerns the whole column, and is raised.

    >>> def check(start: int, stop: int) -> None:
    ...     for row in range(start, stop):
    ...         if row in (3, 4, 70):
    ...             raise InputError("even rows", found=str(row), row=row - start)
    >>> faults_of(100, check)
    {3: 'even rows; found 3', 4: 'even rows; found 4', 70: 'even rows; found 70'}
    """
    faults: dict[int, str] = {}
    start, span = 0, num_rows
    while start < num_rows:
        stop = min(start + span, num_rows)
        try:
            check(start, stop)
            start, span = stop, 2 * span
        except InputError as error:
            if error.row is None:
                raise
            faults[start + error.row] = f"{error.expected}; found {error.found}"
            start, span = start + error.row + 1, 1
    return faults


def faults_in_values(raw: pl.DataFrame, registry: FeatureRegistry) -> dict[int, str]:
    """Rows of a raw frame [B] with a value that its feature cannot take, each with its first reason."""
    faults: dict[int, str] = {}
    for feature in registry.features:
        if feature.name not in raw.columns:
            continue
        column = raw[feature.name]

        def check(start: int, stop: int, feature: Any = feature, column: pl.Series = column) -> None:
            feature.check(feature.parse(column[start:stop]))

        faults = faults_of(len(raw), check) | faults
    return faults


def rejected_rows(raw: pl.DataFrame, reasons: dict[int, str], first_row: int) -> pl.DataFrame:
    """Rows of a raw frame by position, after their row in the file (from 1) and the reason."""
    rows: Sequence[int] = sorted(reasons)
    numbers = pl.Series(ROW, [first_row + row + 1 for row in rows], dtype=pl.Int64)
    texts = pl.Series(REASON, [reasons[row] for row in rows], dtype=pl.String)
    return raw[rows].drop(ROW, REASON, strict=False).select(numbers, texts, pl.all())
