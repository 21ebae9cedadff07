"""Reference implementation of the row contract in plain integers, with another implementation of xxh3."""

import math
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import xxhash
from hypothesis import strategies as st

from features.addressing import Vocabulary
from features.hashing import MISSING_TOKEN
from features.layout import TableLayout
from features.registry import FeatureRegistry
from features.table_kinds import TABLE_KINDS

KINDS = tuple(TABLE_KINDS)
COUNTED = tuple(kind for kind in KINDS if TABLE_KINDS[kind].has_own_ranges)
BLOCK = 2

# Features set no probes, which some kinds refuse; lists are between scalars; views differ from the registry's order,
# as those of gates do.
REGISTRY = FeatureRegistry.of(
    seed=5,
    features={
        "user": "categorical",
        "tags": {"type": "categorical_list", "pooling": "mean"},
        "item": "categorical",
        "words": {"type": "categorical_list", "pooling": "sum"},
    },
)
VIEWS = {"main": ("words", "item", "user", "tags"), "fs1": ("words", "item"), "fs2": ("tags",)}

edges = st.sampled_from([0, 1, MISSING_TOKEN - 1, MISSING_TOKEN + 1, 2**63 - 1, 2**63, 2**64 - 1])
values = st.one_of(edges, st.integers(0, 2**64 - 1).filter(lambda token: token != MISSING_TOKEN))
values_of_train = st.fixed_dictionaries({feature.name: st.sets(values, max_size=9) for feature in REGISTRY.features})
"""Feature to its values in train, without the missing one."""


def layout_and_vocabulary(
    kind: Any, seen: Mapping[str, Collection[int]], num_rows: int = 37, probes: int = 1, width: int = 3
) -> tuple[TableLayout, Vocabulary]:
    """Layout of `REGISTRY` and `VIEWS`, and the vocabulary, for these values in train."""
    vocabulary = {name: np.array(sorted(seen[name]), dtype=np.uint64) for name in seen}
    counts = {name: len(tokens) for name, tokens in vocabulary.items()}
    settings: dict[str, Any] = {"num_rows": num_rows, "width": width, "probes": probes_of(kind, probes), "views": VIEWS}
    return TableLayout.of(REGISTRY, **settings, kind=kind, num_values=counts, block=BLOCK), vocabulary


def probes_of(kind: str, probes: int) -> int:
    """The given number, if the kind allows a choice."""
    return {"collisionless": 1, "quotient_remainder": 2}.get(kind, probes)


def row(
    layout: TableLayout, view: str, feature: str, probe: int, token: int, vocabulary: Vocabulary | None = None
) -> int:
    """Row of one token in one slot."""
    first, num_rows = range_of(layout, view, feature)
    if layout.kind == "collisionless":
        assert vocabulary is not None
        if token == MISSING_TOKEN:
            return first
        ordered = sorted(int(value) for value in vocabulary[feature])
        return first + 2 + ordered.index(token) if token in ordered else first + 1
    if layout.kind == "quotient_remainder":
        half = num_rows // 2
        number = _hashed(layout, view, feature, 0, token, min(half * half, 2**31))
        return first + (half + number // half if probe else number % half)
    if layout.kind == "robe":
        return (_hashed(layout, view, feature, probe // BLOCK, token, num_rows) + probe % BLOCK) % num_rows
    return first + _hashed(layout, view, feature, probe, token, num_rows)


def _hashed(layout: TableLayout, view: str, feature: str, number: int, token: int, size: int) -> int:
    text = "\x1f".join((str(layout.seed), layout.keys[feature], view, str(number)))
    value = token ^ xxhash.xxh3_64_intdigest(text.encode())
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * multiplier) % 2**64
    value ^= value >> 31
    return ((value >> 32) * size) >> 32


def range_of(layout: TableLayout, view: str, feature: str) -> tuple[int, int]:
    """First row and number of rows that a feature may read in a view."""
    if layout.kind not in COUNTED:
        return 0, layout.num_rows
    readers = [(view, feature) for view, probes in layout.views.items() for feature in probes]
    counts = [layout.num_values[feature] for _, feature in readers]
    if layout.kind == "hashed":
        sizes = shares_of(layout.num_rows, counts)
    elif layout.kind == "collisionless":
        sizes = [count + 2 for count in counts]
    else:
        sizes = [2 * half for half in shares_of(layout.num_rows // 2, [math.isqrt(count * 2**20) for count in counts])]
    position = readers.index((view, feature))
    return sum(sizes[:position]), sizes[position]


def shares_of(num_rows: int, counts: list[int]) -> list[int]:
    """Rows in proportion to counts: parts below one row get one, the others share the rest by remainders."""
    weights = [Fraction(max(1, count)) for count in counts]
    poor: set[int] = set()
    while True:
        rest = num_rows - len(poor)
        total = sum(weight for part, weight in enumerate(weights) if part not in poor)
        due = {part: rest * weight / total for part, weight in enumerate(weights) if part not in poor}
        poorer = {part for part, share in due.items() if share < 1}
        if not poorer:
            break
        poor |= poorer
    shares = [1 if part in poor else int(due[part]) for part in range(len(counts))]
    for part in sorted(due, key=lambda part: due[part] - int(due[part]), reverse=True)[: num_rows - sum(shares)]:
        shares[part] += 1
    return shares
