"""TableLayout: which rows of the one table an example reads, and where they stand in the network's input.

S slots (one per view, feature and probe), w row width, M table rows. A view is one reading of the table under salts
of its own: `main` feeds the network, FinalMLP's gates add `fs1` and `fs2`.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from features.errors import InputError
from features.hashing import MAX_NUM_ROWS, Tokens, check_num_rows, salt
from features.registry import FeatureRegistry
from features.spec import Probes


class Slot(NamedTuple):
    """One lookup of an example: a probe of a feature in a view."""

    view: str
    feature: str
    probe: int
    salt: int


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

    @staticmethod
    def of(
        registry: FeatureRegistry, *, num_rows: int, width: int, probes: int, views: Mapping[str, tuple[str, ...]]
    ) -> "TableLayout":
        """Layout of a registry's token features; `probes` counts where a feature does not set its own.

        Raises `InputError` for sizes that no table has and for a view of features that are not in the registry.
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
        settings: dict[str, Any] = {
            "num_rows": num_rows,
            "width": width,
            "seed": registry.seed,
            "views": {
                view: {name: num_probes[name] for name in features if name in set(views[view])} for view in views
            },
            "keys": {name: feature.stable_key for name, feature in features.items()},
            "pooling": {
                name: getattr(feature, "pooling", "mean") for name, feature in features.items() if feature.is_list
            },
        }
        return TableLayout(**settings)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """All S slots in output order."""
        return tuple(
            Slot(view, feature, probe, salt(self.seed, self.keys[feature], view, probe))
            for view, probes in self.views.items()
            for feature, num_probes in probes.items()
            for probe in range(num_probes)
        )

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
