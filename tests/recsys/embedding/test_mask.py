"""Masks: what they remove reads as zero and is not trained; they survive the disk, and belong to one table."""

import pytest
import torch

from features.errors import InputError
from features.layout import TableLayout
from recsys.embedding.mask import Mask, MaskGate, Reads, load_mask, save_mask

LAYOUT = TableLayout(num_rows=5, width=3, seed=1, views={"main": {"a": 2}}, keys={"a": "a"}, pooling={})
MASK = Mask(torch.tensor([3, 0, 2, 1, 3]), torch.tensor([3, 2]))


def test_a_gate_keeps_the_shorter_of_two_prefixes():
    rows, slots = torch.arange(5).repeat(2), torch.tensor([0] * 5 + [1] * 5)
    values = torch.rand(10, 3) + 1
    found = MaskGate(MASK)(values, Reads(rows, slots, torch.arange(10)))
    for read in range(10):
        kept = min(MASK.row_widths[rows[read]], MASK.slot_widths[slots[read]])
        for column in range(3):
            assert found[read, column] == (values[read, column] if column < kept else 0.0)


def test_o9_masked_cells_read_zero_and_get_no_gradient():
    values = torch.rand(5, 3, requires_grad=True)
    found = MaskGate(MASK)(values, Reads(torch.arange(5), torch.ones(5, dtype=torch.int64), torch.arange(5)))
    found.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 0], [1, 0, 0], [1, 1, 0]]
    assert bool((found[values.grad == 0] == 0).all())


def test_apply_zeroes_the_removed_cells_alone():
    table = torch.ones(5, 3)
    MASK.apply(table)
    assert table.sum(dim=1).tolist() == [3, 0, 2, 1, 3]
    assert (MASK.num_rows_kept, MASK.num_cells) == (4, 9)
    assert MASK.columns(3).tolist() == [1, 1, 1, 1, 1, 0]


def test_saved_masks_are_read_back(tmp_path):
    save_mask(tmp_path / "mask.safetensors", MASK)
    found = load_mask(tmp_path / "mask.safetensors")
    assert [widths.tolist() for widths in found] == [widths.tolist() for widths in MASK]
    found.check(LAYOUT)


@pytest.mark.parametrize(
    "mask",
    [
        Mask(torch.tensor([3, 0, 2, 1]), torch.tensor([3, 2])),
        Mask(torch.tensor([3, 0, 2, 1, 4]), torch.tensor([3, 2])),
        Mask(torch.tensor([3, 0, 2, 1, -1]), torch.tensor([3, 2])),
        Mask(torch.tensor([3, 0, 2, 1, 3]), torch.tensor([3])),
    ],
)
def test_the_mask_of_another_table_is_refused(mask):
    with pytest.raises(InputError, match="expected a mask"):
        mask.check(LAYOUT)


def test_a_damaged_mask_is_refused(tmp_path):
    path = tmp_path / "mask.safetensors"
    path.write_bytes(b"no mask")
    with pytest.raises(InputError, match=r"mask\.safetensors"):
        load_mask(path)
