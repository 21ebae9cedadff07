"""Value to 64-bit token, and (token, feature, view, probe) to table row: the contract between training and serving.

N values, S slots (one per view, feature and probe), M table rows. `docs/formats.md` states the contract in words,
`tests/features/test_hashing.py` pins it with golden vectors; numpy and torch agree on it bit for bit.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_hash  # noqa: F401  # pyright: ignore[reportUnusedImport]  (registers the `nchash` expressions)
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from features.errors import InputError

UNIT_SEPARATOR = "\x1f"
MAX_NUM_ROWS = 2**31

# xxh3_64 of the bytes ff 6d 69 73 73 69 6e 67, which are not valid UTF-8 and so are not the bytes of any text.
MISSING_TOKEN = 0x0EA92B629D1D5A8D

_MISSING_DIGEST = MISSING_TOKEN.to_bytes(8, "big")
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB

Tokens = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]


def token_of_text(text: pl.Expr) -> pl.Expr:
    """Tokens (UInt64) of a text expression: xxh3_64 of the UTF-8 bytes, `MISSING_TOKEN` for null.

    >>> frame = pl.DataFrame({"a": ["", None]})
    >>> frame.select(token_of_text(pl.col("a")))["a"].to_list() == [0x2D06800538D394C2, MISSING_TOKEN]
    True
    """
    hashed: pl.Expr = text.nchash.xxh3_64()  # type: ignore[attr-defined]  # the plugin adds this namespace
    return hashed.fill_null(pl.lit(MISSING_TOKEN, dtype=pl.UInt64))


def tokens_of_texts(texts: Iterable[str | None]) -> Tokens:
    """Tokens [N] of Python texts, as `token_of_text`; raises `UnicodeEncodeError` for half of a surrogate pair.

    A loop in the caller's thread: a polars query starts other threads, which takes as long as 1000 texts here.

    >>> tokens_of_texts(["", None]).tolist() == [0x2D06800538D394C2, MISSING_TOKEN]
    True
    """
    digests = b"".join([_MISSING_DIGEST if text is None else xxh3_64_digest(text.encode()) for text in texts])
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def hash_text(text: str) -> int:
    """xxh3_64 of one Python string, as an unsigned integer.

    >>> hash_text("") == 0x2D06800538D394C2
    True
    """
    return xxh3_64_intdigest(text.encode())


def salt(seed: int, key: str, view: str, probe: int) -> int:
    """Salt of one slot: xxh3_64 of "seed US key US view US probe", independent of the feature's position.

    >>> salt(0, "user", "main", 0) == salt(0, "user", "main", 0) != salt(0, "user", "main", 1)
    True
    """
    return hash_text(UNIT_SEPARATOR.join((str(seed), key, view, str(probe))))


def check_num_rows(num_rows: int) -> None:
    """Raise `InputError` for a table size beyond the exact range of the row formula."""
    if not 1 <= num_rows <= MAX_NUM_ROWS:
        raise InputError(
            f"num_rows must be between 1 and {MAX_NUM_ROWS}",
            found=str(num_rows),
            remedy="set embedding.num_rows to the number of table rows that fit in memory",
        )


def mix64(values: Any) -> Any:
    """splitmix64's finaliser, element by element (Steele, Lea & Flood 2014).

    Takes a numpy array of uint64 or a torch tensor of int64 bit patterns, as torch has no uint64 arithmetic.

    >>> int(mix64(np.array([1], dtype=np.uint64))[0]) == 0x5692161D100B05E5
    True
    """
    wrap = 0 if isinstance(values, np.ndarray) else 2**64  # int64 holds a multiplier as the negative number of its bits
    values = values ^ _shifted(values, 30)  # a copy; from here on in place
    values *= _MULTIPLIER_1 - wrap
    values ^= _shifted(values, 27)
    values *= _MULTIPLIER_2 - wrap
    values ^= _shifted(values, 31)
    return values


def _shifted(values: Any, bits: int) -> Any:
    """Logical shift right, which does not copy the sign bit."""
    shifted = values >> bits
    if not isinstance(values, np.ndarray):
        shifted &= (1 << (64 - bits)) - 1
    return shifted


def rows_of_tokens(tokens: Any, salts: Any, num_rows: Any) -> Any:
    """Rows (int64) of tokens under salts among R: ((mix64(token ^ salt) >> 32) * R) >> 32; shapes broadcast.

    Arrays are as in `mix64`. Raises `InputError` for a single number of rows outside [1, 2**31].

    >>> rows_of_tokens(np.array([7, 8], dtype=np.uint64), np.array([[1], [2]], dtype=np.uint64), 1).tolist()
    [[0, 0], [0, 0]]
    """
    if isinstance(num_rows, int):
        check_num_rows(num_rows)
    rows = _shifted(mix64(tokens ^ salts), 32) * num_rows
    rows >>= 32
    return rows.view(np.int64) if isinstance(rows, np.ndarray) else rows
