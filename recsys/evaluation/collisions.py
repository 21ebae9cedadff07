"""Shared rows of a table: load, collisions inside and between features, and each feature's share of the reads.

M table rows, n_f distinct values of a feature in train. Expected figures follow from uniform hashing (Coleman et
al., "Unified Embedding", NeurIPS 2023): of k + 1 entries that may read the same R rows, one shares its row with
another with probability 1 - (1 - 1/R)^k. R is M in a unified table and in an array of ROBE's, a range of it in a hashed
or quotient-remainder one; in a collisionless table the values of train share none.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict

from features.addressing import Vocabulary, rows_of
from features.encode import EncodedBatch
from features.hashing import MISSING_TOKEN, Tokens
from features.layout import TableLayout

Counts = npt.NDArray[np.int64]
Distinct = Mapping[str, tuple[Tokens, int]]
"""Feature to its distinct tokens, increasing, and the number of its reads."""


class FeatureCollisions(BaseModel):
    """One feature in the view `main`; shares are of its distinct values, in the mean over its probes."""

    model_config = ConfigDict(frozen=True)

    feature: str
    distinct: int
    """Distinct values in train."""
    load: float
    """Distinct values times probes, over the rows that they may read."""
    share_of_reads: float
    """Share of all row reads of the training examples, over all views."""
    expected_intra: float
    """Share of values whose row another value of the same feature reads too, by the same probe."""
    measured_intra: float
    """The same, counted."""
    expected_inter: float
    """Share of values whose row another feature reads, by any probe and in any view."""
    measured_inter: float
    """The same, counted."""
    indistinguishable: int
    """Values whose rows are the same as another value's in every probe."""


class CollisionReport(BaseModel):
    """The table as a whole, and its features."""

    model_config = ConfigDict(frozen=True)

    num_rows: int
    """M."""
    entries: int
    """(view, feature, probe, value) combinations that read a row."""
    load_factor: float
    """Entries over rows."""
    expected_occupied: float
    """Rows that at least one entry reads, expected under uniform hashing."""
    occupied: int
    """The same, counted."""
    features: list[FeatureCollisions]

    def rows(self) -> list[dict[str, Any]]:
        """One flat record per feature, for tables."""
        return [feature.model_dump() for feature in self.features]


def distinct_tokens(batches: Iterable[EncodedBatch]) -> dict[str, tuple[Tokens, int]]:
    """Feature to (distinct tokens, increasing; number of reads) over all batches."""
    tokens: dict[str, list[pl.Series]] = {}
    reads: dict[str, int] = {}
    for batch in batches:
        for name, values in batch.tokens.items():
            parts = tokens.setdefault(name, [])
            parts.append(pl.Series(values).unique())
            # Merged when they have doubled: memory stays near that of the distinct tokens, however long the data.
            if sum(map(len, parts[1:])) > len(parts[0]):
                tokens[name] = [pl.concat(parts).unique()]
            reads[name] = reads.get(name, 0) + len(values)
    return {name: (pl.concat(parts).unique().sort().to_numpy(), reads[name]) for name, parts in tokens.items()}


def vocabulary_of(distinct: Distinct) -> dict[str, Tokens]:
    """The tokens of train that are values: all but the missing one."""
    return {name: tokens[tokens != np.uint64(MISSING_TOKEN)] for name, (tokens, _) in distinct.items()}


def collision_report(
    layout: TableLayout, distinct: Distinct, vocabulary: Vocabulary | None = None
) -> tuple[CollisionReport, Counts]:
    """The report, and how many entries read each table row [M]; `vocabulary` is the one that a model was trained with.

    >>> from features.registry import FeatureRegistry
    >>> registry = FeatureRegistry.of(features={"a": "categorical"})
    >>> layout = TableLayout.of(registry, num_rows=1, width=4, probes=1, views={"main": ("a",)})
    >>> report, usage = collision_report(layout, {"a": (np.array([1, 2], dtype=np.uint64), 5)})
    >>> report.features[0].measured_intra, report.features[0].indistinguishable, usage.tolist()
    (1.0, 2, [2])
    """
    num_rows = layout.num_rows
    rows = {name: rows_of(layout, vocabulary, name, tokens) for name, (tokens, _) in distinct.items()}
    usage, scratch = np.zeros(num_rows, dtype=np.int64), np.zeros(num_rows, dtype=np.int64)
    for found in rows.values():
        np.add.at(usage, found.ravel(), 1)
    entries = int(usage.sum())
    all_reads = sum(len(layout.positions_of(name)) * reads for name, (_, reads) in distinct.items())
    report = CollisionReport(
        num_rows=num_rows,
        entries=entries,
        load_factor=entries / num_rows,
        expected_occupied=_expected_occupied(layout, usage),
        occupied=int((usage > 0).sum()),
        features=[
            _feature(name, len(tokens), reads / max(all_reads, 1), rows[name], layout, usage, scratch)
            for name, (tokens, reads) in distinct.items()
        ],
    )
    return report, usage


def _feature(
    name: str, distinct: int, reads_share: float, rows: Counts, layout: TableLayout, usage: Counts, scratch: Counts
) -> FeatureCollisions:
    (_, num_rows), num_probes = layout.ranges["main", name], layout.views["main"][name]
    main = rows[:num_probes]  # [probes, n_f]: the slots of `main` come first
    others = 0 if layout.addressing.has_own_ranges else int(usage.sum()) - rows.size
    slots = [layout.slots[position] for position in layout.positions_of(name)[:num_probes]]
    is_hashed = not layout.addressing.has_vocabulary
    is_shared_within = np.array([_multiplicity(probe, scratch) > 1 for probe in main])
    is_shared_beyond = usage[main] > _multiplicity(rows, scratch)[:num_probes]
    return FeatureCollisions(
        feature=name,
        distinct=distinct,
        load=distinct * num_probes / num_rows,
        share_of_reads=reads_share * len(rows),
        expected_intra=float(np.mean([_collides(max(distinct - 1, 0), slot.num_rows) for slot in slots])) * is_hashed,
        measured_intra=_share(is_shared_within),
        expected_inter=_collides(others, num_rows) if distinct else 0.0,
        measured_inter=_share(is_shared_beyond),
        indistinguishable=_num_repeated(main[:, is_shared_within.all(axis=0)]),  # no other value can be
    )


def _expected_occupied(layout: TableLayout, usage: Counts) -> float:
    if layout.addressing.has_vocabulary:
        return float(usage.sum())
    ranges = dict.fromkeys((slot.first_row, slot.num_rows) for slot in layout.slots)  # readers may share one
    return sum(num * _collides(int(usage[first : first + num].sum()), num) for first, num in ranges)


def _share(flags: npt.NDArray[np.bool_]) -> float:
    return float(flags.mean()) if flags.size else 0.0


def _multiplicity(rows: Counts, scratch: Counts) -> Counts:
    """Number of entries that read each entry's row; of the shape of `rows`.

    `scratch` [M] is all zeros before and after: allocating counts for each feature and probe would cost M each.
    """
    np.add.at(scratch, rows.ravel(), 1)
    found = scratch[rows]
    scratch[rows] = 0
    return found


def _num_repeated(codes: Counts) -> int:
    """Columns of [P, N] that are equal to another column."""
    ordered = codes[:, np.lexsort(codes)]
    is_equal = (ordered[:, 1:] == ordered[:, :-1]).all(axis=0)  # to the column before
    return int((np.append(is_equal, False) | np.append(False, is_equal)).sum()) if codes.size else 0


def _collides(others: int, num_rows: int) -> float:
    """Probability that one of `others` independent entries falls into a given row."""
    return float(-np.expm1(others * np.log1p(-1.0 / num_rows))) if num_rows > 1 else float(others > 0)
