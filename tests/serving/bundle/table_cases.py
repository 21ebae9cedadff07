"""Tables to store, of every shape, and what of them is to be stored."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from serving.bundle.row_sets import pack_bits
from serving.bundle.table import StoredTable, write_table
from tests.serving.conftest import LAYOUT

DTYPES = ["fp32", "fp16", "int8", "int4", "int2", "int1", "opq4", "opq3", "opq2", "opq1"]


class Case(NamedTuple):
    """A table, and which of it is to be stored."""

    dtype: Any
    table: np.ndarray
    row_widths: np.ndarray | None
    trained: np.ndarray | None

    @property
    def layout(self) -> Any:
        num_rows, width = self.table.shape
        return LAYOUT.model_copy(update={"num_rows": num_rows, "width": width})

    @property
    def kept(self) -> np.ndarray:
        """True if each cell [M, w] is to be kept."""
        num_rows, width = self.table.shape
        widths = np.full(num_rows, width) if self.row_widths is None else self.row_widths
        return np.arange(width) < widths[:, None]

    @property
    def stored_widths(self) -> np.ndarray:
        """Columns that are worth storing [M]: rows of zeros are not."""
        has_values = (self.kept & (self.table != 0)).any(axis=1)
        return np.where(has_values, self.kept.sum(axis=1), 0)

    def write(self, path: Path) -> StoredTable:
        trained = None if self.trained is None else pack_bits(self.trained)
        write_table(path, self.table, self.dtype, trained, self.row_widths)
        return StoredTable(path, self.layout, self.dtype)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Tables of every shape: few or many rows, all or none of them stored, few or many different widths."""
    num_rows, width = draw(st.integers(1, 300)), draw(st.integers(1, 20))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = generator.normal(0, 0.3, (num_rows, width)).astype(np.float32)
    rows[generator.random(num_rows) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0
    row_widths = None
    dtype = draw(st.sampled_from(DTYPES))
    if draw(st.booleans()):
        widths = (
            [0, width] if dtype.startswith("opq") else draw(st.lists(st.integers(0, width), min_size=1, max_size=5))
        )
        row_widths = generator.choice(widths, num_rows)
        row_widths[generator.random(num_rows) < draw(st.sampled_from([0.0, 0.5, 0.97]))] = 0
    trained = generator.random(num_rows) < draw(st.sampled_from([0.5, 1.0])) if draw(st.booleans()) else None
    return Case(dtype, rows, row_widths, trained)
