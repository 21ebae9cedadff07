"""Files of tensors in the safetensors format: their headers, and memory-mapped views of their tensors.

A header of JSON (name to type, shape and offsets), then the tensors. Files are not trusted: the header is checked
before it is used, so a damaged file raises an `InputError` and never causes a large allocation.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features.errors import InputError

_TYPES = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "U16": "<u2", "U64": "<u8"}
NUMPY_DTYPES = {name: np.dtype(code) for name, code in _TYPES.items()}
MAX_HEADER_BYTES = 2**20  # about 100 per tensor; a length from a damaged file must not become a large allocation
REMEDY = "the bundle is damaged: copy it again, or export it again"

Shapes = dict[str, tuple[str, list[int]]]
"""Name to (type, shape), in the order of the tensors in the file."""


def header(shapes: Shapes) -> bytes:
    """Header of a file of these tensors."""
    entries: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + math.prod(shape) * NUMPY_DTYPES[dtype].itemsize
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def file_bytes(shapes: Shapes) -> int:
    """Size of a file of these tensors.

    >>> file_bytes({"rows": ("F32", [2, 3])}) - len(header({"rows": ("F32", [2, 3])}))
    24
    """
    content = sum(math.prod(shape) * NUMPY_DTYPES[dtype].itemsize for dtype, shape in shapes.values())
    return len(header(shapes)) + content


def write_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a file of these tensors; the same bytes for the same tensors in the same order."""
    names = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
    with path.open("wb") as file:
        file.write(header({name: (names[tensor.dtype], [*tensor.shape]) for name, tensor in tensors.items()}))
        for tensor in tensors.values():
            file.write(tensor.tobytes())
        file.flush()
        os.fsync(file.fileno())


def map_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Views of a file's tensors, which stay on the disk; raises `InputError` for a damaged file."""
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


def take(
    path: Path, tensors: dict[str, npt.NDArray[Any]], name: str, shape: tuple[int, ...], *dtypes: str
) -> npt.NDArray[Any]:
    """Take a tensor out of those of a file; raises `InputError` unless it has this shape and one of these types."""
    tensor = tensors.pop(name)
    if tensor.shape != shape or tensor.dtype not in [NUMPY_DTYPES[dtype] for dtype in dtypes]:
        found = f"{tensor.dtype} {list(tensor.shape)}"
        raise fault(path, f"tensor {name!r} to be {' or '.join(dtypes)} {list(shape)}", found)
    return tensor


def fault(path: Path, expected: str, found: str) -> InputError:
    """The error for a damaged file of a bundle."""
    return InputError(f"{path}: expected {expected}", found=found, remedy=REMEDY)


def _entry(path: Path, name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    try:
        dtype, shape = NUMPY_DTYPES[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        numbers = (*shape, begin, end)
        if not all(type(number) is int and 0 <= number < 2**48 for number in numbers) or not 1 <= len(shape) <= 2:
            raise ValueError(f"{numbers}")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{end - begin} bytes")
    except (KeyError, TypeError, ValueError):
        raise fault(path, f"a sound entry for tensor {name!r}", repr(entry)[:120]) from None
    return dtype, shape, begin, end
