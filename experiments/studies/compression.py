"""Studies of compression: test AUC against bytes, for every method of `muxrec prune` at every budget.

A budget is a share of the bytes that a collisionless fp32 table of 16 floats per value takes on disk, its vocabulary
not counted. The cost of a method is the size of its bundle's embedding files, the vocabulary included.
"""

import itertools
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from experiments.studies.table_kinds import COLLISIONLESS, WIDTH, Cell, Study, StudyData, collisionless_rows, table_cell
from serving.bundle.quantize import TableDtype
from serving.bundle.table_plan import table_bytes

BUDGETS = (0.1, 0.2, 0.5, 0.02, 0.01)
"""Shares of the collisionless table's bytes, in the order in which they are tried."""
DTYPES: tuple[TableDtype, ...] = ("int8", "int4")
REFERENCE = "collisionless"
WIDE_FACTOR = 32
"""Rows of the base run `wide` per row of the collisionless table: almost no collisions, and unread rows are dropped."""


class Method(NamedTuple):
    """A curve: a method of compression, and the run that it starts from."""

    compressor: str
    """Key into COMPRESSORS."""
    base: str
    """Label of the run that it compresses; methods that replace the table take only its network and seed."""
    dtypes: tuple[TableDtype, ...] = DTYPES
    options: Mapping[str, Any] = MappingProxyType({})
    """Other fields of `recsys.config.Compression`."""


_WIDE = MappingProxyType({"settings": {"rows_a_value": None}})  # the base run `wide` has as many rows already
_PAPER = MappingProxyType({"settings": {"rows_a_value": None, "supernet": True}, "start": "rewind"})

METHODS: dict[str, Method] = {
    "smaller table": Method("smaller", "unified"),
    "magnitude": Method("magnitude", "wide", options=_WIDE),
    # OptEmbed's second stage alone, and the whole procedure as in the paper: supernet, search, rewind.
    "width search": Method("optembed", "wide", options=_WIDE),
    "OptEmbed": Method("optembed", "wide", options=_PAPER),
    "importance": Method("importance", "wide", options=_WIDE),
    "frequency cut-off": Method("frequency", "wide", options=_WIDE),
    "OptFS": Method("opt_fs", "wide", options=_WIDE),
    "mixed dimensions": Method("mixed_dimensions", "wide", options=_WIDE),
    "ROBE": Method("robe", "unified", ("int8",)),  # reads single floats, and int4 packs two into a byte
    "quotient-remainder": Method("quotient_remainder", "unified"),
    "hashed": Method("hashed", "unified"),
    "low-bit rows": Method("quantized", REFERENCE),
}

FRONTIERS = {"movielens": ("dcn_v2", "unified 4x4", 0.0005), "frappe": ("final_mlp", "unified 8x4", 0.002)}
"""Dataset to the model, its best unified table (docs/results), and the AUC that a tenth of the bytes may cost."""


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
    model, unified, _ = FRONTIERS[name]
    bases = {
        REFERENCE: table_cell(data, (name, model), COLLISIONLESS)._replace(label=REFERENCE),
        "unified": table_cell(data, (name, model), unified),
        "wide": table_cell(data, (name, model), f"unified 1x{WIDTH}", WIDE_FACTOR),
    }
    rows = collisionless_rows(data[name], bases[REFERENCE].experiment(1))
    cells = [bases[REFERENCE]]
    for budget, dtype, (label, method) in itertools.product(BUDGETS, DTYPES, METHODS.items()):
        if dtype in method.dtypes:
            target_bytes = asked_bytes(budget, method, dtype, rows)
            how = {"method": method.compressor, "target_bytes": target_bytes, "table_dtype": dtype, **method.options}
            base = bases[method.base]
            cells.append(base._replace(label=label, budget=budget, against=(REFERENCE,), compression=how))
    return [cell for cell in cells if cell.num_seeds]


COMPRESSION: dict[str, Study] = {
    f"frontier_{name}": Study(
        f"{name.capitalize()}: quality against bytes",
        "How much quality does each way to make the embedding table smaller cost, at equal bytes on disk? The target: "
        f"a tenth of the bytes for at most {target:g} of test AUC.",
        (name,),
        partial(frontier_cells, name=name),
    )
    for name, (_, _, target) in FRONTIERS.items()
}
