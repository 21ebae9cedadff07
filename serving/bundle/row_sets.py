"""Row sets: which K of n rows are stored, as a bitmap or as positions in Elias and Fano's code.

A bitmap takes n / 8 bytes in the file, the positions about K (2 + log2(n / K)) / 8: less where few rows are stored.
Both answer "is row r in the set, and how many are before it"; the latter is the position of r among the stored rows.

N rows asked for. A bitmap holds bit r in byte r // 8 at r % 8, the least significant bit first.
"""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.hashing import Rows
from serving.bundle.tensors import fault

Bitmap = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]

_WORTH = 0.75  # positions must save something, as they take longer to open
# A bitmap's rank counts bits in one word, whereas positions are searched. So they become a bitmap in memory, unless
# that is large for what is stored: a file cannot cause a large allocation by claiming a large n.
_MAX_SPREAD, _ALWAYS_SMALL = 64, 2**20


class RankedBitmap:
    """A set from its bitmap [ceil(n / 8)].

    >>> RankedBitmap(pack_bits(np.array([True, False, True]))).rank(np.array([2, 1, 0]))
    (array([ True, False,  True]), array([1, 1, 0]))
    """

    def __init__(self, bitmap: Bitmap) -> None:
        self._words = np.pad(bitmap, (0, -len(bitmap) % 8)).view("<u8")
        counts = np.bitwise_count(self._words).astype(np.int64)
        self.count = int(counts.sum())
        self._before = np.cumsum(counts) - counts

    def rank(self, rows: Rows) -> tuple[Flags, Rows]:
        """Flags [N] of the rows that are in the set, and the number of members before each (valid for members)."""
        word, bit = self._words[rows >> 6], (rows & 63).astype(np.uint64)
        below = np.bitwise_count(word & ((np.uint64(1) << bit) - np.uint64(1)))
        return (word >> bit) & np.uint64(1) == 1, self._before[rows >> 6] + below


class Positions:
    """A set from its increasing members [K].

    >>> Positions(np.array([0, 2])).rank(np.array([2, 1, 9]))
    (array([ True, False, False]), array([1, 1, 2]))
    """

    def __init__(self, members: Rows) -> None:
        self.count = len(members)
        self._members = np.append(members, -1)  # a rank of K has something to be unequal to

    def rank(self, rows: Rows) -> tuple[Flags, Rows]:
        """As `RankedBitmap.rank`."""
        ranks = self._members[:-1].searchsorted(rows)
        return self._members[ranks] == rows, ranks


RowSet = RankedBitmap | Positions
"""K of n rows, which are `count` and what the row numbers in `rank` are below."""


def pack_bits(flags: Flags) -> Bitmap:
    """Flags [n] as a bitmap [ceil(n / 8)].

    >>> pack_bits(np.array([True, False, True])).tolist()
    [5]
    """
    return np.packbits(flags, bitorder="little")


class _Code(NamedTuple):
    """Sizes of the code of K positions below n: each is cut into its lowest bits and what is above them."""

    low_bits: int
    """l: floor(log2(n / K))."""
    num_high: int
    """Bits of the first part: for the i-th position p, bit (p >> l) + i is set."""
    high_bytes: int
    num_bytes: int
    """Bytes of both parts; the second has the l lowest bits of each position, one after the other."""


def _code(count: int, num_rows: int) -> _Code:
    low_bits = max(0, (num_rows // max(1, count)).bit_length() - 1)
    num_high = count + ((num_rows - 1) >> low_bits) + 1
    high_bytes = math.ceil(num_high / 8)
    return _Code(low_bits, num_high, high_bytes, high_bytes + math.ceil(count * low_bits / 8))


def stored_form(count: int, num_rows: int) -> tuple[bool, int]:
    """True if positions are the smaller form of K of n rows, and the bytes of the smaller form.

    >>> stored_form(500, 1000), stored_form(10, 1000)
    ((False, 125), (True, 12))
    """
    bitmap, positions = math.ceil(num_rows / 8), _code(count, num_rows).num_bytes
    return (True, positions) if positions <= _WORTH * bitmap else (False, bitmap)


def row_set_of(members: Rows, num_rows: int) -> RowSet:
    """The set of these increasing members [K] of n rows, in the form that answers faster where that is not large."""
    if num_rows > max(_ALWAYS_SMALL, _MAX_SPREAD * len(members)):
        return Positions(members)
    flags = np.zeros(num_rows, dtype=np.bool_)
    flags[members] = True
    return RankedBitmap(pack_bits(flags))


def encode_positions(flags: Flags) -> Bitmap:
    """The set bits of flags [n] in Elias and Fano's code, both parts bit by bit as in a bitmap.

    >>> encode_positions(np.array([True, False, False, False, False, True, False, False])).tolist()
    [5, 4]
    """
    members = np.flatnonzero(flags)
    code = _code(len(members), len(flags))
    high = np.zeros(code.num_high, dtype=np.bool_)
    high[(members >> code.low_bits) + np.arange(len(members))] = True
    low = np.empty((len(members), code.low_bits), dtype=np.bool_)
    for bit in range(code.low_bits):
        low[:, bit] = (members >> bit) & 1
    return np.concatenate([pack_bits(high), pack_bits(low.ravel())])


def decode_positions(path: Path, name: str, content: Bitmap, count: int, num_rows: int) -> Rows:
    """The K positions [K] that a tensor of a file encodes; raises `InputError` unless they are K, rising, below n."""
    code = _code(count, num_rows) if count <= num_rows else None
    if code is None or len(content) != code.num_bytes:
        expected = f"tensor {name!r} to hold {count} of {num_rows} positions"
        raise fault(path, expected, f"{len(content)} bytes")
    high = np.unpackbits(content[: code.high_bytes], count=code.num_high, bitorder="little")
    members = np.flatnonzero(high).astype(np.int64)
    if len(members) != count:
        raise fault(path, f"tensor {name!r} to hold {count} positions", f"{len(members)}")
    members = (members - np.arange(count)) << code.low_bits
    low = np.unpackbits(content[code.high_bytes :], count=count * code.low_bits, bitorder="little")
    for bit, bits in enumerate(low.reshape(count, code.low_bits).T):
        members |= bits.astype(np.int64) << bit
    if (members[1:] <= members[:-1]).any() or (members[-1:] >= num_rows).any():
        raise fault(path, f"tensor {name!r} to hold rising positions below {num_rows}", "others")
    return members
