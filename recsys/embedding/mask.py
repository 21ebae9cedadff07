"""Mask: the cells of the table that are kept, and the gate that applies it to what a model reads.

M table rows, w row width, S slots, n lookups of a batch, W = S * w output columns.

Each row keeps a prefix of its cells and each slot reads a prefix of every row, so that all kinds of pruning end as two
lists of widths: a removed row has width 0, and so has a removed probe or feature.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from features.errors import InputError
from features.layout import TableLayout
from recsys import checkpoint


class Reads(NamedTuple):
    """The lookups of a batch: the row, the slot that reads it, and the example it is read for."""

    rows: Tensor
    """[n] int64."""
    slots: Tensor
    """[n] int64, positions in the layout."""
    examples: Tensor
    """[n] int64, positions in the batch."""


class Mask(NamedTuple):
    """Kept columns: of row r, slot s reads the first min(row_widths[r], slot_widths[s]).

    >>> layout = TableLayout(num_rows=3, width=2, seed=0, views={"main": {"a": 1}}, keys={"a": "a"}, pooling={})
    >>> Mask.full(layout).row_widths.tolist(), Mask.full(layout).slot_widths.tolist()
    ([2, 2, 2], [2])
    """

    row_widths: Tensor
    """[M] int64: columns of each row that are stored."""
    slot_widths: Tensor
    """[S] int64: columns that each slot reads."""

    @staticmethod
    def full(layout: TableLayout) -> "Mask":
        """The mask that keeps everything."""
        return Mask(
            torch.full((layout.num_rows,), layout.width, dtype=torch.int64),
            torch.full((len(layout.slots),), layout.width, dtype=torch.int64),
        )

    @property
    def num_rows_kept(self) -> int:
        """Rows of which at least one cell is stored."""
        return int((self.row_widths > 0).sum())

    @property
    def num_cells(self) -> int:
        """Floats that are stored."""
        return int(self.row_widths.sum())

    def columns(self, width: int) -> Tensor:
        """1 for each output column [W] that its slot reads, else 0, float32."""
        return (torch.arange(width) < self.slot_widths[:, None]).float().flatten()

    def apply(self, table: Tensor) -> None:
        """Zero the removed cells of a table [M, w] in place."""
        with torch.no_grad():
            table.mul_(torch.arange(table.shape[1]) < self.row_widths[:, None])

    def check(self, layout: TableLayout) -> "Mask":
        """Itself; raises `InputError` for the mask of another table."""
        expected = {"row_widths": [layout.num_rows], "slot_widths": [len(layout.slots)]}
        found = {name: list(widths.shape) for name, widths in self._asdict().items()}
        wrong = any(bool(((widths < 0) | (widths > layout.width)).any()) for widths in self)
        if found != expected or wrong:
            remedy = "restore the run's own mask.safetensors"
            raise InputError(f"expected a mask of {expected}, up to {layout.width}", found=str(found), remedy=remedy)
        return self


class Gate(nn.Module):
    """Masks or scales the values between the table and the network, at O(batch) per step.

    What a gate learns is a buffer rather than a parameter, as the network's Adam must not train it.
    """

    def forward(self, values: Tensor, reads: Reads) -> Tensor:
        """Values [n, w] of the rows that were read to values [n, w] for the network."""
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """A scalar to add to the training loss; None by default."""
        return None


class MaskGate(Gate):
    """Applies a mask: removed cells read as 0 and get no gradient.

    >>> gate = MaskGate(Mask(torch.tensor([2, 1, 0]), torch.tensor([2, 1])))
    >>> reads = Reads(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, 1, 2]))
    >>> gate(torch.ones(4, 2), reads).tolist()
    [[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    """

    row_widths: Tensor
    slot_widths: Tensor

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        # Not in the state: a run has its mask in a separate file, and its weights stay readable without it.
        self.register_buffer("row_widths", mask.row_widths, persistent=False)
        self.register_buffer("slot_widths", mask.slot_widths, persistent=False)

    @property
    def mask(self) -> Mask:
        """The mask of both widths."""
        return Mask(self.row_widths, self.slot_widths)

    def forward(self, values: Tensor, reads: Reads) -> Tensor:
        """Zero the removed cells of values [n, w]."""
        widths = torch.minimum(self.row_widths[reads.rows], self.slot_widths[reads.slots])
        kept = torch.arange(values.shape[1], device=values.device) < widths[:, None]
        return values * kept


def save_mask(path: Path, mask: Mask) -> None:
    """Write row widths [M] and slot widths [S], whole or not at all."""
    small = {name: widths.to(torch.int16) for name, widths in mask._asdict().items()}
    checkpoint.save_state(path, small, {"version": 1})


def load_mask(path: Path) -> Mask:
    """Read what `save_mask` wrote; raises `InputError` for a damaged file."""
    tensors, _ = checkpoint.load_state(path)
    try:
        return Mask(tensors["row_widths"].long(), tensors["slot_widths"].long())
    except KeyError as error:
        raise checkpoint.damaged(path, error) from None
