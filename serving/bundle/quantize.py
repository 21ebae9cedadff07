"""Values in 8, 4, 2 or 1 bits: each byte of such a row is an index into one codebook for the whole table.

An entry of the codebook holds the c values that a byte encodes: one for int8, two neighbours for int4, and so on. So a
row costs only its codes; a scale per row would double the size of a row of four int4 values. The figures behind this
choice are in docs/decisions/0011.

K rows, b columns, c values per byte, n groups of c values.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from features.errors import InputError

TableDtype = Literal["fp32", "fp16", "int8", "int4", "int2", "int1", "opq4", "opq3", "opq2", "opq1"]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

VALUES_PER_BYTE: dict[TableDtype, int] = {"int8": 1, "int4": 2, "int2": 4, "int1": 8}
"""c of the types with one codebook."""
ROTATED_BITS: dict[TableDtype, int] = {"opq4": 4, "opq3": 3, "opq2": 2, "opq1": 1}
"""Bits per value of those with rotated rows (`serving.bundle.rotated`); types that are in neither store floats."""
NUM_CODES = 256
SAMPLE_GROUPS = 65_536
"""Most groups that a codebook is learned from; using all of them gave .05 dB more on MovieLens-1M."""

_MAX_FP16 = float(np.finfo(np.float16).max)
_ITERATIONS = 20  # as many again gave .02 dB
_BLOCK_GROUPS = 8192


def check_values(values: Floats, dtype: TableDtype) -> None:
    """Raise `InputError` for rows [K, b] with NaN, infinite values, and values that the type cannot hold."""
    largest = np.abs(values).max(axis=1, initial=0.0)
    if not np.isfinite(largest).all():
        row = int(np.flatnonzero(~np.isfinite(largest))[0])
        remedy = "the training diverged: lower trainer.learning_rate and train again"
        raise InputError("table rows must be finite numbers", found=f"{largest[row]} in a row", remedy=remedy)
    if dtype != "fp32" and (largest > _MAX_FP16).any():
        raise InputError(f"{dtype} rows hold up to {_MAX_FP16:.0f}", found=f"{largest.max():.6g}", remedy="use fp32")


def groups_of(values: Floats, size: int) -> Floats:
    """Rows [K, b] as groups [K, ceil(b / c), c] of neighbours, the last one of a row filled with zeros.

    >>> groups_of(np.array([[1, 2, 3]], dtype=np.float32), 2).tolist()
    [[[1.0, 2.0], [3.0, 0.0]]]
    """
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % size)))
    return padded.reshape(len(values), padded.shape[1] // size, size)


def distinct(groups: Floats) -> Floats:
    """The different groups [n', c] as fp16 rounds them, but for zeros.

    >>> distinct(np.array([[0.5], [0.0], [0.50001]], dtype=np.float32)).tolist()
    [[0.5]]
    """
    rounded = groups.astype(np.float16)
    return np.unique(rounded[rounded.any(axis=1)], axis=0).astype(np.float32)


def learn_codebook(groups: Floats) -> npt.NDArray[np.float16]:
    """A codebook [256, c] for groups [n, c]: entry 0 is zero, which masked cells need; the same for the same groups.

    If there are at most 255 other groups, they are the entries, so a rounded table is not changed by rounding it again.
    Else the entries come from Lloyd's algorithm ("Least Squares Quantization in PCM", 1982) on squared error.
    """
    codebook = np.zeros((NUM_CODES, groups.shape[1]), dtype=np.float32)
    few = distinct(groups)
    if len(few) < NUM_CODES:
        codebook[1 : len(few) + 1] = few
        return codebook.astype(np.float16)
    codebook[1:] = _first_values(groups) if groups.shape[1] == 1 else _first_groups(groups)
    for _ in range(_ITERATIONS):
        codes = _nearest(groups, codebook)
        counts = np.bincount(codes, minlength=NUM_CODES)
        sums = [np.bincount(codes, column, minlength=NUM_CODES) for column in groups.T]
        means = np.stack(sums, axis=1) / np.maximum(counts, 1)[:, None]
        errors = np.square(groups - codebook[codes]).sum(axis=1)
        is_idle = counts == 0
        is_idle[0] = False
        codebook[1:] = np.where(is_idle[:, None], codebook, means)[1:]
        codebook[is_idle] = groups[np.argsort(-errors, kind="stable")[: is_idle.sum()]]
    return codebook.astype(np.float16)


def encode(values: Floats, codebook: npt.NDArray[Any]) -> Codes:
    """Codes [K, ceil(b / c)] of rows [K, b]: for each group the nearest entry, the first of equal ones."""
    groups = groups_of(values, codebook.shape[1])
    # In float64 the distance of an entry to itself is always the smallest, however close another entry is.
    codes = _nearest(groups.reshape(-1, codebook.shape[1]).astype(np.float64), codebook.astype(np.float64))
    return codes.astype(np.uint8).reshape(groups.shape[:2])


def decode(codes: Codes, codebook: Floats, width: int) -> Floats:
    """Rows [K, b] of codes [K, ceil(b / c)].

    >>> decode(np.array([[1, 0]], dtype=np.uint8), np.array([[0, 0], [3, 4]], dtype=np.float32), 3).tolist()
    [[3.0, 4.0, 0.0]]
    """
    values = codebook.take(codes, axis=0)
    return values.reshape(len(codes), codes.shape[1] * codebook.shape[1])[:, :width]


class SharedCodebook:
    """Coder of rows with one codebook [256, c]."""

    def __init__(self, codebook: npt.NDArray[np.float16]) -> None:
        self.codebook = codebook
        self._values = codebook.astype(np.float32)

    def encode(self, values: Floats) -> Codes:
        """Codes [K, ceil(b / c)] of rows [K, b]."""
        return encode(values, self.codebook)

    def decode(self, codes: Codes, width: int) -> Floats:
        """Rows [K, b] of their codes."""
        return decode(codes, self._values, width)

    def tensors(self) -> list[npt.NDArray[Any]]:
        """Tensors that the file needs, in its order."""
        return [self.codebook]


def _nearest(groups: npt.NDArray[Any], codebook: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    if codebook.shape[1] == 1:
        order = np.argsort(codebook[:, 0], kind="stable")
        rising = codebook[order, 0]
        return order[np.searchsorted((rising[1:] + rising[:-1]) / 2, groups[:, 0])]
    codes = np.empty(len(groups), dtype=np.int64)
    half_squares = np.square(codebook).sum(axis=1) / 2
    for start in range(0, len(groups), _BLOCK_GROUPS):
        block = slice(start, start + _BLOCK_GROUPS)
        codes[block] = (half_squares - groups[block] @ codebook.T).argmin(axis=1)
    return codes


def _first_values(groups: Floats) -> Floats:
    """255 values [255, 1] as dense as the cube root of the density, as many levels are when the error is smallest."""
    quantiles = np.quantile(groups[:, 0], np.linspace(0, 1, 4 * NUM_CODES + 1))
    mass = np.concatenate([[0.0], np.cumsum(np.diff(quantiles) ** (2 / 3))])
    places = (np.arange(NUM_CODES - 1) + 0.5) / (NUM_CODES - 1) * mass[-1]
    return np.interp(places, mass, quantiles).astype(np.float32)[:, None]


def _first_groups(groups: Floats) -> Floats:
    """255 of the groups [255, c], drawn one by one in proportion to their squared distance from those before, and 0."""
    generator = np.random.default_rng(0)
    drawn = groups[generator.choice(len(groups), min(len(groups), 64 * NUM_CODES), replace=False)]
    distances = np.square(drawn).sum(axis=1, dtype=np.float64)
    first = np.empty((NUM_CODES - 1, groups.shape[1]), dtype=np.float32)
    for place in range(NUM_CODES - 1):
        mass = np.cumsum(distances)
        first[place] = drawn[min(np.searchsorted(mass, generator.random() * mass[-1]), len(drawn) - 1)]
        distances = np.minimum(distances, np.square(drawn - first[place]).sum(axis=1))
    return first
