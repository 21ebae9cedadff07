import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import InputError
from serving.bundle.row_sets import (
    Positions,
    RankedBitmap,
    decode_positions,
    encode_positions,
    pack_bits,
    row_set_of,
    stored_form,
)

PATH = Path("table.safetensors")


@st.composite
def flags(draw: st.DrawFn) -> np.ndarray:
    num_rows = draw(st.one_of(st.integers(1, 140), st.sampled_from([1023, 1024, 1025, 4096, 20_000])))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return generator.random(num_rows) < draw(st.sampled_from([0.0, 0.001, 0.05, 0.3, 0.9, 1.0]))


@settings(max_examples=200, deadline=None)
@given(is_member=flags())
def test_both_forms_count_what_is_before(is_member: np.ndarray) -> None:
    num_rows, count = len(is_member), int(is_member.sum())
    encoded = encode_positions(is_member)
    members = decode_positions(PATH, "kept", encoded, count, num_rows)
    assert members.tolist() == [row for row in range(num_rows) if is_member[row]]
    rows = np.random.default_rng(0).permutation(num_rows)
    before = np.cumsum(is_member) - is_member
    for row_set in (RankedBitmap(pack_bits(is_member)), Positions(members)):
        assert row_set.count == count
        found, ranks = row_set.rank(rows)
        assert np.array_equal(found, is_member[rows])
        assert np.array_equal(ranks[found], before[rows][found])
    assert stored_form(count, num_rows)[1] in (len(encoded), math.ceil(num_rows / 8))


@pytest.mark.parametrize("share", [1 / 8, 1 / 16, 1 / 64, 1 / 1000])
def test_positions_come_near_the_least_that_any_code_takes(share: float) -> None:
    """At most half a bit a member above the entropy and Elias and Fano's own bound of 2 + log2(n / K) bits."""
    num_rows, count = 1_000_000, int(1_000_000 * share)
    is_positions, num_bytes = stored_form(count, num_rows)
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) * num_rows / 8
    assert is_positions
    assert entropy <= num_bytes <= count * (2 + math.log2(1 / share)) / 8 + 2
    assert num_bytes <= entropy + count * 0.75 / 8 + 2


def test_the_smaller_form_is_chosen_where_it_is_worth_it() -> None:
    for count in range(0, 1001, 5):
        flags = np.zeros(1000, dtype=np.bool_)
        flags[:count] = True
        is_positions, num_bytes = stored_form(count, 1000)
        assert num_bytes == (len(encode_positions(flags)) if is_positions else 125)
        assert num_bytes <= 125
        assert is_positions or len(encode_positions(flags)) > 0.75 * 125


@pytest.mark.parametrize(
    ("content", "count", "num_rows", "message"),
    [
        ([5, 4], 2, 8, None),
        ([5, 4, 0], 2, 8, "to hold 2 of 8 positions; found 3 bytes"),
        ([], 2, 8, "to hold 2 of 8 positions; found 0 bytes"),
        ([5, 4], 9, 8, "to hold 9 of 8 positions"),
        ([1, 4], 2, 8, "to hold 2 positions; found 1"),
        ([3, 5], 2, 8, "rising positions below 8; found others"),  # 1 and 1
        ([3, 1], 2, 8, "rising positions below 8; found others"),  # 1 and 0
        ([17, 2], 2, 7, "rising positions below 7; found others"),  # 0 and 3 << 1 | 1
    ],
)
def test_positions_are_checked(content: list[int], count: int, num_rows: int, message: str | None) -> None:
    encoded = np.array(content, dtype=np.uint8)
    if message is None:
        assert decode_positions(PATH, "kept", encoded, count, num_rows).tolist() == [0, 5]
        return
    with pytest.raises(InputError, match=message):
        decode_positions(PATH, "kept", encoded, count, num_rows)


def test_a_bitmap_in_memory_is_never_large_for_what_is_stored() -> None:
    members = np.arange(0, 2**24, 256)
    assert isinstance(row_set_of(members[:10], 2**20), RankedBitmap)
    assert isinstance(row_set_of(np.arange(2**14 + 1), 2**20 + 1), RankedBitmap)
    assert isinstance(row_set_of(members, 2**24), Positions)
    assert isinstance(row_set_of(members[:1], 2**31), Positions)
