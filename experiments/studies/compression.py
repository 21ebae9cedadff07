"""Studies of compression: test AUC against bytes, for every method of `muxrec prune` at every budget.

A budget is a share of the bytes that a collisionless fp32 table of 16 floats per value takes on disk, its vocabulary
not counted. The cost of a method is the size of its bundle's embedding files, the vocabulary included.
"""

import itertools
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from experiments.studies.table_kinds import (
    SINGLE,
    WIDTH,
    Cell,
    Panel,
    Shape,
    Study,
    StudyData,
    with_seeds,
)
from recsys.compression import COMPRESSORS, InitFrom
from serving.bundle.quantize import TableDtype
from serving.bundle.table_plan import table_bytes

BUDGETS = (0.1, 0.2, 0.5, 0.02, 0.01)
"""Shares of the collisionless table's bytes, in the order in which they are tried."""
DTYPES: tuple[TableDtype, ...] = ("int8", "int4", "fp32")
SEEDS: dict[str, int] = {
    "*": 3,
    # A type of fewer bits holds more values, so the others are for methods without int4; some have one seed of int8.
    "* int8@*": 0,
    "* fp32@*": 0,
    "* ROBE int8@*": 3,
    "* low-bit rows int8@*": 3,
    "movielens * smaller table int8@0.1": 1,
    "movielens * OptFS int8@*": 1,
    "movielens * quotient-remainder int8@*": 1,
    "movielens * hashed int8@*": 1,
}
"""Pattern over `DATA MODEL LABEL TYPE@BUDGET` to the number of runs of the plain command; a later pattern wins."""
REFERENCE = "collisionless"
WIDE_FACTOR = 32
"""Rows of the base run `wide` per row of the collisionless table: almost no collisions, and unread rows are dropped."""

Base = Literal["collisionless", "unified", "wide"]


class Method(NamedTuple):
    """A curve: a method of compression with its settings, and the run that it starts from."""

    compressor: str
    """Key into COMPRESSORS."""
    base: Base
    """The run that it compresses; methods that replace the table take only its network and seed."""
    changes: Mapping[str, Any] = MappingProxyType({})
    """`compression.settings.KEY` to value."""
    start: InitFrom | None = None
    """Weights that its last training begins with; None: the method's own choice."""
    dtypes: tuple[TableDtype, ...] = DTYPES

    @property
    def settings(self) -> dict[str, Any]:
        """`compression.settings.KEY` to value, where it is not the default."""
        known = COMPRESSORS[self.compressor].Config.model_fields
        # The base run `wide` has as many rows already.
        return {**({"rows_a_value": None} if "rows_a_value" in known else {}), **self.changes}


METHODS: dict[str, Method] = {
    "smaller table": Method("smaller", "unified"),
    "magnitude": Method("magnitude", "wide"),
    # OptEmbed's second stage alone, and the whole procedure as in the paper: supernet, search, rewind.
    "width search": Method("optembed", "wide"),
    "OptEmbed": Method("optembed", "wide", {"supernet": True}, start="rewind"),
    "importance": Method("importance", "wide"),
    "frequency cut-off": Method("frequency", "wide"),
    "OptFS": Method("opt_fs", "wide"),
    "mixed dimensions": Method("mixed_dimensions", "wide"),
    "ROBE": Method(
        "robe", "unified", dtypes=("int8", "fp32")
    ),  # int4 packs two floats into a byte; ROBE reads single ones
    "quotient-remainder": Method("quotient_remainder", "unified"),
    "hashed": Method("hashed", "unified"),
    "low-bit rows": Method("quantized", "collisionless", dtypes=("int8", "int4")),
}


FRONTIERS = {"movielens": ("dcn_v2", Shape(4, 4)), "frappe": ("final_mlp", Shape(8, 4))}
"""Dataset to the model, and the best shape of a unified table (docs/results)."""


def asked_bytes(budget: float, method: Method, dtype: TableDtype, rows: int) -> int:
    """Bytes to ask of a run at a budget, where the collisionless table has `rows` rows.

    A method that removes rows gives the same result, bit for bit, at every budget that all rows fit in: one run, that
    at the smallest of these budgets, serves for all of them.

    >>> [asked_bytes(budget, METHODS["magnitude"], "int4", rows=10_000) for budget in (0.5, 0.2, 0.1)]
    [128016, 128016, 64008]
    >>> [asked_bytes(budget, METHODS["smaller table"], "int4", rows=10_000) for budget in (0.5, 0.2, 0.1)]
    [320040, 128016, 64008]
    """
    full = table_bytes(rows, WIDTH, "fp32")
    if method.base == "wide":
        whole = table_bytes(WIDE_FACTOR * rows, WIDTH, dtype, num_kept=rows)
        budget = min((b for b in BUDGETS if whole <= int(b * full) and b < budget), default=budget)
    return int(budget * full)


def frontier_cells(data: Mapping[str, StudyData], name: str) -> list[Cell]:
    """The reference and every method on the dataset `name`, in order of budget, type of rows and method."""
    model, shape = FRONTIERS[name]
    panel = Panel.of(data, name, model)
    bases = {
        "collisionless": panel.cell("collisionless", SINGLE, 1.0, REFERENCE),
        "unified": panel.cell("unified", shape, 1.0),
        "wide": panel.cell("unified", SINGLE, WIDE_FACTOR),
    }
    cells = [bases[REFERENCE]]
    for budget, dtype, (label, method) in itertools.product(BUDGETS, DTYPES, METHODS.items()):
        target_bytes = asked_bytes(budget, method, dtype, panel.num_rows)
        how = {"method": method.compressor, "target_bytes": target_bytes, "table_dtype": dtype}
        how |= {"settings": method.settings} | ({} if method.start is None else {"start": method.start})
        if dtype in method.dtypes:
            cells.append(bases[method.base]._replace(label=label, budget=budget, compression=how))
    return [with_seeds(cell, SEEDS) for cell in cells]


COMPRESSION: dict[str, Study] = {
    f"frontier_{name}": Study(
        f"{name.capitalize()}: quality against bytes",
        "How much quality does each way to make the embedding table smaller cost, at equal bytes on disk?",
        (name,),
        partial(frontier_cells, name=name),
        target,
    )
    for name, target in {"movielens": 0.0005, "frappe": 0.002}.items()
}
