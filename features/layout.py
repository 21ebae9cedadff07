"""TableLayout: the rows of the table that an example reads, and their columns in the network's input.

S slots (one per view, feature and probe), w row width, M table rows, n_f distinct values of a feature in train. A
view reads the table with its own salts: `main` feeds the network, FinalMLP's gates add `fs1` and `fs2`.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from features.errors import InputError
from features.hashing import MAX_NUM_ROWS, Tokens, check_num_rows, salt
from features.registry import FeatureRegistry
from features.spec import Probes
from features.table_kinds import TABLE_KINDS, Addressing, Slot, TableKind, counts_of_readers


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
    """w: floats per row."""
    seed: int
    """The registry's seed, which all salts contain."""
    views: Annotated[dict[str, dict[str, Probes]], Field(max_length=16)]
    """View to {feature: probes}, features in registry order."""
    keys: dict[str, str]
    """Feature to the stable key that its salts contain."""
    pooling: dict[str, str]
    """List feature to `mean` or `sum`; scalars are left out."""
    kind: TableKind = "unified"
    num_values: dict[str, Annotated[int, Field(ge=0, le=MAX_NUM_ROWS)]] = {}
    """Feature to n_f, without the missing value; empty for kinds that do not depend on it."""
    block: int = Field(default=1, ge=1, le=4096)
    """Z: consecutive rows that `robe` reads from one hashed row on."""

    @staticmethod
    def of(
        registry: FeatureRegistry,
        *,
        num_rows: int,
        width: int,
        probes: int,
        views: Mapping[str, tuple[str, ...]],
        kind: TableKind = "unified",
        num_values: Mapping[str, int] | None = None,
        block: int = 1,
    ) -> "TableLayout":
        """Layout of a registry's token features; `probes` is for features that do not set their own.

        `num_values` is n_f of every token feature, for the kinds that need it: `collisionless` computes its number of
        rows from it and ignores `num_rows`. Only `robe` reads `block`. Raises `InputError` for sizes that a table of
        this kind cannot have and for a view of features that are not in the registry.
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
        if kind not in TABLE_KINDS:
            remedy = f"use one of {', '.join(TABLE_KINDS)}"
            raise InputError("expected a kind of table", found=repr(kind), remedy=remedy)
        addressing = TABLE_KINDS[kind]
        given = num_values if num_values is not None and addressing.has_own_ranges else {}
        counts = {name: given[name] for name in features if name in given}
        num_rows = addressing.table_rows(num_rows, counts_of_readers(slots, counts))
        check_num_rows(num_rows)
        addressing.check(kind, num_rows, slots, counts, set(features))
        return TableLayout(
            num_rows=num_rows,
            width=width,
            seed=registry.seed,
            views=slots,
            keys={name: feature.stable_key for name, feature in features.items()},
            pooling={
                name: getattr(feature, "pooling", "mean") for name, feature in features.items() if feature.is_list
            },
            kind=kind,
            num_values=counts,
            block=block if addressing.has_blocks else 1,
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.addressing.check(self.kind, self.num_rows, self.views, self.num_values, set(self.keys))
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Settings that are newer than a layout's kind are not written, so its bundles keep their identity."""
        document = write(self)
        if not self.addressing.has_blocks:
            del document["block"]
        if self.kind == TableLayout.model_fields["kind"].default:
            del document["kind"], document["num_values"]
        return document

    @property
    def addressing(self) -> type[Addressing]:
        """The class of the table's kind."""
        return TABLE_KINDS[self.kind]

    @cached_property
    def ranges(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(view, feature) to the first row and the number of rows that it may read; in output order."""
        readers = [(view, feature) for view, probes in self.views.items() for feature in probes]
        counts = counts_of_readers(self.views, self.num_values)
        return dict(zip(readers, self.addressing.ranges(self.num_rows, counts), strict=True))

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All S slots in output order."""
        slots: list[Slot] = []
        for (view, feature), rows in self.ranges.items():
            for probe in range(self.views[view][feature]):
                number, *numbers = self.addressing.lookup(probe, *rows, self.block)
                slots.append(Slot(view, feature, probe, salt(self.seed, self.keys[feature], view, number), *numbers))
        return tuple(slots)

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
