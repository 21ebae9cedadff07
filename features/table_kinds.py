"""The kinds of embedding table: one class per kind, which divides the rows and finds the rows of tokens.

N tokens, S slots (one per view, feature and probe), M table rows, n_f distinct values of a feature in train. The
readers of a table are its (view, feature) pairs, in output order. A new kind is a class here and a `TABLE_KINDS` line.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from features.errors import InputError
from features.hashing import MAX_NUM_ROWS, MISSING_TOKEN, Tokens, rows_of_tokens

Vocabulary = Mapping[str, Tokens]
"""Feature to its distinct tokens in train, increasing, without the missing one."""
Views = Mapping[str, Mapping[str, int]]
"""View to {feature: probes}."""

_SIGN = np.uint64(2**63)


class Slot(NamedTuple):
    """One lookup of an example: a probe of a feature in a view."""

    view: str
    feature: str
    probe: int
    salt: int
    first_row: int
    """First of the rows that it may read."""
    num_rows: int
    """Number of those rows."""
    num_ids: int
    """Number of ids that a token may hash to; not used by a collisionless table."""
    divisor: int = 1
    """Row = first_row + (id // divisor + offset) % num_rows."""
    offset: int = 0


class _Constants(NamedTuple):
    """Numbers of S slots as arrays [S] of numpy or torch."""

    salts: Any
    first_rows: Any
    num_rows: Any
    num_ids: Any
    divisors: Any
    offsets: Any
    vocabularies: Sequence[Any]
    """Sorted tokens [n_f] of each slot's feature, if the kind needs them. A feature without values has the missing
    token instead, as an empty array could not be indexed."""

    @staticmethod
    def of(slots: Sequence[Slot], vocabulary: Vocabulary, device: Any, xp: Any) -> "_Constants":
        """Arrays on a device; those of torch are int64."""
        bits = np.array([slot[3:] for slot in slots], dtype=np.uint64).reshape(-1, 6).T.copy().view(np.int64)
        salts, first_rows, num_rows, num_ids, divisors, offsets = (xp.asarray(row, device=device) for row in bits)
        if xp is np:
            salts, num_ids = salts.view(np.uint64), num_ids.view(np.uint64)
        ordered: dict[str, Any] = {}
        for name in dict.fromkeys(slot.feature for slot in slots if vocabulary):
            tokens = vocabulary[name] if len(vocabulary[name]) else np.array([MISSING_TOKEN], dtype=np.uint64)
            # With the sign bit flipped, int64 has the order of uint64.
            ordered[name] = xp.asarray(tokens if xp is np else (tokens ^ _SIGN).view(np.int64), device=device)
        vocabularies = [ordered[slot.feature] for slot in slots if ordered]
        return _Constants(salts, first_rows, num_rows, num_ids, divisors, offsets, vocabularies)


class Addressing:
    """Tokens to rows for some slots of a table; the class methods divide the table among its readers.

    A subclass is one kind of table. This one is the base of those whose readers share all rows.
    """

    has_own_ranges: ClassVar[bool] = False
    """True if each reader has its own range, whose size depends on the distinct values of train."""
    has_vocabulary: ClassVar[bool] = False
    """True if tokens are looked up among those of train, which a bundle then has to store."""
    has_blocks: ClassVar[bool] = False
    """True if the setting `block` is read."""
    min_rows: ClassVar[int] = 0
    """Fewest rows per reader."""
    num_probes: ClassVar[int | None] = None
    """The number of probes that such a table needs; None for any."""

    def __init__(self, slots: Sequence[Slot], vocabulary: Vocabulary | None = None) -> None:
        assert vocabulary is not None or not self.has_vocabulary
        self._slots, self._vocabulary = slots, (vocabulary or {}) if self.has_vocabulary else {}
        self._constants: dict[Any, _Constants] = {}  # by device

    def rows(self, tokens: Any, xp: Any = np) -> Any:
        """Rows (int64) [N, S] of tokens [N, S], or of [N, 1] where all slots read the same feature.

        With `xp=torch`, tokens and rows are tensors; the tokens are int64 bit patterns.
        """
        raise NotImplementedError

    def _ids(self, tokens: Any, constants: _Constants) -> Any:
        return rows_of_tokens(tokens, constants.salts, constants.num_ids)

    def _on(self, tokens: Any, xp: Any) -> _Constants:
        device = tokens.device
        if device not in self._constants:
            self._constants[device] = _Constants.of(self._slots, self._vocabulary, device, xp)
        return self._constants[device]

    @classmethod
    def table_rows(cls, num_rows: int, counts: Sequence[int]) -> int:
        """M of a table with this setting, given the distinct values of each reader."""
        return num_rows

    @classmethod
    def ranges(cls, num_rows: int, counts: Sequence[int]) -> list[tuple[int, int]]:
        """First row and number of rows of each reader, given its distinct values."""
        return [(0, num_rows)] * len(counts)

    @classmethod
    def lookup(cls, probe: int, first_row: int, num_rows: int, block: int) -> tuple[int, ...]:
        """Number of a probe in its salt, then the fields of `Slot` from `first_row` on; the range is its reader's."""
        return probe, first_row, num_rows, num_rows, 1, 0

    @classmethod
    def check(cls, kind: str, num_rows: int, views: Views, counts: Mapping[str, int], features: set[str]) -> None:
        """Raise `InputError` unless a table of this kind can have these sizes; `counts` is n_f by feature."""
        if set(counts) != (features if cls.has_own_ranges else set()):
            expected, found = f"a {kind} table needs num_values of its features", ", ".join(sorted(counts)) or "none"
            raise InputError(expected, found=found, remedy="count the values of the training data")
        if num_rows < (fewest := cls.min_rows * sum(map(len, views.values()))):
            expected = f"a {kind} table needs {'a row' if cls.min_rows == 1 else 'two rows'} for each feature and view"
            raise InputError(expected, found=str(num_rows), remedy=f"set embedding.num_rows to {fewest} or more")
        readers = [(name, probes) for names in views.values() for name, probes in names.items()]
        wrong = [f"{probes} of {name!r}" for name, probes in readers if cls.num_probes not in (None, probes)]
        if wrong:
            number, width = ("one probe", 16) if cls.num_probes == 1 else ("two probes", 8)
            others = "and no other `probes:` in the registry"
            remedy = f"set embedding.probes={cls.num_probes} and embedding.width={width} (for example), {others}"
            raise InputError(f"a {kind} table is read by {number}", found=wrong[0], remedy=remedy)
        expected = cls.table_rows(num_rows, counts_of_readers(views, counts))
        if num_rows != expected:
            raise InputError(f"expected {expected} rows of a {kind} table", found=str(num_rows))


class Unified(Addressing):
    """All readers read all rows by hash (Coleman et al., "Unified Embedding", NeurIPS 2023)."""

    def rows(self, tokens: Any, xp: Any = np) -> Any:
        return self._ids(tokens, self._on(tokens, xp))


class Robe(Addressing):
    """All readers read `block` rows in succession from a hashed one on; the first row follows the last.

    Desai, Chou & Shrivastava, "Random Offset Block Embedding Array (ROBE)", MLSys 2022.
    """

    has_blocks = True

    @classmethod
    def lookup(cls, probe: int, first_row: int, num_rows: int, block: int) -> tuple[int, ...]:
        number, offset = divmod(probe, block)
        return number, first_row, num_rows, num_rows, 1, offset

    def rows(self, tokens: Any, xp: Any = np) -> Any:
        constants = self._on(tokens, xp)
        return (self._ids(tokens, constants) + constants.offsets) % constants.num_rows


class Hashed(Addressing):
    """Each reader reads its own range by hash, in proportion to its distinct values."""

    has_own_ranges = True
    min_rows = 1

    @classmethod
    def ranges(cls, num_rows: int, counts: Sequence[int]) -> list[tuple[int, int]]:
        sizes = cls.sizes(num_rows, counts)
        return list(zip(accumulate(sizes, initial=0), sizes, strict=False))

    @classmethod
    def sizes(cls, num_rows: int, counts: Sequence[int]) -> list[int]:
        """Number of rows of each reader."""
        return split_rows(num_rows, counts)

    def rows(self, tokens: Any, xp: Any = np) -> Any:
        constants = self._on(tokens, xp)
        return self._ids(tokens, constants) + constants.first_rows


class QuotientRemainder(Hashed):
    """Each reader has two ranges, one read by the quotient of a hash and one by its remainder.

    Shi et al., "Compositional Embeddings Using Complementary Partitions", KDD 2020.
    """

    min_rows = 2
    num_probes = 2

    @classmethod
    def sizes(cls, num_rows: int, counts: Sequence[int]) -> list[int]:
        # Two ranges of s rows each distinguish s * s values.
        return [2 * half for half in split_rows(num_rows // 2, [math.isqrt(count << 20) for count in counts])]

    @classmethod
    def lookup(cls, probe: int, first_row: int, num_rows: int, block: int) -> tuple[int, ...]:
        half = num_rows // 2
        return 0, first_row + probe * half, half, min(half * half, MAX_NUM_ROWS), half if probe else 1, 0

    def rows(self, tokens: Any, xp: Any = np) -> Any:
        constants = self._on(tokens, xp)
        return self._ids(tokens, constants) // constants.divisors % constants.num_rows + constants.first_rows


class Collisionless(Hashed):
    """Each value seen in train has its own row, in every view.

    Row 0 of a range is for the missing value, row 1 for all values not seen in train, row 2 + k for the k-th token of
    the vocabulary.
    """

    has_vocabulary = True
    min_rows = 0
    num_probes = 1

    @classmethod
    def table_rows(cls, num_rows: int, counts: Sequence[int]) -> int:
        return max(1, sum(cls.sizes(num_rows, counts)))  # a table has at least one row

    @classmethod
    def sizes(cls, num_rows: int, counts: Sequence[int]) -> list[int]:
        return [count + 2 for count in counts]

    def rows(self, tokens: Any, xp: Any = np) -> Any:
        constants = self._on(tokens, xp)
        columns = xp.broadcast_to(tokens, (len(tokens), len(self._slots))).T
        keys = columns if xp is np else columns ^ -(2**63)
        offsets = xp.ones_like(columns, dtype=xp.int64)
        for k, ordered in enumerate(constants.vocabularies):
            after = xp.searchsorted(ordered, keys[k], side="right")  # index -1, the last token, where it is 0
            offsets[k] = xp.where(ordered[after - 1] == keys[k], after + 1, 1)
        return xp.where(columns == MISSING_TOKEN, 0, offsets).T + constants.first_rows


TABLE_KINDS: dict[str, type[Addressing]] = {
    "unified": Unified,
    "hashed": Hashed,
    "collisionless": Collisionless,
    "quotient_remainder": QuotientRemainder,
    "robe": Robe,
}
if TYPE_CHECKING:
    TableKind = str
else:
    TableKind = Literal[tuple(TABLE_KINDS)]


def counts_of_readers(views: Views, counts: Mapping[str, int]) -> list[int]:
    """Distinct values of each reader's feature, 0 where they are not known."""
    return [counts.get(feature, 0) for features in views.values() for feature in features]


def split_rows(num_rows: int, counts: Sequence[int]) -> list[int]:
    """`num_rows` in proportion to `counts`, by the largest remainders, no part below 1; a count of 0 weighs as 1.

    >>> split_rows(10, [600, 300, 99, 1])
    [5, 3, 1, 1]
    """
    assert num_rows >= len(counts)
    sizes, rows = [1] * len(counts), num_rows
    weights = [max(1, count) for count in counts]
    total = sum(weights)
    ascending = sorted(range(len(counts)), key=lambda part: weights[part])
    # A part whose share is below one row gets one row, and the others share the rest. The lightest part comes first,
    # because each such row makes the rest smaller.
    while ascending and rows * weights[ascending[0]] < total:
        rows, total = rows - 1, total - weights[ascending.pop(0)]
    for part in ascending:
        sizes[part] = rows * weights[part] // total
    by_remainder = sorted(ascending, key=lambda part: (-(rows * weights[part] % total), part))
    for part in by_remainder[: num_rows - sum(sizes)]:
        sizes[part] += 1
    return sizes
