"""STUDIES: which runs answer which question; a study is a function from facts of the data to its cells.

A cell is a named run of `muxrec train` with some settings changed: what stands in a report as one row, trained with
several seeds. Tables are compared by bytes. The unit is the collisionless table of the same model on the same data: a
row for each value seen in train, and two more, for each feature of each view.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runs import RUNS
from features.dataset.info import DatasetInfo, read_dataset
from features.errors import InputError
from recsys.config import Experiment, with_overrides
from recsys.dataset import Split
from recsys.evaluation.collisions import distinct_tokens, vocabulary_of
from recsys.models import MODELS
from recsys.ranker import model_config

WIDTH = 16
"""Floats that a value reads from a collisionless or a hashed table; budgets are in bytes, whatever a value reads."""
SEEDS = {"frappe": 3, "movielens": 5}
"""Runs a cell, by data."""

_QUICKLY = {"trainer.batch_size": 4096, "trainer.learning_rate": 0.003, "trainer.patience": 1}
"""For small networks without dropout: DCN V2 on the collisionless table came to a validation AUC of .8950 in 9 epochs,
and to .8939 in 18 with batches of 2,048 at rate 0.001."""

NETWORKS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("frappe", "final_mlp"): ("frappe", {"trainer.epochs": 30}),
    ("frappe", "final_net"): ("frappe_final_net", {"trainer.epochs": 30}),
    ("frappe", "dcn_v2"): ("frappe_dcn_v2", {"trainer.epochs": 30}),
    ("frappe", "dual_mlp"): (
        "dual_mlp",
        {
            "model.mlp1_hidden": [400],
            "model.mlp2_hidden": [100],
            "model.mlp1_dropout": 0.4,
            "model.mlp2_dropout": 0.4,
            "trainer.batch_size": 4096,
            "trainer.epochs": 30,
            "embedding.l2": 0.05,
        },
    ),
    ("movielens", "dcn_v2"): ("movielens_1m_dcn_v2", _QUICKLY),
    ("movielens", "final_mlp"): (
        "movielens_1m",
        {
            # As the DCN V2 beside it: 192 units, little decay, neither batch norm nor dropout.
            "model.mlp1_hidden": [192],
            "model.mlp2_hidden": [192],
            "model.mlp1_dropout": 0.0,
            "model.mlp2_dropout": 0.0,
            "model.mlp1_batch_norm": False,
            "model.mlp2_batch_norm": False,
            "model.num_heads": 8,
            "embedding.l2": 1e-5,
            **_QUICKLY,
        },
    ),
}
"""(data, model) to the named run that its cells start from, and the settings that they share."""

TUNED: dict[str, dict[str, Any]] = {
    # Row-wise Adagrad has no second chance on its rate: the sums that divide it only grow.
    "*rowwise_adagrad*": {"embedding.learning_rate": 0.02, "embedding.l2": 1e-5},
}
"""Settings of single cells, by pattern over `DATA MODEL LABEL@BUDGET`, as "frappe final_mlp hashed*@0.1"; a later
pattern wins. What a cell compares (its table's kind, shape and optimiser) stands in the cell itself."""


class Facts(NamedTuple):
    """What a study must know of a dataset."""

    directory: Path
    info: DatasetInfo
    num_values: dict[str, int]
    """Token feature, in registry order, to its distinct training values; the missing value is none."""


class Cell(NamedTuple):
    """One row of a report: a named run with settings changed, trained once a seed."""

    data: str
    model: str
    label: str
    """What is tried; one line of a figure."""
    budget: float | None
    """Bytes of the table in units of the collisionless one; none where sizes are not the question."""
    run: str
    """Key into RUNS."""
    settings: dict[str, Any]
    """`key.sub` to value."""
    against: tuple[str, ...] = ()
    """Labels of the cells that it is compared with, at its own budget where they have it."""

    @property
    def panel(self) -> str:
        """Data and model: cells that agree in them are set beside each other."""
        return f"{self.data} {self.model}"

    @property
    def name(self) -> str:
        """What patterns of TUNED are matched with, and progress lines say."""
        return f"{self.panel} {self.label}" + (f"@{self.budget:g}" if self.budget is not None else "")

    def arguments(self, seed: int) -> list[str]:
        """What comes after `muxrec train`, but for the directories.

        >>> Cell("d", "mlp", "small", None, "mlp", {"model.hidden": [8], "embedding.kind": "hashed"}).arguments(2)
        ['mlp', 'model.hidden=[8]', 'embedding.kind=hashed', 'seed=2']
        """
        return [self.run, *(f"{key}={yaml_text(value)}" for key, value in self.settings.items()), f"seed={seed}"]

    def experiment(self, seed: int) -> Experiment:
        """The resolved experiment that these arguments lead to; raises `InputError` for settings that there are not."""
        name, *overrides = self.arguments(seed)
        return with_overrides(RUNS[name](), overrides)


class Study(NamedTuple):
    """A question, and the function that lists the cells which answer it."""

    title: str
    question: str
    data: tuple[str, ...]
    """Datasets whose facts `cells` takes."""
    cells: Callable[[Mapping[str, Facts]], list[Cell]]


class Variant(NamedTuple):
    """What distinguishes the cells of one model."""

    label: str
    budget: float | None
    settings: dict[str, Any]
    against: tuple[str, ...] = ()


class Shape(NamedTuple):
    """What a value reads of a table."""

    probes: int
    width: int


SINGLE = Shape(1, WIDTH)
COLLISIONLESS, HASHED = f"collisionless 1x{WIDTH}", f"hashed 1x{WIDTH}"


def read_facts(directory: Path) -> Facts:
    """Facts of a dataset directory; reads the training tokens once. Raises `InputError` where it is none."""
    train = Split(directory, "train")
    vocabulary = vocabulary_of(distinct_tokens(train.tokens()))
    num_values = {feature.name: len(vocabulary[feature.name]) for feature in train.registry.token_features}
    return Facts(directory, train.info, num_values)


def directories_by_data(directories: Sequence[Path]) -> dict[str, Path]:
    """Dataset directories by the name that studies have for the data, which the dataset's own begins with.

    Raises `InputError` for a directory that is no dataset, for data that no study knows, and for the same data twice.
    """
    found: dict[str, Path] = {}
    for directory in directories:
        info, _ = read_dataset(directory)
        data = next((name for name in SEEDS if info.name.startswith(name)), None)
        if data is None or data in found:
            remedy = f"give one of each: {', '.join(f'data.{name}' for name in SEEDS)} prepare them"
            wrong = "data of a study" if data is None else f"one dataset of {data}"
            raise InputError(f"{directory}: expected {wrong}", found=repr(info.name), remedy=remedy)
        found[data] = directory
    return found


def collisionless_rows(facts: Facts, model: str, settings: Mapping[str, Any]) -> int:
    """Rows of the collisionless table under a model: (values + missing + unseen) over its views and their features."""
    views = MODELS[model].views(model_config(model, dict(settings)), tuple(facts.num_values))
    return sum(facts.num_values[name] + 2 for names in views.values() for name in names)


def cells_of(facts: Facts, data: str, model: str, variants: Callable[[int], Iterator[Variant]]) -> list[Cell]:
    """Cells of one model on one dataset; `variants` is handed the rows of the collisionless table."""
    run, shared = NETWORKS[data, model]
    network = {key.removeprefix("model."): value for key, value in shared.items() if key.startswith("model.")}
    start = RUNS[run]().model.model_dump(exclude={"name"})
    rows = collisionless_rows(facts, model, {**start, **network})
    cells = [
        Cell(data, model, variant.label, variant.budget, run, {**shared, **variant.settings}, variant.against)
        for variant in variants(rows)
    ]
    return [tuned(cell) for cell in cells]


def tuned(cell: Cell) -> Cell:
    """The cell with the settings that TUNED has for it."""
    changes: dict[str, Any] = {}
    for pattern, settings in TUNED.items():
        if fnmatchcase(cell.name, pattern):
            changes |= settings
    return cell._replace(settings={**cell.settings, **changes})


def table(kind: str, shape: Shape, budget: float, rows: int, **embedding: Any) -> dict[str, Any]:
    """Settings of a table with `budget` times the bytes of `rows` collisionless rows.

    >>> table("unified", Shape(4, 4), 0.5, 1000)["embedding.num_rows"]
    2000
    """
    settings = {"kind": kind, **shape._asdict(), **embedding}
    if kind != "collisionless":
        settings["num_rows"] = max(1, round(rows * WIDTH / shape.width * budget))
    return {f"embedding.{key}": value for key, value in settings.items()}


def unified_label(shape: Shape) -> str:
    """Label of a unified table: probes times row width.

    >>> unified_label(Shape(8, 4))
    'unified 8x4'
    """
    return f"unified {shape.probes}x{shape.width}"


def _by_budget(rows: int, shapes: Mapping[Shape, Sequence[float]]) -> Iterator[Variant]:
    """The collisionless table, then hashed ones and unified ones (shapes to budgets) beside it."""
    yield Variant(COLLISIONLESS, 1.0, table("collisionless", SINGLE, 1.0, rows))
    for budget in (1.0, 0.5, 0.1):
        yield Variant(HASHED, budget, table("hashed", SINGLE, budget, rows), (COLLISIONLESS,))
    for shape, budgets in shapes.items():
        for budget in budgets:
            settings = table("unified", shape, budget, rows)
            yield Variant(unified_label(shape), budget, settings, (HASHED, COLLISIONLESS))


def _frappe_ladder(facts: Mapping[str, Facts]) -> list[Cell]:
    best, one = Shape(8, 4), unified_label(Shape(8, 4))

    def ladder(rows: int) -> Iterator[Variant]:
        yield from _by_budget(rows, {best: (1.0, 0.5, 0.1), Shape(4, 4): (1.0,), SINGLE: (1.0,)})
        adagrad = table("unified", best, 1.0, rows, optimizer="rowwise_adagrad")
        yield Variant(f"{one}, rowwise_adagrad", 1.0, adagrad, (one,))

    def pair(rows: int) -> Iterator[Variant]:
        yield Variant(COLLISIONLESS, 1.0, table("collisionless", SINGLE, 1.0, rows))
        yield Variant(one, 1.0, table("unified", best, 1.0, rows), (COLLISIONLESS,))

    ladders = cells_of(facts["frappe"], "frappe", "final_mlp", ladder)
    return ladders + cells_of(facts["frappe"], "frappe", "final_net", pair)


def _movielens_unified(facts: Mapping[str, Facts]) -> list[Cell]:
    budgets = (1.0, 0.5, 0.1)

    def shapes(*tried: Shape) -> Callable[[int], Iterator[Variant]]:
        return lambda rows: _by_budget(rows, dict.fromkeys(tried, budgets))

    # More probes at equal bytes are tried on the first model alone.
    cells = cells_of(facts["movielens"], "movielens", "dcn_v2", shapes(SINGLE, Shape(4, 4)))
    return cells + cells_of(facts["movielens"], "movielens", "final_mlp", shapes(SINGLE))


def _optimizers(facts: Mapping[str, Facts]) -> list[Cell]:
    def each(rows: int) -> Iterator[Variant]:
        for kind, shape in (("collisionless", SINGLE), ("unified", Shape(4, 4))):
            name = COLLISIONLESS if kind == "collisionless" else unified_label(shape)
            for optimizer in ("dense_adam", "adam", "rowwise_adagrad"):
                settings = table(kind, shape, 1.0, rows, optimizer=optimizer)
                against = () if optimizer == "dense_adam" else (f"{name}, dense_adam",)
                yield Variant(f"{name}, {optimizer}", 1.0, settings, against)

    return cells_of(facts["frappe"], "frappe", "final_mlp", each)


def _precision(facts: Mapping[str, Facts]) -> list[Cell]:
    cells = []
    for data, run in (("frappe", "frappe"), ("movielens", "movielens_1m")):
        for precision in ("fp32", "bf16"):
            against = ("fp32",) if precision == "bf16" else ()
            cells.append(Cell(data, "final_mlp", precision, None, run, {"trainer.precision": precision}, against))
    return [tuned(cell) for cell in cells]


STUDIES: dict[str, Study] = {
    "frappe_ladder": Study(
        "Frappe: from a row a value to one shared table",
        "What does each step from a collisionless table to a small unified one cost or bring, on the same data and "
        "with the same networks?",
        ("frappe",),
        _frappe_ladder,
    ),
    "movielens_unified": Study(
        "MovieLens-1M: one shared table, a table a feature, no collisions",
        "At equal bytes, does one table for all features beat a hashed table for each, and how far is it from a table "
        "without collisions?",
        ("movielens",),
        _movielens_unified,
    ),
    "optimizers": Study(
        "Frappe: optimisers of the table",
        "Does the row-sparse Adam end where the dense one with dense L2 ends, and what does row-wise Adagrad give up?",
        ("frappe",),
        _optimizers,
    ),
    "precision": Study(
        "bf16 beside fp32",
        "Does training the network in bf16 change what is learned?",
        ("frappe", "movielens"),
        _precision,
    ),
}
"""Name to study; `python -m experiments.studies.runner` runs them."""


def yaml_text(value: Any) -> str:
    """A value as `key=value` takes it: JSON, which is YAML, but text without quotes."""
    return value if isinstance(value, str) else json.dumps(value)
