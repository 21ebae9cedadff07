"""A reader of table.safetensors by plain loops, bit by bit, from what docs/formats.md says and nothing else."""

import json
import math
import struct
from pathlib import Path
from typing import Any

FORMATS = {"F32": "f", "F16": "e", "I8": "b", "U8": "B", "U16": "H"}


def read_tensors(path: Path) -> dict[str, tuple[list[int], list[Any]]]:
    """Name to shape and flat elements."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    tensors = {}
    for name, entry in json.loads(content[8 : 8 + length]).items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        code = FORMATS[entry["dtype"]]
        elements = struct.unpack(f"<{(end - begin) // struct.calcsize(code)}{code}", content[begin:end])
        tensors[name] = (entry["shape"], list(elements))
    return tensors


def bit(content: list[int], number: int) -> int:
    """Bit of a bitmap."""
    return content[number // 8] >> (number % 8) & 1


def members(tensors: dict[str, Any], suffix: str, count: int, candidates: list[int]) -> list[int]:
    """The candidates that a row set has."""
    n = len(candidates)
    if "kept_rows" + suffix in tensors:
        content = tensors["kept_rows" + suffix][1]
        return [row for r, row in enumerate(candidates) if bit(content, r)]
    if "kept_positions" + suffix not in tensors:
        return candidates
    content = tensors["kept_positions" + suffix][1]
    num_low = int(math.log2(n / max(count, 1)))
    num_high = count + ((n - 1) >> num_low) + 1
    low = content[math.ceil(num_high / 8) :]
    found = []
    for j in range(num_high):
        if bit(content, j):
            i = len(found)
            lowest = sum(bit(low, i * num_low + k) << k for k in range(num_low))
            found.append(((j - i) << num_low) + lowest)
    return [candidates[p] for p in found]


def rotated(tensors: dict[str, Any], codes: list[int], width: int) -> list[float]:
    """A row of codes, one for each group of directions."""
    row, direction = [0.0] * width, 0
    for code, size in zip(codes, tensors["groups"][1], strict=True):
        for _ in range(size):
            amount = tensors["codebook"][1][code * width + direction]
            for column in range(width):
                row[column] += amount * tensors["rotation"][1][column * width + direction]
            direction += 1
    return row


def read_table(path: Path, num_rows: int, width: int, dtype: str) -> tuple[list[list[float]], list[bool]]:
    """Rows [M, w], and whether each counts as read by training."""
    tensors = read_tensors(path)
    table = [[0.0] * width for _ in range(num_rows)]
    size = {"int4": 2, "int2": 4, "int1": 8}.get(dtype, 1)
    candidates, start = list(range(num_rows)), 0
    is_trained = [False] * num_rows
    for j, columns in enumerate(tensors["columns"][1] if "columns" in tensors else [width]):
        suffix = f".{j}" if j else ""
        (count, stored), elements = tensors["rows" + suffix]
        candidates = members(tensors, suffix, count, candidates)
        assert count == len(candidates)
        for place, row in enumerate(candidates):
            is_trained[row] = True
            if "rotation" in tensors:
                table[row] = rotated(tensors, elements[place * stored : (place + 1) * stored], width)
                continue
            for column in range(columns):
                element = elements[place * stored + column // size]
                if "codebook" in tensors:
                    element = tensors["codebook"][1][element * size + column % size]
                elif "scale" in tensors:
                    element *= tensors["scale"][1][place]
                table[row][start + column] = element
        start += columns
    if "trained_rows" in tensors:
        is_trained = [bit(tensors["trained_rows"][1], row) == 1 for row in range(num_rows)]
    return table, is_trained
