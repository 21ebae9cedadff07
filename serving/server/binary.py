"""The binary tensor data extension of the Open Inference Protocol: a body of JSON, followed by tensors as raw bytes.

The bytes are untrusted: every size and count is checked against the bytes that are there before it is used.
"""

import reprlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from features.errors import InputError

HEADER = "Inference-Header-Content-Length"
"""Bytes of JSON in a request or response; the rest is raw tensors, little-endian, in the order of the JSON."""
_MAX_DIGITS = 18

_DTYPES = {f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)}
_DTYPES |= {f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)}
_DTYPES |= {"BOOL": "u1", "FP16": "<f2", "BF16": "<u2", "FP32": "<f4", "FP64": "<f8"}
_FIRST_INEXACT_INTEGER = {"FP16": 2**11, "BF16": 2**8, "FP32": 2**24}


class RawTensors:
    """The bytes after the JSON of a body; tensors take theirs in order."""

    def __init__(self, data: bytes | memoryview | None) -> None:
        self._data, self._start = memoryview(data or b""), 0
        self._has_header = data is not None

    def take(self, place: str, size: int) -> memoryview:
        """The next `binary_data_size` bytes; raises `InputError` if there are fewer."""
        if not self._has_header:
            remedy = "say how many bytes of the body are JSON"
            raise InputError(f"{place}: expected the header {HEADER} with binary data", found="none", remedy=remedy)
        left = len(self._data) - self._start
        if size > left:
            expected = f"{place}: expected a binary_data_size of 0 to {left}, as the body has"
            raise InputError(expected, found=reprlib.repr(size), remedy="correct it")
        self._start += size
        return self._data[self._start - size : self._start]

    def check_end(self) -> None:
        """Raise `InputError` if bytes are left over."""
        left = len(self._data) - self._start
        if left:
            remedy = f"correct binary_data_size, or {HEADER}"
            raise InputError("expected no bytes after the last tensor", found=f"{left}", remedy=remedy)


def split_body(body: bytes, length: str | None) -> tuple[bytes, RawTensors]:
    """The JSON of a body, and the raw tensors after it; `length` is the value of `HEADER`, None without it.

    >>> split_body(b'{"inputs": []}ab', "14")[0]
    b'{"inputs": []}'
    """
    if length is None:
        return body, RawTensors(None)
    if not (length.isascii() and length.isdecimal() and len(length) <= _MAX_DIGITS and int(length) <= len(body)):
        expected = f"{HEADER}: expected the number of bytes of JSON, {len(body)} at most"
        raise InputError(expected, found=repr(length[:40]), remedy="count them, or send JSON without the header")
    return body[: int(length)], RawTensors(memoryview(body)[int(length) :])


def values_of(place: str, datatype: str, count: int, raw: memoryview) -> list[Any]:
    """The `count` values of a tensor, as JSON would give them.

    >>> values_of("input 'x'", "FP16", 2, memoryview(bytes([0, 60, 0, 192])))
    [1.0, -2.0]
    """
    if datatype == "BYTES":
        return _texts(place, count, raw)
    dtype = np.dtype(_DTYPES[datatype])
    if len(raw) != count * dtype.itemsize:
        expected = f"{place}: expected {count * dtype.itemsize} bytes for {count} values of {datatype}"
        raise InputError(expected, found=str(len(raw)), remedy="correct shape, datatype or data")
    numbers = np.frombuffer(raw, dtype=dtype)
    if datatype == "BF16":
        return (numbers.astype(np.uint32) << 16).view(np.float32).tolist()
    if datatype == "BOOL":
        if numbers.max(initial=0) > 1:
            raise InputError(f"{place}: expected bytes of 0 or 1", found=str(numbers.max()), remedy="send booleans")
        return (numbers == 1).tolist()
    return numbers.tolist()


def check_integers(place: str, datatype: str, values: Sequence[float]) -> None:
    """Raise `InputError` for floats so large that two categories may round to one, as for a file's column."""
    limit = _FIRST_INEXACT_INTEGER.get(datatype)
    if limit is not None and (found := [value for value in values if abs(value) >= limit]):
        expected = f"{place}: expected integers below 2^{limit.bit_length() - 1} in {datatype}"
        raise InputError(expected, found=f"{found[0]:.0f}", remedy="send INT64, or BYTES")


def _texts(place: str, count: int, raw: memoryview) -> list[str]:
    """Texts, each preceded by its length in four bytes."""
    texts: list[str] = []
    start, remedy = 0, "send each as four bytes of length and its UTF-8"
    if len(raw) < 4 * count:  # before the shape is used
        raise InputError(f"{place}: expected {count} texts", found=f"{len(raw)} bytes", remedy=remedy)
    for _ in range(count):
        stop = start + 4
        if stop <= len(raw):
            stop += struct.unpack_from("<I", raw, start)[0]
        if stop > len(raw):
            found = f"{len(texts)} whole ones in {len(raw)} bytes"
            raise InputError(f"{place}: expected {count} texts", found=found, remedy=remedy)
        try:
            texts.append(str(raw[start + 4 : stop], "utf-8"))
        except UnicodeDecodeError:
            found = f"other bytes in text {len(texts) + 1}"
            raise InputError(f"{place}: expected UTF-8", found=found, remedy="encode it as UTF-8") from None
        start = stop
    if start != len(raw):
        found = f"{len(raw) - start} bytes more"
        raise InputError(f"{place}: expected {count} texts", found=found, remedy="correct the shape")
    return texts
