"""A made-up PruningContext: a table, and the lookups of its rows by slot."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from features.layout import TableLayout
from recsys.compression import Budget, PruningContext, SlotLookups
from recsys.embedding.mask import Mask
from serving.bundle.table_plan import table_bytes

WIDTH = 16


def context_of(
    slots: list[list[tuple[int, int]]], num_rows: int, num_bytes: int, dtype: Any = "fp32"
) -> PruningContext:
    """For a table whose slots look up these (row, count) pairs."""
    views = {"main": {f"f{number}": 1 for number in range(len(slots))}}
    layout = TableLayout(
        num_rows=num_rows, width=WIDTH, seed=0, views=views, keys={name: name for name in views["main"]}, pooling={}
    )
    table = torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(1))
    ranker: Any = SimpleNamespace(embedding=SimpleNamespace(layout=layout, table=table))
    reads = [
        SlotLookups(*(torch.tensor([pair[k] for pair in slot], dtype=torch.int64) for k in (0, 1))) for slot in slots
    ]
    nothing: Any = None

    def measured(mask: Mask) -> int:
        return table_bytes(num_rows, WIDTH, dtype, mask.row_widths.numpy())

    return PruningContext(ranker, reads, nothing, nothing, measured, Budget(num_bytes, dtype), seed=1, directory=Path())
