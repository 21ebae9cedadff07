"""Rows of tokens in numpy, for each kind of table, compared with plain loops."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.addressing import addressing_of, rows_of
from features.hashing import MISSING_TOKEN, rows_of_tokens
from features.layout import TableLayout
from features.registry import FeatureRegistry
from tests.rows import KINDS, layout_and_vocabulary, row, values_of_train

tokens_64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("kind", KINDS)
@given(values=values_of_train, more=st.lists(tokens_64, max_size=5))
@settings(deadline=None, max_examples=30)
def test_each_slot_reads_the_row_of_the_contract(kind: str, values: dict[str, Any], more: list[int]):
    layout, vocabulary = layout_and_vocabulary(kind, values)
    for name, seen in values.items():
        tokens = [*seen, *more, MISSING_TOKEN]
        slots = [slot for slot in layout.slots if slot.feature == name]
        expected = [[row(layout, slot.view, name, slot.probe, t, vocabulary) for t in tokens] for slot in slots]
        found = rows_of(layout, vocabulary, name, np.array(tokens, dtype=np.uint64))
        assert found.dtype == np.int64
        assert found.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_slots_of_several_features_are_read_at_once(kind: str):
    layout, vocabulary = layout_and_vocabulary(kind, {"user": {7, 9}, "tags": {1}, "item": {5}, "words": set()})
    first = [slot.feature for slot in layout.slots].index
    positions = [first("user"), first("tags"), first("words")]  # of main: the columns of the tokens
    tokens = np.array([[7, 5, 5], [MISSING_TOKEN, 1, 2**64 - 1]], dtype=np.uint64)
    found = addressing_of(layout, vocabulary, positions).rows(tokens)
    for column, position in enumerate(positions):
        slot = layout.slots[position]
        expected = [row(layout, slot.view, slot.feature, 0, int(token), vocabulary) for token in tokens[:, column]]
        assert found[:, column].tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens(kind: str):
    layout, vocabulary = layout_and_vocabulary(kind, {"user": {7}, "tags": set(), "item": {5}, "words": set()})
    num_slots = len(layout.positions_of("tags"))
    assert rows_of(layout, vocabulary, "tags", np.zeros(0, dtype=np.uint64)).shape == (num_slots, 0)


def test_collisionless_rows_by_hand():
    """Ranges are in output order: user 4 rows, tags 2, item 3, words 2; fs1's item and words; fs2's tags."""
    values = {"user": {9, 2**63 + 1}, "tags": set(), "item": {5}, "words": set()}
    layout, vocabulary = layout_and_vocabulary("collisionless", values)
    assert layout.num_rows == 4 + 2 + 3 + 2 + 3 + 2 + 2
    tokens = np.array([MISSING_TOKEN, 8, 9, 2**63 + 1, 5], dtype=np.uint64)
    assert rows_of(layout, vocabulary, "user", tokens).tolist() == [[0, 1, 2, 3, 1]]
    assert rows_of(layout, vocabulary, "item", tokens).tolist() == [[6, 7, 7, 7, 8], [11, 12, 12, 12, 13]]


@given(values_of_train)
@settings(deadline=None, max_examples=30)
def test_collisionless_rows_are_a_bijection(values: dict[str, Any]):
    """C7: each seen value, the missing and the unseen have one row in each view; no row is unused."""
    layout, vocabulary = layout_and_vocabulary("collisionless", values)
    every_token = {
        name: np.array([*seen, MISSING_TOKEN, _other(seen)], dtype=np.uint64) for name, seen in values.items()
    }
    rows = [rows_of(layout, vocabulary, name, tokens).ravel() for name, tokens in every_token.items()]
    assert np.sort(np.concatenate(rows)).tolist() == list(range(layout.num_rows))


def _other(seen: set[int]) -> int:
    return next(token for token in range(99) if token not in seen)


@given(values_of_train, st.integers(7, 2000), st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_hashed_rows_stay_in_the_range_of_their_own(values: dict[str, Any], num_rows: int, probes: int):
    layout, _ = layout_and_vocabulary("hashed", values, num_rows, probes)
    tokens = np.random.default_rng(1).integers(0, 2**64 - 1, 300, dtype=np.uint64)
    for name in values:
        slots = [slot for slot in layout.slots if slot.feature == name]
        for slot, found in zip(slots, rows_of(layout, None, name, tokens), strict=True):
            assert slot.first_row <= found.min() <= found.max() < slot.first_row + slot.num_rows
            assert (slot.first_row, slot.num_rows) == layout.ranges[slot.view, name]


@pytest.mark.parametrize("probes", [1, 3])
def test_a_single_feature_is_hashed_as_it_is_unified(probes: int):
    """C7: with one feature and one view there is nothing to divide."""
    registry, views = FeatureRegistry.of(features={"a": "categorical"}), {"main": ("a",)}
    tokens = np.random.default_rng(1).integers(0, 2**64 - 1, 300, dtype=np.uint64)
    sizes: dict[str, Any] = {"num_rows": 97, "width": 2, "probes": probes, "views": views}
    unified = TableLayout.of(registry, **sizes)
    hashed = TableLayout.of(registry, **sizes, kind="hashed", num_values={"a": 60})
    expected = rows_of_tokens(tokens, unified.salts_of("a")[:, None], 97)
    assert np.array_equal(rows_of(unified, None, "a", tokens), expected)
    assert np.array_equal(rows_of(hashed, None, "a", tokens), expected)
