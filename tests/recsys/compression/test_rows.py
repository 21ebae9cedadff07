"""The rows and columns that a budget admits, against exhaustive search and plain loops."""

from itertools import product

import pytest
import torch

from features.errors import InputError
from recsys.compression.base import Budget, SlotLookups
from recsys.compression.rows import keep_best_cells, keep_best_rows, lookup_counts, row_caps
from recsys.embedding.mask import Mask
from tests.recsys.compression.pruning_context import context_of


class Given:
    """Evidence of a table of 8 rows of 4, which costs 1 byte a kept row and 4 a float."""

    def __init__(self, num_bytes: int, reads: list[SlotLookups] | None = None) -> None:
        every = SlotLookups(torch.arange(8), torch.ones(8, dtype=torch.int64))
        self.lookups = reads or [every]
        self.budget = Budget(num_bytes, "fp32")
        self.layout = type("Layout", (), {"num_rows": 8, "width": 4, "slots": self.lookups})()
        self.table = torch.zeros(8, 4)

    def num_bytes(self, mask: Mask) -> int:
        return int(sum(1 + 4 * width for width in mask.row_widths.tolist() if width))


def slot(rows: list[int], counts: list[int]) -> SlotLookups:
    return SlotLookups(torch.tensor(rows), torch.tensor(counts))


def test_reads_of_a_row_add_up_over_values_and_slots():
    given = Given(0, [slot([1, 1, 3], [5, 2, 1]), slot([3, 0], [10, 4])])
    assert lookup_counts(given).tolist() == [4, 7, 0, 11, 0, 0, 0, 0]  # pyright: ignore[reportArgumentType]
    widths = torch.tensor([2, 0])
    assert lookup_counts(given, widths).tolist() == [0, 7, 0, 1, 0, 0, 0, 0]  # pyright: ignore[reportArgumentType]
    assert row_caps(given, widths).tolist() == [0, 2, 0, 2, 0, 0, 0, 0]  # pyright: ignore[reportArgumentType]
    assert row_caps(given, torch.tensor([2, 3])).tolist() == [3, 2, 0, 3, 0, 0, 0, 0]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("num_bytes", [0, 16, 17, 40, 51, 1000])
def test_the_best_rows_that_fit_are_kept(num_bytes):
    scores = torch.tensor([3.0, 1.0, 8.0, -1.0, 5.0, 0.0, 2.0, 7.0])
    mask = keep_best_rows(scores, Given(num_bytes))  # pyright: ignore[reportArgumentType]
    expected = [2, 7, 4, 0, 6, 1][: num_bytes // 17]  # in order of their scores; rows worth nothing never
    assert sorted(mask.row_widths.nonzero().flatten().tolist()) == sorted(expected)
    assert set(mask.row_widths.tolist()) <= {0, 4}


def test_a_row_that_nobody_reads_is_not_kept_whatever_its_score():
    given = Given(1000, [slot([1, 3], [1, 1]), slot([5], [1])])
    mask = keep_best_rows(torch.ones(8), given)  # pyright: ignore[reportArgumentType]
    assert mask.row_widths.tolist() == [0, 4, 0, 4, 0, 4, 0, 0]
    caps = row_caps(given, torch.tensor([4, 0]))  # pyright: ignore[reportArgumentType]
    assert caps.tolist() == [0, 4, 0, 4, 0, 0, 0, 0]


@pytest.mark.parametrize("seed", range(8))
def test_cells_by_price_are_the_best_choice_at_their_own_bytes(seed):
    generator = torch.Generator().manual_seed(seed)
    widths, rows = torch.tensor([0, 2, 4]), torch.tensor([0, 2, 3, 5, 7])
    steps = torch.rand(5, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1.0])
    gains = torch.cat([torch.zeros(5, 1, dtype=torch.float64), steps.cumsum(dim=1)], dim=1)
    given = Given(45)
    mask = keep_best_cells(gains, widths, rows, torch.tensor([4]), given)  # pyright: ignore[reportArgumentType]
    spent = given.num_bytes(mask)
    assert spent <= 45

    def worth(choice: tuple[int, ...]) -> tuple[float, int]:
        chosen = torch.zeros(8, dtype=torch.int64)
        chosen[rows] = widths[list(choice)]
        gain = sum(float(gains[row, number]) for row, number in enumerate(choice))
        return gain, given.num_bytes(Mask(chosen, mask.slot_widths))

    numbers = [widths.tolist().index(width) for width in mask.row_widths[rows].tolist()]
    found, _ = worth(tuple(numbers))
    best = max(gain for gain, size in map(worth, product(range(3), repeat=5)) if size <= spent)
    assert found == pytest.approx(best)


def test_all_that_is_worth_anything_is_kept_where_it_fits():
    gains = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    mask = keep_best_cells(gains, torch.tensor([0, 2, 4]), torch.tensor([1, 2]), torch.tensor([4]), Given(1000))  # pyright: ignore[reportArgumentType]
    assert mask.row_widths.tolist() == [0, 2, 0, 0, 0, 0, 0, 0]


def test_rotated_rows_are_kept_whole_or_not_at_all():
    """The file of opq4 rows has no other widths; rows go by what all their columns are worth."""
    widths, rows = torch.tensor([0, 4, 8, 16]), torch.arange(60)
    gains = torch.arange(60, dtype=torch.float64)[:, None] * torch.tensor([0.0, 9.0, 10.0, 11.0]).double()
    slots = [[(row, 1) for row in range(60)]]
    full = context_of(slots, 60, 10**6, "opq4")
    whole = full.num_bytes(Mask.full(full.layout))
    given = context_of(slots, 60, whole - 20 * 8, "opq4")
    mask = keep_best_cells(gains, widths, rows, torch.tensor([16]), given)
    kept = mask.row_widths.nonzero().flatten().tolist()
    assert set(mask.row_widths.tolist()) == {0, 16}
    assert 0 < len(kept) < 60
    assert kept == list(range(60))[-len(kept) :]
    assert given.num_bytes(mask) <= given.budget.num_bytes


def test_a_budget_below_an_empty_table_is_refused():
    given = Given(5)
    given.num_bytes = lambda mask: 10 + int(mask.row_widths.sum())
    gains = torch.ones(1, 2, dtype=torch.float64).cumsum(dim=1) - 1
    with pytest.raises(InputError, match="5 bytes are too few; found 10"):
        keep_best_rows(torch.ones(8), given)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="5 bytes are too few; found 10"):
        keep_best_cells(gains, torch.tensor([0, 4]), torch.tensor([1]), torch.tensor([4]), given)  # pyright: ignore[reportArgumentType]
