"""Masks that follow from how often a row is read, and low-bit rows, against plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import InputError
from recsys.compression import COMPRESSORS, Budget
from recsys.compression.mixed_dimensions import power_law_widths
from recsys.compression.rows import lookup_counts
from recsys.embedding.mask import Mask
from tests.floats import floats
from tests.recsys.compression.pruning_context import WIDTH, context_of

slots = st.lists(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 1000)), max_size=40), min_size=1, max_size=4)


@given(slots)
@settings(deadline=None, max_examples=50)
def test_reads_are_counted_over_slots_and_collisions(slots: list[list[tuple[int, int]]]):
    expected = [0] * 100
    for slot in slots:
        for row, count in slot:
            expected[row] += count
    assert lookup_counts(context_of(slots, 100, 10**6)).tolist() == expected


@given(slots, st.integers(1_000, 8_000))
@settings(deadline=None, max_examples=50)
def test_the_rows_that_are_kept_are_the_most_read_and_as_many_as_fit(slots: list, num_bytes: int):
    context = context_of(slots, 100, num_bytes)
    mask = COMPRESSORS["frequency"](COMPRESSORS["frequency"].Config(), context.budget).build_mask(context)
    reads = lookup_counts(context)
    kept = mask.row_widths > 0
    assert context.num_bytes(mask) <= num_bytes
    assert (reads[kept] > 0).all()
    if kept.any() and not kept.all():
        assert reads[kept].min() >= reads[~kept].max()
    left = [row for row in torch.argsort(-reads, stable=True).tolist() if reads[row] > 0 and not kept[row]]
    if left:
        widths = mask.row_widths.clone()
        widths[left[0]] = WIDTH
        assert context.num_bytes(Mask(widths, mask.slot_widths)) > num_bytes


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30), floats(0, 20), floats(0, 1), st.integers(1, 20))
@settings(deadline=None, max_examples=200)
def test_widths_follow_the_power_law(reads: list[int], scale: float, temperature: float, width: int):
    counts = torch.tensor(reads, dtype=torch.float64)
    found = power_law_widths(counts, scale, temperature, width).tolist()
    without = power_law_widths(counts, scale, temperature, width, least=0).tolist()
    for count, kept, left in zip(reads, found, without, strict=True):
        assert left == (0 if scale * max(count, 1) ** temperature < 1 else kept)
    for count, kept in zip(reads, found, strict=True):
        wanted = scale * max(count, 1) ** temperature
        if count == 0:
            assert kept == 0
        elif wanted >= width * (1 + 1e-9):
            assert kept == width
        elif wanted < 1:
            assert kept == 1
        else:
            powers = [2**k for k in range(6) if 2**k <= width]
            near = {max(p for p in powers if p <= max(1, wanted * (1 + slack))) for slack in (-1e-9, 0, 1e-9)}
            assert kept in near or (kept == width and math.isclose(wanted, width))


def test_mixed_dimensions_fill_the_budget_and_nobody_read_has_none():
    popularity = [[(row, round(5000 / (row + 1)) + 1) for row in range(300)]]
    full = context_of(popularity, 1000, 10**6)
    for share in (0.5, 0.2, 0.1):
        context = full._replace(budget=Budget(int(share * 300 * WIDTH * 4), "fp32"))
        mask = COMPRESSORS["mixed_dimensions"](COMPRESSORS["mixed_dimensions"].Config(), context.budget).build_mask(
            context
        )
        widths = mask.row_widths
        assert (widths[:300] >= 1).all()
        assert (widths[300:] == 0).all()
        assert (widths[:299] >= widths[1:300]).all()  # rows are in order of popularity
        assert 0.7 * context.budget.num_bytes < context.num_bytes(mask) <= context.budget.num_bytes


def test_mixed_dimensions_drop_rows_where_one_float_for_each_is_too_much():
    popularity = [[(row, round(5000 / (row + 1)) + 1) for row in range(300)]]
    full = context_of(popularity, 1000, 10**6)
    method = COMPRESSORS["mixed_dimensions"]
    for num_bytes in (1000, 1300):
        context = full._replace(budget=Budget(num_bytes, "fp32"))
        widths = method(method.Config(), context.budget).build_mask(context).row_widths
        kept = int((widths > 0).sum())
        assert 0 < kept < 300
        assert (widths[:299] >= widths[1:300]).all()  # those that went are the rarest
        assert 0.7 * num_bytes < context.num_bytes(Mask(widths, torch.tensor([WIDTH]))) <= num_bytes
    small = full._replace(budget=Budget(100, "fp32"))
    with pytest.raises(InputError, match=r"100 bytes are too few; found .* without a single row"):
        method(method.Config(), small.budget).build_mask(small)


def test_mixed_dimensions_refuse_where_only_rows_that_are_read_alike_would_go_together():
    context = context_of([[(row, 7) for row in range(300)]], 1000, 1000)
    method = COMPRESSORS["mixed_dimensions"]
    with pytest.raises(InputError, match=r"1,000 bytes are too few; found more with one float for each"):
        method(method.Config(), context.budget).build_mask(context)


def test_low_bit_rows_keep_everything_or_refuse():
    context = context_of([[(0, 1)]], 1000, 20_000, "int8")
    mask = COMPRESSORS["quantized"](COMPRESSORS["quantized"].Config(), context.budget).build_mask(context)
    assert mask.num_cells == 1000 * WIDTH
    small = context._replace(budget=Budget(15_000, "int8"))
    with pytest.raises(InputError, match="15,000 bytes are too few; found 16,"):
        COMPRESSORS["quantized"](COMPRESSORS["quantized"].Config(), small.budget).build_mask(small)
