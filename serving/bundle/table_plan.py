"""Plan of a table file: cuts the columns into blocks at the fewest bytes, which are known before writing.

M table rows, w row width, K rows of a block.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.errors import InputError
from serving.bundle.quantize import NUM_CODES, ROTATED_BITS, VALUES_PER_BYTE, TableDtype
from serving.bundle.row_sets import stored_form
from serving.bundle.tensors import NUMPY_DTYPES, Shapes, file_bytes

CODE_BITS: dict[TableDtype, int] = {**{dtype: 8 // size for dtype, size in VALUES_PER_BYTE.items()}, **ROTATED_BITS}
"""Bits per value of the types whose rows are codes of one byte each."""
STORED_DTYPES: dict[TableDtype, str] = {"fp32": "F32", "fp16": "F16", **dict.fromkeys(CODE_BITS, "U8")}
BITMAP, POSITIONS = "kept_rows", "kept_positions"
_ENTRY_BYTES = 75  # header bytes per tensor, about: its name, shape and offsets


class Block(NamedTuple):
    """Some columns of the rows that are wider than `start`, or of all M rows."""

    start: int
    stop: int
    num_rows: int
    num_candidates: int
    """Rows of the block before, or M; where they are not more than K there is no row set."""


class Plan(NamedTuple):
    """Content of a table file."""

    num_rows: int
    width: int
    dtype: TableDtype
    is_compact: bool
    """True if it may have forms that readers of format version 1 do not know."""
    blocks: tuple[Block, ...]

    def shapes(self, *, has_trained_rows: bool) -> Shapes:
        """The tensors of the file; wide elements come first, so that rows are aligned."""
        shapes: Shapes = {}
        if self.dtype in VALUES_PER_BYTE:
            shapes["codebook"] = ("F16", [NUM_CODES, VALUES_PER_BYTE[self.dtype]])
        if self.dtype in ROTATED_BITS:
            shapes["codebook"] = ("F16", [NUM_CODES, self.width])
            shapes["rotation"] = ("F16", [self.width, self.width])
            shapes["groups"] = ("U16", [stored_columns(self.dtype, self.width)])
        for number, block in enumerate(self.blocks):
            columns = stored_columns(self.dtype, block.stop - block.start)
            shapes[numbered("rows", number)] = (STORED_DTYPES[self.dtype], [block.num_rows, columns])
        if [block.stop for block in self.blocks] != [self.width]:
            shapes["columns"] = ("U16", [len(self.blocks)])
        for number, block in enumerate(self.blocks):
            if block.num_rows < block.num_candidates:
                is_sparse, num_bytes = self.set_form(block)
                shapes[numbered(POSITIONS if is_sparse else BITMAP, number)] = ("U8", [num_bytes])
        if has_trained_rows:
            shapes["trained_rows"] = ("U8", [math.ceil(self.num_rows / 8)])
        return shapes

    def set_form(self, block: Block) -> tuple[bool, int]:
        """True if a block's row set is written as positions, and its bytes."""
        if self.is_compact:
            return stored_form(block.num_rows, block.num_candidates)
        return False, math.ceil(block.num_candidates / 8)


def numbered(name: str, number: int) -> str:
    """Name of a tensor of a block; the first block's has no number.

    >>> numbered("rows", 0), numbered("rows", 2)
    ('rows', 'rows.2')
    """
    return name if number == 0 else f"{name}.{number}"


def stored_columns(dtype: TableDtype, columns: int) -> int:
    """Elements in the file for this number of columns of a row.

    >>> stored_columns("fp16", 5), stored_columns("int4", 5), stored_columns("opq3", 16)
    (5, 3, 6)
    """
    return -(-columns * CODE_BITS[dtype] // 8) if dtype in CODE_BITS else columns


def plan_table(histogram: npt.NDArray[np.int64], width: int, dtype: TableDtype, *, is_compact: bool) -> Plan:
    """The plan for a table, given the number of rows [w + 1] by how many of their columns are to be stored.

    Without `is_compact` the format is that of version 1: all columns, with or without a bitmap of the rows.
    """
    num_rows = int(histogram.sum())
    if not is_compact:
        num_stored, row_bytes = num_rows - int(histogram[0]), width * NUMPY_DTYPES[STORED_DTYPES[dtype]].itemsize
        if (num_rows - num_stored) * row_bytes <= 2 * math.ceil(num_rows / 8):
            num_stored = num_rows
        return Plan(num_rows, width, dtype, is_compact, (Block(0, width, num_stored, num_rows),))
    edges = np.append(0, np.flatnonzero(histogram[1:]) + 1)
    if dtype in ROTATED_BITS and edges.tolist() not in ([0], [0, width]):
        found, remedy = f"rows of {edges[1]} of {width}", "use int4 or int2, or prune whole rows"
        raise InputError(f"{dtype} rows are stored with all their columns", found=found, remedy=remedy)
    if len(edges) == 1:  # no row at all
        return Plan(num_rows, width, dtype, is_compact, (Block(0, width, 0, num_rows),))
    wider = num_rows - np.cumsum(histogram)[edges]  # rows that go on after each edge
    best, following = _cheapest(edges, wider, dtype)
    # The same with all M rows in the first block.
    whole = np.append(num_rows, wider[1:])
    best_whole, following_whole = _cheapest(edges, whole, dtype)
    if best_whole[0] <= best[0] + _ENTRY_BYTES + stored_form(int(wider[0]), num_rows)[1]:
        wider, following = whole, following_whole
    blocks, edge, num_candidates = [], 0, num_rows
    while edge < len(edges) - 1:
        after = int(following[edge])
        blocks.append(Block(int(edges[edge]), int(edges[after]), int(wider[edge]), num_candidates))
        edge, num_candidates = after, int(wider[edge])
    return Plan(num_rows, width, dtype, is_compact, tuple(blocks))


def _cheapest(
    edges: npt.NDArray[np.int64], wider: npt.NDArray[np.int64], dtype: TableDtype
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Least bytes from each edge to the last, for rows that go on after it, and the edge where its block then stops.

    From the last edge backwards: a block to edge f, then a row set and the best of what follows f. Rows whose last
    column is inside of a block hold zeros there. Codes cannot do that where the row ends inside of a byte, so such an
    edge has to be a block's.
    """
    num_edges, size = len(edges), VALUES_PER_BYTE.get(dtype, 1)
    best, following = np.zeros(num_edges), np.zeros(num_edges, dtype=np.int64)
    bytes_each = NUMPY_DTYPES[STORED_DTYPES[dtype]].itemsize
    for edge in range(num_edges - 2, -1, -1):
        columns = edges[edge + 1 :] - edges[edge]
        inside_a_byte = np.flatnonzero(columns % size)
        last = int(inside_a_byte[0]) + 1 if len(inside_a_byte) else len(columns)
        stored = np.array([stored_columns(dtype, count) for count in columns[:last].tolist()])
        costs = wider[edge] * stored * bytes_each + best[edge + 1 :][:last]
        for place in range(min(last, len(columns) - 1)):
            costs[place] += 2 * _ENTRY_BYTES + stored_form(int(wider[edge + 1 + place]), int(wider[edge]))[1]
        following[edge] = edge + 1 + int(costs.argmin())
        best[edge] = costs.min()
    return best, following


def table_bytes(
    num_rows: int,
    width: int,
    dtype: TableDtype,
    row_widths: npt.NDArray[np.integer] | None = None,
    *,
    num_kept: int | None = None,
    has_trained_rows: bool = False,
) -> int:
    """Exact size of the file that `write_table` would make, without the values.

    `row_widths` [M]: as there, and 0 for a row of zeros; else `num_kept` rows of all columns and the rest zeros, where
    None means all. `has_trained_rows`: whether the file will say which rows training read. One that may have new forms
    leaves that out where all stored rows are such, so there it is true only if an untrained row is stored.

    >>> table_bytes(1000, 16, "fp32") - table_bytes(900, 16, "fp32")
    6400
    """
    if row_widths is None:
        kept = num_rows if num_kept is None else num_kept
        histogram = np.zeros(width + 1, dtype=np.int64)
        histogram[[0, width]] = num_rows - kept, kept
    else:
        assert row_widths.shape == (num_rows,)
        histogram = np.bincount(row_widths, minlength=width + 1)
    is_compact = row_widths is not None or dtype in CODE_BITS
    plan = plan_table(histogram, width, dtype, is_compact=is_compact)
    return file_bytes(plan.shapes(has_trained_rows=has_trained_rows))
