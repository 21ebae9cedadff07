"""Encodes rows in the forms that callers have: mappings, pandas, Arrow, polars. pandas is never imported.

B rows.
"""

import difflib
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import polars as pl

from features.encode import EncodedBatch, encode, encode_values
from features.errors import InputError
from features.io.frames import frame_of, is_frame
from features.registry import FeatureRegistry

ACCEPTED = "a polars or pandas frame, an Arrow table, or a list of mappings from feature to value"

RawRows = pl.DataFrame | Sequence[Mapping[str, Any]]
"""Rows with a length and slices: a raw frame, or mappings where an absent key is a missing value."""


def rows_of(rows: Any, registry: FeatureRegistry) -> RawRows:
    """Convert rows [B] to one of two forms; of a pandas frame, only the registry's columns.

    Raises `InputError` for other types, and for values of a pandas frame that their feature cannot take.
    """
    if is_frame(rows):
        return frame_of(rows, registry.features)
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        wrong = [kind.__name__ for kind in dict.fromkeys(map(type, rows)) if not issubclass(kind, Mapping)]
        if wrong:
            raise InputError(f"expected {ACCEPTED}", found=f"a list that holds {wrong[0]}")
        return rows
    remedy = "put it in a list" if isinstance(rows, Mapping) else "convert it to one of these"
    raise InputError(f"expected {ACCEPTED}", found=type(rows).__name__, remedy=remedy)


def encode_rows(rows: RawRows, registry: FeatureRegistry, *, allow_missing: bool = False) -> EncodedBatch:
    """Encode what `rows_of` returned; raises `InputError` as `encode` and `encode_values` do.

    >>> registry = FeatureRegistry.of(features={"user": "categorical", "tags": "categorical_list"})
    >>> encode_rows([{"user": 7, "tags": ["a", None]}, {"user": "x"}], registry).lengths["tags"].tolist()
    [2, 1]
    """
    names = [feature.name for feature in registry.features]
    if isinstance(rows, pl.DataFrame):
        check_keys([dict.fromkeys(rows.columns)] if len(rows) else [], names)
        return encode(rows, registry, allow_missing=allow_missing)
    check_keys(rows, names)
    return encode_values({name: [row.get(name) for row in rows] for name in names}, registry, len(rows))


def check_keys(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Raise `InputError` for a row [B] that has keys, but none of a feature: all of it would be missing.

    A row without keys is all missing; keys of no feature are ignored if the row has one of a feature.
    """
    known = frozenset(names)
    if not known:
        return
    for row, given in enumerate(rows):
        if given and known.isdisjoint(given):
            keys = [str(key)[:80] for key in islice(given, 6)]  # a request may hold a million of them
            close = [match for key in keys for match in difflib.get_close_matches(key, names, n=1)]
            remedy = f"did you mean {close[0]!r}?" if close else f"send some of {', '.join(names[:6])}"
            expected, found = "expected a row with a feature of the model", f"keys {', '.join(map(repr, keys))}"
            raise InputError(expected, found=found, remedy=remedy, row=row)
