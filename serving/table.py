"""table.safetensors: how the embedding rows are stored, their writer, and a memory-mapped reader.

M table rows, K stored rows (fewer than M where rows were pruned), w row width, N rows asked for. A bitmap holds bit r
in byte r // 8 at r % 8, the least significant bit first.
"""

import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from features.errors import InputError
from features.hashing import Rows
from features.layout import TableLayout

TableDtype = Literal["fp32", "fp16", "int8"]
Floats = npt.NDArray[np.float32]
Bitmap = npt.NDArray[np.uint8]

STORED_DTYPES: dict[str, str] = {"fp32": "F32", "fp16": "F16", "int8": "I8"}
MAX_HEADER_BYTES = 2**20  # 100 a tensor or so; a length from a damaged file must not become a large allocation
REMEDY = "the bundle is damaged: copy it again, or export it again"

_NUMPY_DTYPES = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "U64": np.dtype("<u8"),
}
_MAX_FP16 = float(np.finfo(np.float16).max)
_WRITE_ROWS = 65_536


class QuantizedRows(NamedTuple):
    """Rows as they are stored."""

    rows: npt.NDArray[Any]
    """[K, w] float32, float16 or int8."""
    scale: Floats | None
    """[K], for int8 alone: value = int8 * scale."""


def quantize_rows(table: npt.NDArray[Any], dtype: TableDtype) -> QuantizedRows:
    """Rows [K, w] in the stored type; int8 is symmetric, with a scale of its own for each row.

    The error of a value is at most scale / 2 = max|row| / 254 for int8, and 2^-11 of the value for fp16. Raises
    `InputError` for NaN, infinite values, and values that fp16 cannot hold.

    >>> quantize_rows(np.array([[1.0, -0.5]]), "int8").rows.tolist()
    [[127, -64]]
    """
    values = np.asarray(table, dtype=np.float32)
    largest = np.abs(values).max(axis=1, initial=0.0)
    if not np.isfinite(largest).all():
        row = int(np.flatnonzero(~np.isfinite(largest))[0])
        remedy = "the training diverged: lower trainer.learning_rate and train again"
        raise InputError("table rows must be finite numbers", found=f"{largest[row]} in a row", remedy=remedy)
    if dtype == "fp32":
        return QuantizedRows(values, None)
    if dtype == "fp16":
        if (largest > _MAX_FP16).any():
            raise InputError(
                f"fp16 rows hold up to {_MAX_FP16:.0f}", found=f"{largest.max():.6g}", remedy="use int8 or fp32"
            )
        return QuantizedRows(values.astype(np.float16), None)
    # The smallest normal float below: a scale in the subnormal range has few digits, and its row is zero for any use.
    scale = np.where(largest >= 127 * np.finfo(np.float32).tiny, largest / np.float32(127), np.float32(0))
    divisor = np.where(scale > 0, scale, np.float32(np.inf))
    return QuantizedRows(np.rint(values / divisor[:, None]).astype(np.int8), scale.astype(np.float32))


def dequantize(rows: npt.NDArray[Any], scale: npt.NDArray[Any] | None = None) -> Floats:
    """Stored rows [K, w] as float32; `scale` [K] where they are int8.

    >>> dequantize(np.array([[127, -64]], dtype=np.int8), np.array([0.5], dtype=np.float32)).tolist()
    [[63.5, -32.0]]
    """
    values = rows.astype(np.float32)
    return values if scale is None else values * scale.astype(np.float32)[:, None]


def pack_bits(flags: npt.NDArray[np.bool_]) -> Bitmap:
    """Flags [M] as a bitmap [ceil(M / 8)].

    >>> pack_bits(np.array([True, False, True])).tolist()
    [5]
    """
    return np.packbits(flags, bitorder="little")


def write_table(path: Path, table: npt.NDArray[Any], dtype: TableDtype, trained_rows: Bitmap | None = None) -> None:
    """Write rows [M, w] a block at a time, so that a table near the size of memory needs no second copy.

    Rows of zeros (pruned ones) are left out behind the bitmap `kept_rows` where that makes the file smaller.
    Raises `InputError` as `quantize_rows` does.
    """
    num_rows, width = table.shape
    kept = np.asarray(table.any(axis=1), dtype=np.bool_)
    row_bytes = width * _NUMPY_DTYPES[STORED_DTYPES[dtype]].itemsize + (4 if dtype == "int8" else 0)
    if (num_rows - int(kept.sum())) * row_bytes <= 2 * math.ceil(num_rows / 8):
        kept[:] = True
    num_stored = int(kept.sum())
    shapes: dict[str, tuple[str, list[int]]] = {"rows": (STORED_DTYPES[dtype], [num_stored, width])}
    if dtype == "int8":
        shapes = {"scale": ("F32", [num_stored]), **shapes}  # wider elements first keeps every tensor aligned
    bitmaps = {} if num_stored == num_rows else {"kept_rows": pack_bits(kept)}
    bitmaps |= {} if trained_rows is None else {"trained_rows": trained_rows}
    shapes |= {name: ("U8", [len(bitmap)]) for name, bitmap in bitmaps.items()}
    with path.open("wb") as file:
        file.write(header(shapes))
        if dtype == "int8":
            for block in _blocks(table, kept, dtype):
                assert block.scale is not None
                file.write(block.scale.astype("<f4").tobytes())
        for block in _blocks(table, kept, dtype):
            file.write(block.rows.astype(block.rows.dtype.newbyteorder("<"), copy=False).tobytes())
        for bitmap in bitmaps.values():
            file.write(bitmap.tobytes())
        file.flush()
        os.fsync(file.fileno())


def _blocks(table: npt.NDArray[Any], kept: npt.NDArray[np.bool_], dtype: TableDtype) -> Iterator[QuantizedRows]:
    for start in range(0, len(table), _WRITE_ROWS):
        block = slice(start, start + _WRITE_ROWS)
        yield quantize_rows(table[block][kept[block]], dtype)


def header(shapes: dict[str, tuple[str, list[int]]]) -> bytes:
    """How a safetensors file of these tensors starts: name to (type, shape), in the order in which they follow."""
    entries: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + math.prod(shape) * _NUMPY_DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class StoredTable:
    """The rows of a bundle, read from the disk as they are asked for; raises `InputError` for a damaged file."""

    def __init__(self, path: Path, layout: TableLayout, dtype: TableDtype) -> None:
        self.num_rows = layout.num_rows
        tensors = map_tensors(path)
        _check_tensors(path, tensors, layout, dtype)
        self.rows = tensors["rows"]
        """[K, w], as stored."""
        self.scale = tensors.get("scale")
        """[K], for int8 alone."""
        self.trained_rows = tensors.get("trained_rows")
        """Bitmap of the rows that a training example read [ceil(M / 8)], where the exporter gave one."""
        self._kept = None if "kept_rows" not in tensors else _RankedBitmap(tensors["kept_rows"])
        num_stored = self.num_rows if self._kept is None else self._kept.count
        if len(self.rows) != num_stored:
            raise fault(path, f"{num_stored} stored rows", f"{len(self.rows)}")

    def gather(self, rows: Rows) -> Floats:
        """Rows [N] of the table as float32 [N, w]; pruned rows are zeros."""
        if self._kept is None:
            return self._stored(rows)
        is_kept, ranks = self._kept.rank(rows)
        values = np.zeros((len(rows), self.rows.shape[1]), dtype=np.float32)
        values[is_kept] = self._stored(ranks[is_kept])
        return values

    def is_trained(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Whether a training example read each of the rows [N]; all true where the bundle does not say."""
        if self.trained_rows is None:
            return np.ones(len(rows), dtype=np.bool_)
        return (self.trained_rows[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1 == 1

    def _stored(self, ranks: Rows) -> Floats:
        scale = None if self.scale is None else self.scale[ranks]
        values = self.rows.take(ranks, axis=0)
        return values if values.dtype == np.float32 else dequantize(values, scale)


class _RankedBitmap:
    """A bitmap that answers "is bit r set, and how many are set before it" without a table of M entries."""

    def __init__(self, bitmap: Bitmap) -> None:
        self._words = np.pad(bitmap, (0, -len(bitmap) % 8)).view("<u8")
        counts = np.bitwise_count(self._words).astype(np.int64)
        self.count = int(counts.sum())
        self._before = np.cumsum(counts) - counts

    def rank(self, rows: Rows) -> tuple[npt.NDArray[np.bool_], Rows]:
        word, bit = self._words[rows >> 6], (rows & 63).astype(np.uint64)
        below = np.bitwise_count(word & ((np.uint64(1) << bit) - np.uint64(1)))
        return (word >> bit) & np.uint64(1) == 1, self._before[rows >> 6] + below


def map_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Views of a safetensors file's tensors; raises `InputError` before anything of a faulty header is believed."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise fault(path, f"a header of 2 to {MAX_HEADER_BYTES} bytes", f"{length} in a file of {size} bytes")
            entries = json.loads(file.read(length))
    except OSError as error:
        raise fault(path, "a readable file", error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise fault(path, "a header in JSON", str(error)[:100]) from None
    if not isinstance(entries, dict):
        raise fault(path, "a header of tensors", type(entries).__name__)
    entries.pop("__metadata__", None)
    data, tensors, covered = 8 + length, {}, 0
    for name, entry in entries.items():
        dtype, shape, begin, end = _entry(path, name, entry)
        if end > size - data:
            raise fault(path, f"at least {data + end} bytes", f"{size} (cut off?)")
        covered += end - begin
        if math.prod(shape) == 0:
            tensors[name] = np.zeros(shape, dtype=dtype)  # nothing to map
        else:
            tensors[name] = np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=data + begin, shape=shape))
    if covered != size - data:
        raise fault(path, f"{covered} bytes of tensors", f"{size - data}")
    return tensors


def _entry(path: Path, name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    try:
        dtype, shape = _NUMPY_DTYPES[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        numbers = (*shape, begin, end)
        if not all(type(number) is int and 0 <= number < 2**48 for number in numbers) or not 1 <= len(shape) <= 2:
            raise ValueError(f"{numbers}")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{end - begin} bytes")
    except (KeyError, TypeError, ValueError):
        raise fault(path, f"a sound entry for tensor {name!r}", repr(entry)[:120]) from None
    return dtype, shape, begin, end


def _check_tensors(path: Path, tensors: dict[str, npt.NDArray[Any]], layout: TableLayout, dtype: TableDtype) -> None:
    """Raise `InputError` unless the tensors are those of this layout and this stored type."""
    expected = {"rows", "scale"} if dtype == "int8" else {"rows"}
    names = set(tensors) - {"kept_rows", "trained_rows"}
    if names != expected:
        raise fault(path, f"tensors {', '.join(sorted(expected))} for {dtype}", ", ".join(sorted(tensors)) or "none")
    num_stored = layout.num_rows if "kept_rows" not in tensors else len(tensors["rows"])
    bitmap = (math.ceil(layout.num_rows / 8),)
    wanted: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
        "rows": ((num_stored, layout.width), (STORED_DTYPES[dtype],)),
        "scale": ((num_stored,), ("F32", "F16")),
        "kept_rows": (bitmap, ("U8",)),
        "trained_rows": (bitmap, ("U8",)),
    }
    for name, tensor in tensors.items():
        shape, dtypes = wanted[name]
        if tensor.shape != shape or tensor.dtype not in [_NUMPY_DTYPES[stored] for stored in dtypes]:
            found = f"{tensor.dtype} {list(tensor.shape)}"
            raise fault(path, f"tensor {name!r} to be {' or '.join(dtypes)} {list(shape)}", found)


def fault(path: Path, expected: str, found: str) -> InputError:
    """The error for a damaged file of a bundle."""
    return InputError(f"{path}: expected {expected}", found=found, remedy=REMEDY)
