"""What the frontier study consists of: methods, budgets, and the points that they make with data and seeds.

A budget is a share of the bytes that a collisionless fp32 table of 16 floats a value takes on the disk, its vocabulary
not counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from experiments.studies.runner import key_of
from experiments.studies.table_kinds import SINGLE, WIDTH, Cell, Facts, Shape, Variant, cells_of, table
from recsys.compression import COMPRESSORS, InitFrom
from recsys.config import Compression, Experiment
from serving.bundle.table import TableDtype, table_bytes

BUDGETS = (0.1, 0.2, 0.5, 0.02, 0.01)
"""Shares of the collisionless table's bytes, in the order in which they are tried."""
DTYPES: tuple[TableDtype, ...] = ("int8", "int4", "fp32")
"""Types of the exported rows that are tried at each budget, in this order."""
MODELS = {"movielens": "dcn_v2", "frappe": "final_mlp"}
SHAPES = {"movielens": Shape(4, 4), "frappe": Shape(8, 4)}
"""The best shape of a unified table, by data: docs/results."""
REFERENCE = "collisionless"
ROWS_A_VALUE = 32
"""Rows of the base `wide` for each row of the collisionless table: nearly no collisions, and unread rows go."""

Base = Literal["collisionless", "unified", "wide"]


class Method(NamedTuple):
    """A curve of the frontier."""

    compressor: str
    """Key into COMPRESSORS."""
    base: Base
    """The run that it starts from; shape-only methods take its network and its seed alone."""
    dtypes: tuple[TableDtype, ...] = DTYPES
    """Those that it is tried with."""
    start: InitFrom | None = None
    """Weights that its last training begins with; None: as the compressor has it."""
    changes: Mapping[str, Any] = MappingProxyType({})
    """`compression.settings.KEY` to value that make another curve of the same compressor."""

    @property
    def settings(self) -> dict[str, Any]:
        """`compression.settings.KEY` to value, where it is not the default."""
        known = COMPRESSORS[self.compressor].Config.model_fields
        # The base `wide` is as wide already.
        return {**({"rows_a_value": None} if "rows_a_value" in known else {}), **self.changes}


METHODS: dict[str, Method] = {
    "smaller table": Method("smaller", "unified"),
    "magnitude": Method("magnitude", "wide"),
    # OptEmbed's second stage alone, and the whole of it as in the paper: supernet, search, rewind.
    "width search": Method("optembed", "wide"),
    "OptEmbed": Method("optembed", "wide", start="rewind", changes={"supernet": True}),
    "importance": Method("importance", "wide"),
    "frequency cut-off": Method("frequency", "wide"),
    "OptFS": Method("opt_fs", "wide"),
    "mixed dimensions": Method("mixed_dimensions", "wide"),
    "ROBE": Method("robe", "unified", ("int8", "fp32")),  # single floats: two do not share a byte
    "quotient-remainder": Method("quotient_remainder", "unified"),
    "hashed": Method("hashed", "unified"),
    "low-bit rows": Method("quantized", "collisionless", ("int8", "int4")),
}
"""Label to method; those whose compressor is not in COMPRESSORS are passed over."""


class Point(NamedTuple):
    """One run to be done: a method at a budget with a type of rows and a seed; without a method, the reference."""

    data: str
    method: str | None
    dtype: TableDtype
    budget: float
    cell: Cell
    """The base run's."""
    facts: Facts
    seed: int
    target_bytes: int
    """What the run is asked for: `asked_bytes`."""

    @property
    def experiment(self) -> Experiment:
        """The base run's."""
        return self.cell.experiment(self.seed)

    @property
    def compression(self) -> dict[str, Any] | None:
        """What distinguishes the points of one base run."""
        if self.method is None:
            return None
        method = METHODS[self.method]
        budget = {"table_dtype": self.dtype, "target_bytes": self.target_bytes}
        given = {"method": method.compressor, **budget, "settings": method.settings}
        given |= {} if method.start is None else {"start": method.start}
        return Compression.model_validate(given).model_dump(mode="json")

    @property
    def base_key(self) -> str:
        """Identity of the base run."""
        return key_of(self.experiment, self.facts.info.digest)

    @property
    def key(self) -> str:
        """Identity of the point."""
        return key_of(self.experiment, self.facts.info.digest, self.compression)

    @property
    def name(self) -> str:
        """For lines about its progress."""
        what = REFERENCE if self.method is None else f"{self.method} {self.dtype}@{self.budget:g}"
        return f"{self.data} {what} seed {self.seed}"


class Choice(NamedTuple):
    """What a call of the command asks for."""

    methods: Sequence[str]
    budgets: Sequence[float]
    dtypes: Sequence[str]
    seeds: int


def bases_of(facts: Facts, data: str) -> tuple[dict[str, Cell], int]:
    """The base runs of a dataset by name, and the rows of its collisionless table."""
    counts: list[int] = []

    def variants(rows: int) -> Iterator[Variant]:
        counts.append(rows)
        yield Variant("collisionless", 1.0, table("collisionless", SINGLE, 1.0, rows))
        yield Variant("unified", 1.0, table("unified", SHAPES[data], 1.0, rows))
        yield Variant("wide", float(ROWS_A_VALUE), table("unified", SINGLE, ROWS_A_VALUE, rows))

    return {cell.label: cell for cell in cells_of(facts, data, MODELS[data], variants)}, counts[0]


def asked_bytes(budget: float, method: Method, dtype: TableDtype, rows: int) -> int:
    """What a run is asked for at a budget, where the collisionless table has so many rows.

    A method that removes rows does the same at every budget that all rows fit in, bit for bit: one run, that at the
    smallest of these budgets, stands for all of them.

    >>> [asked_bytes(budget, METHODS["magnitude"], "int4", rows=10_000) for budget in (0.5, 0.2, 0.1)]
    [128016, 128016, 64008]
    >>> [asked_bytes(budget, METHODS["smaller table"], "int4", rows=10_000) for budget in (0.5, 0.2, 0.1)]
    [320040, 128016, 64008]
    """
    full = table_bytes(rows, WIDTH, "fp32")
    if method.base == "wide":
        whole = table_bytes(ROWS_A_VALUE * rows, WIDTH, dtype, num_kept=rows)
        budget = min((b for b in BUDGETS if whole <= int(b * full) and b < budget), default=budget)
    return int(budget * full)


def points_of(facts: Mapping[str, Facts], choice: Choice) -> list[Point]:
    """Every point that was asked for, in the order in which to do them: seed, data, budget, type of rows, method."""
    bases = {data: bases_of(own, data) for data, own in facts.items()}

    def point(data: str, name: str, dtype: TableDtype, budget: float, seed: int) -> Point:
        method, (cells, rows) = METHODS[name], bases[data]
        asked = asked_bytes(budget, method, dtype, rows)
        return Point(data, name, dtype, budget, cells[method.base], facts[data], seed, asked)

    points: list[Point] = []
    for seed in range(1, choice.seeds + 1):
        for data, (cells, rows) in bases.items():
            full = table_bytes(rows, WIDTH, "fp32")
            points.append(Point(data, None, "fp32", 1.0, cells[REFERENCE], facts[data], seed, full))
            points += [
                point(data, name, dtype, budget, seed)
                for budget in choice.budgets
                for dtype in DTYPES
                for name in choice.methods
                if dtype in METHODS[name].dtypes and dtype in choice.dtypes
            ]
    return points
