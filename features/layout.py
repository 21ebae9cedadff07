"""TableLayout: which rows of the one table an example reads, and where they stand in the network's input.

S slots (one per view, feature and probe), w row width, M table rows, n_f distinct values of a feature in train. A
view is one reading of the table under salts of its own: `main` feeds the network, FinalMLP's gates add `fs1` and `fs2`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from features.errors import InputError
from features.hashing import MAX_NUM_ROWS, Tokens, check_num_rows, salt
from features.registry import FeatureRegistry
from features.spec import Probes

Kind = Literal["unified", "hashed", "collisionless", "quotient_remainder", "robe"]
"""Who reads which rows. `unified`: all features the same ones by hash; `hashed`: each (view, feature) a range of its
own by hash; `collisionless`: each value seen in train a row of its own; `quotient_remainder`: two ranges a (view,
feature), one by the quotient and one by the remainder of a hash; `robe`: all features the same ones, `block` rows in
succession from a hashed one on, the last row followed by the first."""
COUNTED: tuple[Kind, ...] = ("hashed", "collisionless", "quotient_remainder")
"""Kinds whose ranges depend on the distinct values of train."""


class Slot(NamedTuple):
    """One lookup of an example: a probe of a feature in a view."""

    view: str
    feature: str
    probe: int
    salt: int
    first_row: int
    """Of the rows that it may read."""
    num_rows: int
    """How many those are."""
    num_ids: int
    """How many a token may hash to; of no meaning in a collisionless table."""
    divisor: int = 1
    """Row = first_row + (id // divisor + offset) % num_rows."""
    offset: int = 0


class TableLayout(BaseModel):
    """Shape of the table, and the slots in output order: by view, then registry order, then probe number.

    >>> registry = FeatureRegistry.of(features={"a": "categorical", "b": {"type": "categorical", "probes": 1}})
    >>> layout = TableLayout.of(registry, num_rows=10, width=4, probes=2, views={"main": ("a", "b"), "fs1": ("a",)})
    >>> [(slot.view, slot.feature, slot.probe) for slot in layout.slots]
    [('main', 'a', 0), ('main', 'a', 1), ('main', 'b', 0), ('fs1', 'a', 0), ('fs1', 'a', 1)]
    >>> layout.view_widths
    {'main': {'a': 8, 'b': 4}, 'fs1': {'a': 8}}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_rows: int = Field(ge=1, le=MAX_NUM_ROWS)
    """M."""
    width: int = Field(ge=1, le=4096)
    """w: floats a row."""
    seed: int
    """The registry's seed, which all salts contain."""
    views: Annotated[dict[str, dict[str, Probes]], Field(max_length=16)]
    """View to {feature: probes}, features in registry order."""
    keys: dict[str, str]
    """Feature to the stable key that its salts contain."""
    pooling: dict[str, str]
    """List feature to `mean` or `sum`; scalars are left out."""
    kind: Kind = "unified"
    num_values: dict[str, Annotated[int, Field(ge=0, le=MAX_NUM_ROWS)]] = {}
    """Feature to n_f, the missing value not counted; none for kinds that do not depend on them."""
    block: int = Field(default=1, ge=1, le=4096)
    """Z: rows in succession that `robe` reads from one hashed place on."""

    @staticmethod
    def of(
        registry: FeatureRegistry,
        *,
        num_rows: int,
        width: int,
        probes: int,
        views: Mapping[str, tuple[str, ...]],
        kind: Kind = "unified",
        num_values: Mapping[str, int] | None = None,
        block: int = 1,
    ) -> "TableLayout":
        """Layout of a registry's token features; `probes` counts where a feature does not set its own.

        `num_values` is n_f of every token feature, for the kinds that need it; `collisionless` takes its number of rows
        from it, and does not read `num_rows`; `robe` alone reads `block`. Raises `InputError` for sizes that no table
        of this kind has and for a view of features that are not in the registry.
        """
        check_num_rows(num_rows)
        if width < 1 or probes < 1:
            found, remedy = f"width {width} and probes {probes}", "set embedding.width and embedding.probes"
            raise InputError("width and probes must be positive", found=found, remedy=remedy)
        features = {feature.name: feature for feature in registry.token_features}
        unknown = [name for names in views.values() for name in names if name not in features]
        if unknown:
            found, remedy = f"{unknown[0]!r}", f"use some of {', '.join(features)}"
            raise InputError("a view reads token features of the registry", found=found, remedy=remedy)
        num_probes = {name: feature.probes or probes for name, feature in features.items()}
        slots = {view: {name: num_probes[name] for name in features if name in set(views[view])} for view in views}
        given = {} if kind not in COUNTED or num_values is None else num_values
        counts = {name: given[name] for name in features if name in given}
        if kind == "collisionless":
            num_rows = _rows_of_values(slots, counts)
            check_num_rows(num_rows)
        _check_kind(kind, num_rows, slots, counts, set(features))
        settings: dict[str, Any] = {
            "num_rows": num_rows,
            "width": width,
            "seed": registry.seed,
            "views": slots,
            "keys": {name: feature.stable_key for name, feature in features.items()},
            "pooling": {
                name: getattr(feature, "pooling", "mean") for name, feature in features.items() if feature.is_list
            },
            "kind": kind,
            "num_values": counts,
            "block": block if kind == "robe" else 1,
        }
        return TableLayout(**settings)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_kind(self.kind, self.num_rows, self.views, self.num_values, set(self.keys))
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A layout is written without what came after its kind: its bundles keep their identity."""
        document = write(self)
        if self.kind != "robe":
            del document["block"]
        if self.kind == "unified":
            del document["kind"], document["num_values"]
        return document

    @cached_property
    def ranges(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(view, feature) to the rows that it may read: the first one, and how many; in output order."""
        readers = [(view, feature) for view, probes in self.views.items() for feature in probes]
        if self.kind not in COUNTED:
            return dict.fromkeys(readers, (0, self.num_rows))
        counts = [self.num_values[feature] for _, feature in readers]
        if self.kind == "collisionless":
            sizes = [count + 2 for count in counts]
        elif self.kind == "hashed":
            sizes = split_rows(self.num_rows, counts)
        else:  # two ranges of s rows tell s * s values apart
            sizes = [2 * half for half in split_rows(self.num_rows // 2, [math.isqrt(count << 20) for count in counts])]
        return dict(zip(readers, zip(accumulate(sizes, initial=0), sizes, strict=False), strict=True))

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All S slots in output order."""
        return tuple(
            self._slot(view, feature, probe)
            for view, probes in self.views.items()
            for feature, num_probes in probes.items()
            for probe in range(num_probes)
        )

    def _slot(self, view: str, feature: str, probe: int) -> Slot:
        first_row, num_rows = self.ranges[view, feature]

        def salted(number: int) -> int:
            return salt(self.seed, self.keys[feature], view, number)

        if self.kind == "robe":
            block, offset = divmod(probe, self.block)
            return Slot(view, feature, probe, salted(block), first_row, num_rows, num_rows, offset=offset)
        if self.kind == "quotient_remainder":
            half = num_rows // 2
            num_ids, divisor = min(half * half, MAX_NUM_ROWS), half if probe else 1
            return Slot(view, feature, probe, salted(0), first_row + probe * half, half, num_ids, divisor)
        return Slot(view, feature, probe, salted(probe), first_row, num_rows, num_rows)

    @cached_property
    def view_widths(self) -> dict[str, dict[str, int]]:
        """View to {feature: columns of the output}."""
        return {view: {name: n * self.width for name, n in probes.items()} for view, probes in self.views.items()}

    @property
    def embedded_width(self) -> int:
        """Columns of the output, S * w."""
        return len(self.slots) * self.width

    def salts_of(self, feature: str) -> Tokens:
        """Salts of a feature's slots [number of slots], in output order."""
        return np.array([slot.salt for slot in self.slots if slot.feature == feature], dtype=np.uint64)

    def positions_of(self, feature: str) -> list[int]:
        """Positions of a feature's slots among all slots, in output order."""
        return [position for position, slot in enumerate(self.slots) if slot.feature == feature]


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
    # Whoever is due less than a row gets one, and the others share the rest: from the lightest on, as each such row
    # makes the rest smaller.
    while ascending and rows * weights[ascending[0]] < total:
        rows, total = rows - 1, total - weights[ascending.pop(0)]
    for part in ascending:
        sizes[part] = rows * weights[part] // total
    by_remainder = sorted(ascending, key=lambda part: (-(rows * weights[part] % total), part))
    for part in by_remainder[: num_rows - sum(sizes)]:
        sizes[part] += 1
    return sizes


def _rows_of_values(views: Mapping[str, Mapping[str, int]], counts: Mapping[str, int]) -> int:
    """M of a collisionless table: one row a value and two more for each (view, feature); a table has one at least."""
    return max(1, sum(counts.get(name, 0) + 2 for names in views.values() for name in names))


def _check_kind(
    kind: Kind, num_rows: int, views: Mapping[str, Mapping[str, int]], counts: Mapping[str, int], features: set[str]
) -> None:
    """Raise `InputError` unless a table of this kind can have these sizes."""
    if set(counts) != (features if kind in COUNTED else set()):
        found = ", ".join(sorted(counts)) or "none"
        remedy = "count the values of the training data"
        raise InputError(f"a {kind} table needs num_values of its features", found=found, remedy=remedy)
    if kind not in COUNTED:
        return
    num_readers = sum(len(names) for names in views.values()) * (2 if kind == "quotient_remainder" else 1)
    if kind != "collisionless" and num_rows < num_readers:
        rows, remedy = "a row" if kind == "hashed" else "two rows", f"set embedding.num_rows to {num_readers} or more"
        raise InputError(f"a {kind} table needs {rows} for each feature and view", found=str(num_rows), remedy=remedy)
    if kind != "hashed":
        _check_probes(kind, 1 if kind == "collisionless" else 2, views)
    if kind == "collisionless" and num_rows != _rows_of_values(views, counts):
        raise InputError(
            f"expected {_rows_of_values(views, counts)} rows of a collisionless table", found=str(num_rows)
        )


def _check_probes(kind: Kind, expected: int, views: Mapping[str, Mapping[str, int]]) -> None:
    for names in views.values():
        for name, probes in names.items():
            if probes != expected:
                number, width = ("one probe", 16) if expected == 1 else ("two probes", 8)
                remedy = f"set embedding.probes={expected} and embedding.width={width}, say, and no other `probes:` in "
                raise InputError(
                    f"a {kind} table is read by {number}", found=f"{probes} of {name!r}", remedy=remedy + "the registry"
                )
