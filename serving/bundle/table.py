"""table.safetensors: the format of the embedding rows, their writer, and a memory-mapped reader.

A row may store only a prefix of its columns, or nothing; columns that are not stored read as 0. So the columns are cut
into blocks (`serving.bundle.table_plan`): the first block holds the first columns of all rows that store any, the next
block the columns that follow, of those among these rows that are wider, and so on. A row set
(`serving.bundle.row_sets`) says which rows a block holds. A table without prefixes is one block of all columns.

M table rows, K rows of a block, b columns of a block, w row width, N rows asked for.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from features.hashing import Rows
from features.layout import TableLayout
from serving.bundle import quantize, row_sets
from serving.bundle.quantize import NUM_CODES, ROTATED_BITS, VALUES_PER_BYTE, Floats, SharedCodebook, TableDtype
from serving.bundle.rotated import MAX_WIDTH, RotatedCodebooks
from serving.bundle.row_sets import Bitmap, Flags, RankedBitmap, RowSet
from serving.bundle.table_plan import (
    BITMAP,
    CODE_BITS,
    POSITIONS,
    STORED_DTYPES,
    Block,
    Plan,
    numbered,
    plan_table,
    stored_columns,
)
from serving.bundle.tensors import NUMPY_DTYPES, fault, header, map_tensors, take

RowWidths = npt.NDArray[np.integer]
Coder = SharedCodebook | RotatedCodebooks
_CHUNK_ROWS = 65_536


def write_table(
    path: Path,
    table: npt.NDArray[Any],
    dtype: TableDtype,
    trained_rows: Bitmap | None = None,
    row_widths: RowWidths | None = None,
    coder: Coder | None = None,
) -> None:
    """Write rows [M, w] some at a time, so that a table near the size of memory needs no second copy.

    `row_widths` [M]: number of first columns of each row that are stored, 0 to w. The others read as 0, even if the
    table has other values there. Rows of zeros are left out where that makes the file smaller. `trained_rows`
    [ceil(M / 8)]: bitmap of the rows that training read; without widths fp32 and fp16 files hold it as it is, other
    files only where it says more than which rows are stored. `coder` is what `learn_coder` gives for this table; None:
    learned here. Raises `InputError` for values that the type cannot hold.
    """
    source = _Source.of(table, dtype, row_widths, coder)
    plan = source.plan
    if trained_rows is not None and plan.is_compact:
        is_trained = np.unpackbits(trained_rows, count=plan.num_rows, bitorder="little").astype(np.bool_)
        if is_trained[source.is_stored(plan.blocks[0])].all():
            trained_rows = None
    shapes = plan.shapes(has_trained_rows=trained_rows is not None)
    with path.open("wb") as file:
        file.write(header(shapes))
        if source.coder is not None:
            for tensor in source.coder.tensors():
                file.write(tensor.astype(tensor.dtype.newbyteorder("<")).tobytes())
        for block in plan.blocks:
            for _, values in source.values(block):
                file.write(source.stored(values).tobytes())
        if "columns" in shapes:
            file.write(np.array([block.stop - block.start for block in plan.blocks], dtype="<u2").tobytes())
        for block in plan.blocks:
            file.write(source.row_set(block).tobytes())
        file.write(b"" if trained_rows is None else trained_rows.tobytes())
        file.flush()
        os.fsync(file.fileno())


def learn_coder(table: npt.NDArray[Any], dtype: TableDtype, row_widths: RowWidths | None = None) -> Coder | None:
    """Codebook of a table [M, w] for types that store codes; None for the others. To learn it is the slow part."""
    return _Source.of(table, dtype, row_widths).coder


def quantized_rows(
    table: npt.NDArray[Any], dtype: TableDtype, row_widths: RowWidths | None = None, coder: Coder | None = None
) -> Floats:
    """Rows [M, w] as a reader of the written table will see them; raises `InputError` as `write_table` does.

    >>> quantized_rows(np.array([[1.0, -0.5], [0.25, 3.0]]), "fp16", np.array([2, 1])).tolist()
    [[1.0, -0.5], [0.25, 0.0]]
    """
    source = _Source.of(table, dtype, row_widths, coder)
    served = np.zeros(table.shape, dtype=np.float32)
    for block in source.plan.blocks:
        for rows, values in source.values(block):
            served[rows, block.start : block.stop] = _as_floats(source.stored(values), source.coder, values.shape[1])
    return served


class _Source(NamedTuple):
    """A table, with the decisions that are made before it is written."""

    table: npt.NDArray[Any]
    widths: npt.NDArray[np.integer]
    """Columns of each row that are stored [M]; 0 for a row of zeros."""
    plan: Plan
    coder: Coder | None
    """Only for rows of codes."""

    @staticmethod
    def of(
        table: npt.NDArray[Any], dtype: TableDtype, row_widths: RowWidths | None, coder: Coder | None = None
    ) -> "_Source":
        widths = _stored_widths(table, row_widths)
        is_compact = row_widths is not None or dtype in CODE_BITS
        histogram = np.bincount(widths, minlength=table.shape[1] + 1)
        source = _Source(table, widths, plan_table(histogram, table.shape[1], dtype, is_compact=is_compact), coder)
        return source._replace(coder=source.learned()) if dtype in CODE_BITS and coder is None else source

    def is_stored(self, block: Block) -> Flags:
        """Flags of the rows [M] that a block holds."""
        is_whole = block.start == 0 and block.num_rows == self.plan.num_rows
        return np.ones(self.plan.num_rows, dtype=np.bool_) if is_whole else self.widths > block.start

    def values(self, block: Block, only: Flags | None = None) -> Iterator[tuple[Rows, Floats]]:
        """Chunks of the rows [n] of a block (those flagged in `only` [M]) and their values [n, b].

        Values are 0 beyond the width of a row. Raises `InputError` for values that the type cannot hold.
        """
        is_stored = self.is_stored(block) if only is None else self.is_stored(block) & only
        for start in range(0, self.plan.num_rows, _CHUNK_ROWS):
            rows = start + np.flatnonzero(is_stored[start : start + _CHUNK_ROWS])
            values = self.table[rows, block.start : block.stop].astype(np.float32)
            values[np.arange(block.start, block.stop) >= self.widths[rows, None]] = 0
            quantize.check_values(values, self.plan.dtype)
            yield rows, values

    def stored(self, values: Floats) -> npt.NDArray[Any]:
        """Values [n, b] as the file holds them."""
        if self.coder is not None:
            return self.coder.encode(values)
        return values.astype(NUMPY_DTYPES[STORED_DTYPES[self.plan.dtype]], copy=False)

    def row_set(self, block: Block) -> Bitmap:
        """The candidates that a block holds, as bytes of the file; empty if it holds all."""
        if block.num_rows == block.num_candidates:
            return np.zeros(0, dtype=np.uint8)
        flags = self.is_stored(block)
        for before in self.plan.blocks:
            if before.stop == block.start:
                flags = flags[self.is_stored(before)]
        is_sparse, _ = self.plan.set_form(block)
        return row_sets.encode_positions(flags) if is_sparse else row_sets.pack_bits(flags)

    def learned(self) -> Coder:
        """The coder of the stored values, learned from a sample of the rows if there are many."""
        block = self.plan.blocks[0]
        if self.plan.dtype in ROTATED_BITS:
            rows = np.concatenate([values for _, values in self.values(block, self._sample(block.num_rows))])
            return RotatedCodebooks.learn(rows, stored_columns(self.plan.dtype, self.plan.width))
        size = VALUES_PER_BYTE[self.plan.dtype]
        num_groups = sum(block.num_rows * -(-(block.stop - block.start) // size) for block in self.plan.blocks)
        sample = np.concatenate(list(self._groups(size, self._sample(num_groups))))
        few = quantize.distinct(sample)
        for groups in self._groups(size):  # a table that was rounded before must keep all entries of its codebook
            if len(few) >= NUM_CODES:
                break
            few = quantize.distinct(np.concatenate([few, groups]))
        return SharedCodebook(quantize.learn_codebook(few if len(few) < NUM_CODES else sample))

    def _sample(self, num_groups: int) -> Flags:
        """Flags of sampled rows [M] that have about `SAMPLE_GROUPS` of all groups."""
        if num_groups <= quantize.SAMPLE_GROUPS:
            return np.ones(self.plan.num_rows, dtype=np.bool_)
        stored = np.flatnonzero(self.is_stored(self.plan.blocks[0]))
        count = max(1, len(stored) * quantize.SAMPLE_GROUPS // num_groups)
        sampled = np.zeros(self.plan.num_rows, dtype=np.bool_)
        sampled[np.random.default_rng(0).choice(stored, count, replace=False)] = True
        return sampled

    def _groups(self, size: int, only: Flags | None = None) -> Iterator[Floats]:
        for block in self.plan.blocks:
            for _, values in self.values(block, only):
                yield quantize.groups_of(values, size).reshape(-1, size)


def _stored_widths(table: npt.NDArray[Any], row_widths: RowWidths | None) -> npt.NDArray[np.integer]:
    """Columns of each row to store [M]: as given, but 0 for a row of zeros."""
    num_rows, width = table.shape
    if row_widths is None:
        return np.where(table.any(axis=1), width, 0)
    assert row_widths.shape == (num_rows,)
    assert row_widths.min(initial=0) >= 0
    assert row_widths.max(initial=0) <= width
    widths = row_widths.copy()
    for start in range(0, num_rows, _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        has_values = ((table[chunk] != 0) & (np.arange(width) < widths[chunk, None])).any(axis=1)
        widths[chunk][~has_values] = 0
    return widths


def _as_floats(stored: npt.NDArray[Any], coder: Coder | None, width: int) -> Floats:
    return stored.astype(np.float32, copy=False) if coder is None else coder.decode(stored, width)


class _StoredBlock(NamedTuple):
    start: int
    stop: int
    row_set: RowSet | None
    """None: all candidates."""
    rows: npt.NDArray[Any]
    """[K, b] floats or int8, or codes [K, ceil(b / c)]; on the disk."""


class StoredTable:
    """The rows of a bundle, read from the disk when they are needed; raises `InputError` for a damaged file."""

    def __init__(self, path: Path, layout: TableLayout, dtype: TableDtype) -> None:
        self.num_rows, self.width = layout.num_rows, layout.width
        tensors = map_tensors(path)
        found = ", ".join(sorted(tensors)) or "none"
        stored_dtype, partners = STORED_DTYPES[dtype], {"codebook"} if dtype in CODE_BITS else set()
        if dtype in ROTATED_BITS:
            partners |= {"rotation", "groups"}
        if dtype == "int8" and "scale" in tensors:  # format version 1: integers, and a scale per row
            stored_dtype, partners = "I8", {"scale"}
        expected = fault(path, f"tensors {', '.join(sorted({'rows'} | partners))} for {dtype}", found)
        if not {"rows"} | partners <= set(tensors):
            raise expected
        self._coder = _read_coder(path, tensors, dtype, self.width) if "codebook" in partners else None
        self._blocks: list[_StoredBlock] = []
        start, num_candidates = 0, self.num_rows
        for number, columns in enumerate(_columns(path, tensors, self.width)):
            if numbered("rows", number) not in tensors:
                raise expected
            row_set = _read_row_set(path, tensors, number, num_candidates)
            num_candidates = num_candidates if row_set is None else row_set.count
            shape = (num_candidates, stored_columns(dtype, columns))
            rows = take(path, tensors, numbered("rows", number), shape, stored_dtype)
            self._blocks.append(_StoredBlock(start, start + columns, row_set, rows))
            start += columns
        self.num_stored = len(self._blocks[0].rows)
        """Rows that have any column stored."""
        self._scale = take(path, tensors, "scale", (self.num_stored,), "F32", "F16") if "scale" in partners else None
        self._trained_rows: Bitmap | None = None
        if "trained_rows" in tensors:
            self._trained_rows = take(path, tensors, "trained_rows", (-(-self.num_rows // 8),), "U8")
        is_whole = [block.stop for block in self._blocks] == [self.width]
        if tensors or (not is_whole and (self._scale is not None or dtype in ROTATED_BITS)):
            raise expected

    def gather(self, rows: Rows) -> Floats:
        """Rows [N] of the table as float32 [N, w]; what is not stored is 0."""
        first = self._blocks[0]
        if first.row_set is None and first.stop == self.width:
            return self._read(first, rows)
        values = np.zeros((len(rows), self.width), dtype=np.float32)
        places, ranks = np.arange(len(rows)), rows
        for block in self._blocks:
            if block.row_set is not None:
                is_stored, ranks = block.row_set.rank(ranks)
                places, ranks = places[is_stored], ranks[is_stored]
            values[places, block.start : block.stop] = self._read(block, ranks)
        return values

    def is_trained(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Flags of the rows [N] that a training example read.

        If the bundle has no bitmap of trained rows, a row counts as read if it is stored. A row that is not stored
        was never read, or was pruned entirely.
        """
        if self._trained_rows is not None:
            return (self._trained_rows[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1 == 1
        row_set = self._blocks[0].row_set
        return np.ones(len(rows), dtype=np.bool_) if row_set is None else row_set.rank(rows)[0]

    def _read(self, block: _StoredBlock, ranks: Rows) -> Floats:
        values = _as_floats(block.rows.take(ranks, axis=0), self._coder, block.stop - block.start)
        return values if self._scale is None else values * self._scale[ranks].astype(np.float32)[:, None]


def _read_coder(path: Path, tensors: dict[str, npt.NDArray[Any]], dtype: TableDtype, width: int) -> Coder:
    if dtype in VALUES_PER_BYTE:
        return SharedCodebook(take(path, tensors, "codebook", (NUM_CODES, VALUES_PER_BYTE[dtype]), "F16"))
    if width > MAX_WIDTH:
        raise fault(path, f"{dtype} rows of up to {MAX_WIDTH} columns", str(width))
    codebook = take(path, tensors, "codebook", (NUM_CODES, width), "F16")
    rotation = take(path, tensors, "rotation", (width, width), "F16")
    sizes = take(path, tensors, "groups", (stored_columns(dtype, width),), "U16").astype(np.int64)
    if sizes.min() == 0 or sizes.sum() != width:
        raise fault(path, f"groups that add up to {width}", f"{sizes.tolist()}"[:100])
    return RotatedCodebooks(codebook, rotation, sizes.tolist())


def _columns(path: Path, tensors: dict[str, npt.NDArray[Any]], width: int) -> list[int]:
    """Columns of each block."""
    if "columns" not in tensors:
        return [width]
    content = tensors["columns"]
    columns = take(path, tensors, "columns", (min(len(content), width),), "U16").astype(np.int64)
    if len(columns) == 0 or columns.min() == 0 or columns.sum() > width:
        raise fault(path, f"columns of blocks that add up to {width} at most", f"{columns.tolist()}"[:100])
    return columns.tolist()


def _read_row_set(path: Path, tensors: dict[str, npt.NDArray[Any]], number: int, num_candidates: int) -> RowSet | None:
    """The candidates that a block holds; None: all."""
    positions, bitmap = numbered(POSITIONS, number), numbered(BITMAP, number)
    if positions in tensors:
        content = take(path, tensors, positions, (len(tensors[positions]),), "U8")
        count = len(tensors[numbered("rows", number)])
        members = row_sets.decode_positions(path, positions, content, count, num_candidates)
        return row_sets.row_set_of(members, num_candidates)
    if bitmap in tensors:
        return RankedBitmap(take(path, tensors, bitmap, (-(-num_candidates // 8),), "U8"))
    return None
