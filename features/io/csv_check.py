"""Ragged csv files: rows with more or fewer fields than the header, and quotes that are never closed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from features.errors import InputError
from features.io.json_lines import open_packed

BLOCK_BYTES = 2**23
NEWLINE, QUOTE = b'\n"'


def num_blank_lines(path: Path) -> int:
    """Blank lines at the end of a file."""
    num_newlines = 0
    with open_packed(path) as file:
        while block := file.read(BLOCK_BYTES):
            content = block.rstrip(b"\r\n")
            num_newlines = block.count(b"\n", len(content)) + (0 if content else num_newlines)
    return max(0, num_newlines - 1)


def check_fields(path: Path, num_fields: int | None = None, separator: str = ",") -> None:
    """Raise `InputError` with the line of the first row without `num_fields` fields (None: as many as the header).

    Reads the file once, block by block. A file that cannot be read passes: its reader reports it.
    """
    try:
        _check_blocks(path, num_fields, ord(separator))
    except (OSError, EOFError):
        return


def _check_blocks(path: Path, num_fields: int | None, separator: int) -> None:
    open_fields = 0  # separators so far in the row that continues in this block
    start_line = 1  # where that row begins
    num_lines = 0
    is_quoted = False
    for block in _blocks(path):
        data = np.frombuffer(block, dtype=np.uint8)
        quotes, newlines = np.flatnonzero(data == QUOTE), np.flatnonzero(data == NEWLINE)
        marks = np.flatnonzero((data == separator) | (data == NEWLINE))
        # A separator or line end after an odd number of quotes belongs to a value.
        marks = marks[(np.searchsorted(quotes, marks) + is_quoted) % 2 == 0]
        row_ends = np.flatnonzero(data[marks] == NEWLINE)
        if len(row_ends):
            fields = np.diff(row_ends, prepend=-1)
            fields[0] += open_fields
            next_lines = num_lines + 1 + np.searchsorted(newlines, marks[row_ends], side="right")
            num_fields = int(fields[0]) if num_fields is None else num_fields
            if (fields != num_fields).any():
                wrong = int((fields != num_fields).argmax())
                line = int(next_lines[wrong - 1]) if wrong else start_line
                found, remedy = f"{fields[wrong]} in line {line}", "correct or remove that line"
                raise InputError(f"{path}: expected {num_fields} fields per row", found=found, remedy=remedy)
            open_fields, start_line = len(marks) - 1 - int(row_ends[-1]), int(next_lines[-1])
        else:
            open_fields += len(marks)
        num_lines += len(newlines)
        is_quoted ^= len(quotes) % 2 == 1
    if is_quoted:
        found, remedy = f"one in the row of line {start_line} that is never closed", "close or double that quote"
        raise InputError(f"{path}: expected quotes in pairs", found=found, remedy=remedy)


def _blocks(path: Path) -> Iterator[bytes]:
    """Bytes of a file, decompressed, with one line end after the last row."""
    waiting = b""  # line ends, which may turn out to be the last bytes
    with open_packed(path) as file:
        while block := file.read(BLOCK_BYTES):
            block = waiting + block
            content = block.rstrip(b"\r\n")
            waiting = block[len(content) :]
            if content:
                yield content
    yield b"\n"
