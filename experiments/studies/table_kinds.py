"""Studies of the kinds of table: the runs that answer each question.

A study is a function from its datasets to its cells. A cell is one row of a report: a named run of `muxrec train` with
some settings changed, trained with several seeds. Tables are compared by bytes, in units of the collisionless table of
the same model on the same data: one row per value seen in train, and two more, per feature of each view.
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
"""Floats per row of a collisionless or a hashed table; budgets are in bytes, for any number of floats per value."""

SEEDS: dict[str, int] = {
    "frappe *": 3,
    "movielens *": 5,
    # Fewer seeds are enough where the gap is as wide as that of a hashed table, or where no question depends on it.
    "frappe final_mlp hashed*": 1,
    "frappe final_mlp hashed*@1": 2,
    "frappe final_mlp unified 4x4*": 2,
    "frappe final_mlp unified 1x16*": 1,
    "frappe final_mlp unified 8x4, *": 1,
    "frappe final_mlp collisionless 1x16, *": 2,
    "frappe final_mlp collisionless 1x16, adam@1": 3,  # the run that frappe_ladder has
    "* fp32": 1,
    "* bf16": 1,
}
"""Pattern over `DATA MODEL LABEL@BUDGET` to the number of runs of a cell; a later pattern wins."""

_FAST = {"trainer.batch_size": 4096, "trainer.learning_rate": 0.003, "trainer.patience": 1}
"""For small networks without dropout: DCN V2 on the collisionless table reached a validation AUC of .8950 in 9 epochs,
and .8939 in 18 with batches of 2,048 at rate 0.001."""

NETWORKS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("frappe", "final_mlp"): ("frappe", {"trainer.epochs": 30}),
    ("frappe", "final_net"): ("frappe_final_net", {"trainer.epochs": 30}),
    ("movielens", "dcn_v2"): ("movielens_1m_dcn_v2", _FAST),
    ("movielens", "final_mlp"): (
        "movielens_1m",
        {
            # Like DCN V2 above: 192 units, little decay, neither batch norm nor dropout.
            "model.mlp1_hidden": [192],
            "model.mlp2_hidden": [192],
            "model.mlp1_dropout": 0.0,
            "model.mlp2_dropout": 0.0,
            "model.mlp1_batch_norm": False,
            "model.mlp2_batch_norm": False,
            "model.num_heads": 8,
            "embedding.l2": 1e-5,
            **_FAST,
        },
    ),
}
"""(data, model) to the named run that its cells start from, and the settings that they share."""

TUNED: dict[str, dict[str, Any]] = {
    # Row-wise Adagrad cannot recover from a rate that is too high: the sums that divide it only grow.
    "*rowwise_adagrad*": {"embedding.learning_rate": 0.02, "embedding.l2": 1e-5},
}
"""Settings of single cells by a pattern like those of SEEDS. What a cell compares (its table's kind, shape and
optimizer) is in the cell itself."""


class StudyData(NamedTuple):
    """A dataset as the studies need it."""

    directory: Path
    info: DatasetInfo
    num_values: dict[str, int]
    """Token feature, in registry order, to the number of its distinct training values, the missing one not counted."""


class Cell(NamedTuple):
    """One row of a report: a named run with settings changed, and compressed where `compression` says how."""

    data: str
    model: str
    label: str
    """Name of the variant; one line of a figure."""
    budget: float | None
    """Bytes of the table in units of the collisionless one; None if size is not the question."""
    run: str
    settings: dict[str, Any]
    """`key.sub` to value."""
    against: tuple[str, ...] = ()
    """Labels of the cells that it is compared with, at its own budget where they have it."""
    compression: dict[str, Any] | None = None
    """Fields of `recsys.config.Compression`, as given to `muxrec prune`."""
    num_seeds: int = 1
    """Runs of the plain command: seeds 1, 2 and so on."""

    @property
    def panel(self) -> str:
        """Data and model: cells that agree in them share a panel of a figure."""
        return f"{self.data} {self.model}"

    @property
    def dtype(self) -> str:
        """Type of the stored rows."""
        return self.compression["table_dtype"] if self.compression else "fp32"

    @property
    def name(self) -> str:
        """`DATA MODEL LABEL@BUDGET`, for patterns and lines about its progress."""
        label = f"{self.label} {self.dtype}" if self.compression else self.label
        return f"{self.panel} {label}" + (f"@{self.budget:g}" if self.budget is not None else "")

    def train_arguments(self, seed: int) -> list[str]:
        """The arguments of `muxrec train`, without the directories.

        >>> Cell("d", "mlp", "small", None, "mlp", {"model.hidden": [8]}).train_arguments(2)
        ['mlp', 'model.hidden=[8]', 'seed=2']
        """
        return [self.run, *_overrides(self.settings), f"seed={seed}"]

    def prune_arguments(self) -> list[str]:
        """The arguments of `muxrec prune`, without the directories; none for a cell that is not compressed.

        >>> compression = {"method": "robe", "target_bytes": 9000, "table_dtype": "int8"}
        >>> Cell("d", "mlp", "ROBE", 0.1, "mlp", {}, compression=compression).prune_arguments()
        ['--method', 'robe', '--target-bytes', '9000', '--table-dtype', 'int8']
        """
        if self.compression is None:
            return []
        options = {key: self.compression[key] for key in ("method", "target_bytes", "table_dtype")}
        words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        words += _overrides(self.compression.get("settings", {}), "compression.settings.")
        return words + ([f"compression.start={self.compression['start']}"] if "start" in self.compression else [])

    def experiment(self, seed: int) -> Experiment:
        """The resolved experiment of these settings, before compression; raises `InputError` for unknown settings."""
        name, *overrides = self.train_arguments(seed)
        return with_overrides(RUNS[name](), overrides)


def _overrides(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    return [f"{prefix}{key}={yaml_text(value)}" for key, value in settings.items()]


def yaml_text(value: Any) -> str:
    """A value as `key=value` takes it: JSON, which is YAML, but text without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


class Study(NamedTuple):
    """A question, and the function that lists the cells which answer it."""

    title: str
    question: str
    data: tuple[str, ...]
    """Datasets that `cells` takes."""
    cells: Callable[[Mapping[str, StudyData]], list[Cell]]
    target: float | None = None
    """Test AUC that a tenth of the bytes may cost, in a study of compression."""


class Shape(NamedTuple):
    """The part of a table that a value reads: `probes` rows of `width` floats."""

    probes: int
    width: int

    def __str__(self) -> str:
        return f"{self.probes}x{self.width}"


SINGLE = Shape(1, WIDTH)
COLLISIONLESS, HASHED = f"collisionless {SINGLE}", f"hashed {SINGLE}"


def read_data(directory: Path) -> StudyData:
    """A dataset directory and the number of its training values; raises `InputError` if there is no dataset."""
    train = Split(directory, "train")
    vocabulary = vocabulary_of(distinct_tokens(train.tokens()))
    num_values = {feature.name: len(vocabulary[feature.name]) for feature in train.registry.token_features}
    return StudyData(directory, train.info, num_values)


def directories_by_data(directories: Sequence[Path]) -> dict[str, Path]:
    """Dataset directories by the studies' name for the data, with which the dataset's own name begins.

    Raises `InputError` for a directory without a dataset or without a test split, for data of no study, and for the
    same data twice.
    """
    known = sorted({name for name, _ in NETWORKS})
    found: dict[str, Path] = {}
    for directory in directories:
        info, _ = read_dataset(directory)
        data = next((name for name in known if info.name.startswith(name)), None)
        if data is None or data in found:
            remedy = f"give one of each: {', '.join(f'data.{name}' for name in known)} prepare them"
            expected = "data of a study" if data is None else f"one dataset of {data}"
            raise InputError(f"{directory}: expected {expected}", found=repr(info.name), remedy=remedy)
        if "test" not in info.splits:
            raise InputError(f"{directory}: expected a test split", found=", ".join(info.splits))
        found[data] = directory
    return found


class Panel(NamedTuple):
    """A model on a dataset, whose cells share a panel of a figure."""

    data: str
    model: str
    num_rows: int
    """Rows of the collisionless table: (values + missing + unseen) over the model's views and their features."""

    @classmethod
    def of(cls, data: Mapping[str, StudyData], name: str, model: str) -> "Panel":
        """The panel of a model on the dataset `name`."""
        run, shared = NETWORKS[name, model]
        network = {key.removeprefix("model."): value for key, value in shared.items() if key.startswith("model.")}
        start = RUNS[run]().model.model_dump(exclude={"name"})
        return cls(name, model, collisionless_rows(data[name], model, {**start, **network}))

    def cell(
        self,
        kind: str,
        shape: Shape,
        budget: float,
        label: str | None = None,
        against: tuple[str, ...] = (),
        **embedding: Any,
    ) -> Cell:
        """A cell with a table of `budget` times the bytes of the collisionless one.

        >>> Panel("frappe", "final_mlp", 1000).cell("unified", Shape(4, 4), 0.5).settings["embedding.num_rows"]
        2000
        """
        run, shared = NETWORKS[self.data, self.model]
        table = {"kind": kind, **shape._asdict(), **embedding}
        if kind != "collisionless":
            table["num_rows"] = max(1, round(self.num_rows * WIDTH / shape.width * budget))
        settings = shared | {f"embedding.{key}": value for key, value in table.items()}
        return tuned(Cell(self.data, self.model, label or f"{kind} {shape}", budget, run, settings, against))


def collisionless_rows(data: StudyData, model: str, settings: Mapping[str, Any]) -> int:
    """Rows of the collisionless table of a model with these `model.` settings."""
    views = MODELS[model].views(model_config(model, dict(settings)), tuple(data.num_values))
    return sum(data.num_values[name] + 2 for names in views.values() for name in names)


def tuned(cell: Cell) -> Cell:
    """The cell with the settings of TUNED and the number of runs of SEEDS."""
    changes: dict[str, Any] = {}
    for pattern, settings in TUNED.items():
        if fnmatchcase(cell.name, pattern):
            changes |= settings
    return with_seeds(cell._replace(settings={**cell.settings, **changes}), SEEDS)


def with_seeds(cell: Cell, seeds: Mapping[str, int]) -> Cell:
    """The cell with the number of runs that the last matching pattern gives it."""
    numbers = [number for pattern, number in seeds.items() if fnmatchcase(cell.name, pattern)]
    return cell._replace(num_seeds=numbers[-1]) if numbers else cell


def _by_budget(panel: Panel, shapes: Mapping[Shape, Sequence[float]]) -> Iterator[Cell]:
    """The collisionless table, hashed tables, and unified ones (shape to budgets)."""
    yield panel.cell("collisionless", SINGLE, 1.0)
    for budget in (1.0, 0.5, 0.1):
        yield panel.cell("hashed", SINGLE, budget, against=(COLLISIONLESS,))
    for shape, budgets in shapes.items():
        for budget in budgets:
            yield panel.cell("unified", shape, budget, against=(HASHED, COLLISIONLESS))


def _frappe_ladder(data: Mapping[str, StudyData]) -> list[Cell]:
    mlp, net = (Panel.of(data, "frappe", model) for model in ("final_mlp", "final_net"))
    best = Shape(8, 4)
    one = f"unified {best}"
    return [
        *_by_budget(mlp, {best: (1.0, 0.5, 0.1), Shape(4, 4): (1.0,), SINGLE: (1.0,)}),
        mlp.cell("unified", best, 1.0, f"{one}, rowwise_adagrad", (one,), optimizer="rowwise_adagrad"),
        net.cell("collisionless", SINGLE, 1.0),
        net.cell("unified", best, 1.0, against=(COLLISIONLESS,)),
    ]


def _movielens_unified(data: Mapping[str, StudyData]) -> list[Cell]:
    # More probes at equal bytes are tried on the first model alone.
    shapes = {"dcn_v2": (SINGLE, Shape(4, 4)), "final_mlp": (SINGLE,)}
    return [
        cell
        for model, tried in shapes.items()
        for cell in _by_budget(Panel.of(data, "movielens", model), dict.fromkeys(tried, (1.0, 0.5, 0.1)))
    ]


def _optimizers(data: Mapping[str, StudyData]) -> list[Cell]:
    panel, cells = Panel.of(data, "frappe", "final_mlp"), []
    for kind, shape in (("collisionless", SINGLE), ("unified", Shape(4, 4))):
        dense = f"{kind} {shape}, dense_adam"
        cells.append(panel.cell(kind, shape, 1.0, dense, optimizer="dense_adam"))
        for optimizer in ("adam", "rowwise_adagrad"):
            cells.append(panel.cell(kind, shape, 1.0, f"{kind} {shape}, {optimizer}", (dense,), optimizer=optimizer))
    return cells


def _precision(_: Mapping[str, StudyData]) -> list[Cell]:
    return [
        tuned(Cell(name, "final_mlp", precision, None, run, {"trainer.precision": precision}, against))
        for name, run in (("frappe", "frappe"), ("movielens", "movielens_1m"))
        for precision, against in (("fp32", ()), ("bf16", ("fp32",)))
    ]


TABLE_KINDS: dict[str, Study] = {
    "frappe_ladder": Study(
        "Frappe: from one row per value to one shared table",
        "What does each step from a collisionless table to a small unified one cost or gain, on the same data and "
        "with the same networks?",
        ("frappe",),
        _frappe_ladder,
    ),
    "movielens_unified": Study(
        "MovieLens-1M: one shared table, one table per feature, no collisions",
        "At equal bytes, does one table for all features beat a hashed table for each, and how far is it from a table "
        "without collisions?",
        ("movielens",),
        _movielens_unified,
    ),
    "optimizers": Study(
        "Frappe: optimizers of the table",
        "Does the row-sparse Adam end where the dense one with dense L2 ends, and what does row-wise Adagrad give up?",
        ("frappe",),
        _optimizers,
    ),
    "precision": Study(
        "bf16 against fp32",
        "Does training the network in bf16 change what is learned?",
        ("frappe", "movielens"),
        _precision,
    ),
}
