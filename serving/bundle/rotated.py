"""Rows of any width in a few bytes: rotated so that columns are sorted by importance, then coded in groups.

One or two of the first columns share a byte, and so do many of the last ones; each group has a codebook of
its own. A row is then the sum of G vectors, which is how it is read. This is "Optimized Product Quantization" (Ge et
al., CVPR 2013) with groups of different size.

K rows, w row width, G groups and codes of a row.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from features.errors import InputError
from serving.bundle.quantize import NUM_CODES, Codes, Floats, encode, learn_codebook

MAX_WIDTH = 128  # the decoding tables take 1,024 G w bytes of memory
Halves = npt.NDArray[np.float16]


class RotatedCodebooks:
    """Coder of rotated rows."""

    def __init__(self, codebook: Halves, rotation: Halves, sizes: Sequence[int]) -> None:
        self.codebook = codebook
        """[256, w]: side by side, the codebooks [256, c] of the groups."""
        self.rotation = rotation
        """[w, w]: a column for each direction, the most important one first."""
        self.sizes = list(sizes)
        """Directions of each group [G]."""
        self._groups = [slice(stop - size, stop) for stop, size in zip(accumulate(sizes), sizes, strict=True)]
        wide, turned = codebook.astype(np.float64), rotation.astype(np.float64)
        with np.errstate(all="ignore"):  # a damaged file may hold anything; scores that are no numbers are refused
            self._vectors = [(wide[:, group] @ turned[:, group].T).astype(np.float32) for group in self._groups]

    @staticmethod
    def learn(rows: Floats, num_groups: int) -> "RotatedCodebooks":
        """The coder of rows [K, w]: directions of their second moments, in the groups with the least expected error."""
        width = rows.shape[1]
        if width > MAX_WIDTH:
            raise InputError(f"opq rows have up to {MAX_WIDTH} columns", found=str(width), remedy="use int4")
        moments = rows.astype(np.float64).T @ rows.astype(np.float64) / max(1, len(rows))
        variances, directions = np.linalg.eigh(moments)
        rotation = directions[:, ::-1].astype(np.float16)
        sizes = group_sizes(np.maximum(variances[::-1], 0), num_groups)
        turned = np.split(rows @ rotation.astype(np.float32), np.cumsum(sizes)[:-1], axis=1)
        books = [learn_codebook(np.ascontiguousarray(group)) for group in turned]
        return RotatedCodebooks(np.concatenate(books, axis=1), rotation, sizes)

    def encode(self, values: Floats) -> Codes:
        """Codes [K, G] of rows [K, w]."""
        turned = values @ self.rotation.astype(np.float32)
        return np.concatenate([encode(turned[:, group], self.codebook[:, group]) for group in self._groups], axis=1)

    def decode(self, codes: Codes, width: int) -> Floats:
        """Rows [K, w] of codes [K, G]: for each code a vector, added in order."""
        assert width == len(self.rotation)
        values = self._vectors[0].take(codes[:, 0], axis=0)
        for group, vectors in enumerate(self._vectors[1:], start=1):
            values += vectors.take(codes[:, group], axis=0)
        return values

    def tensors(self) -> list[npt.NDArray[Any]]:
        """Tensors that the file needs, in its order."""
        return [self.codebook, self.rotation, np.array(self.sizes, dtype=np.uint16)]


def group_sizes(variances: npt.NDArray[np.float64], num_groups: int) -> list[int]:
    """Directions that share each code, for falling variances [w], at the least error that theory predicts.

    >>> group_sizes(np.array([1.0, 1.0, 1.0, 1.0]), 2)
    [2, 2]
    >>> group_sizes(np.array([100.0, 1.0, 0.1, 0.1]), 2)
    [1, 3]
    """
    width = len(variances)
    # From g groups for the first j directions to g + 1 groups for more of them.
    best = np.full(width + 1, np.inf)
    best[0] = 0
    cuts: list[list[int]] = []
    errors = {(i, j): _least_error(variances[i:j]) for i in range(width) for j in range(i + 1, width + 1)}
    for _ in range(num_groups):
        candidates = [[best[i] + errors[i, j] for i in range(j)] for j in range(1, width + 1)]
        cuts.append([0, *(int(np.argmin(costs)) for costs in candidates)])
        best = np.array([np.inf, *(min(costs) for costs in candidates)])
    sizes, stop = [], width
    for cut in reversed(cuts):
        sizes.append(stop - cut[stop])
        stop = cut[stop]
    return sizes[::-1]


def _least_error(variances: npt.NDArray[np.float64]) -> float:
    """Squared error of normal variables of these falling variances in 8 bits together (reverse water-filling)."""
    error = float(variances.sum())
    for count in range(1, len(variances) + 1):
        level = float(np.exp2(np.log2(np.maximum(variances[:count], 1e-300)).mean() - 2 * np.log2(NUM_CODES) / count))
        if level > variances[count - 1]:
            break
        error = count * level + float(variances[count:].sum())
    return error
