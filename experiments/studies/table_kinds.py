"""Cells and studies, and the studies of the kinds of table.

A study is a question and the cells that answer it. A cell is one row of its page: a named run of `muxrec train` with
some settings changed, and perhaps pruned, trained with several seeds. Sizes are in units of the collisionless table of
the same model on the same data: one row of 16 floats per value seen in train, and two more, per feature of each view.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from experiments.runs import RUNS
from features.dataset.info import DatasetInfo
from recsys.config import Experiment, with_overrides
from recsys.dataset import Split
from recsys.evaluation.collisions import distinct_tokens, vocabulary_of
from recsys.models import MODELS

WIDTH = 16
"""Floats per row of the table that is the unit of size."""
COLLISIONLESS, HASHED = f"collisionless 1x{WIDTH}", f"hashed 1x{WIDTH}"
"""A table is its kind, the rows that one value reads, the floats of a row, and perhaps its optimizer."""

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
    # Compressed: a type of fewer bits holds more values, so the others are for methods without int4.
    "* collisionless@1": 3,
    "* int4@*": 3,
    "* int8@*": 0,
    "* ROBE int8@*": 3,
    "* low-bit rows int8@*": 3,
    "movielens * smaller table int8@0.1": 1,
    "movielens * OptFS int8@*": 1,
    "movielens * quotient-remainder int8@*": 1,
    "movielens * hashed int8@*": 1,
}
"""Pattern over the names of cells to the number of runs of the plain command; a later pattern wins."""

_FAST = {"trainer.batch_size": 4096, "trainer.learning_rate": 0.003, "trainer.patience": 1}
"""For small networks without dropout: DCN V2 on the collisionless table reached a validation AUC of .8950 in 9 epochs,
and .8939 in 18 with batches of 2,048 at rate 0.001."""

_BARS = {
    "embedding.init": "uniform",
    "embedding.l2": 0.05,
    "trainer.schedule": "plateau",
    "trainer.learning_rate": 0.001,
    "trainer.epochs": 50,
}
"""The start, the decay and the schedule of BARS, where the named run has others."""

NETWORKS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("frappe", "final_mlp"): ("frappe", {**_BARS, "trainer.epochs": 30}),
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
            **_BARS,
            "embedding.l2": 1e-5,
            **_FAST,
        },
    ),
}
"""(data, model) to the named run that its cells start from, and the settings that they share."""

TUNED_ADAGRAD = {"embedding.learning_rate": 0.02, "embedding.l2": 1e-5}
"""Row-wise Adagrad cannot recover from a rate that is too high: the sums that divide it only grow."""


class StudyData(NamedTuple):
    """A dataset as the studies need it."""

    directory: Path
    info: DatasetInfo
    num_values: dict[str, int]
    """Token feature, in registry order, to the number of its distinct training values, the missing one not counted."""


def read_data(directory: Path) -> StudyData:
    """A dataset directory and the number of its training values; raises `InputError` if there is no dataset."""
    train = Split(directory, "train")
    vocabulary = vocabulary_of(distinct_tokens(train.tokens()))
    num_values = {feature.name: len(vocabulary[feature.name]) for feature in train.registry.token_features}
    return StudyData(directory, train.info, num_values)


class Cell(NamedTuple):
    """One row of a page: a named run with settings changed, and compressed where `compression` says how."""

    data: str
    model: str
    label: str
    """The variant; one line of a figure."""
    budget: float | None
    """Bytes of the table in units of the collisionless one; None if size is not the question."""
    run: str
    settings: dict[str, Any]
    """`key.sub` to value."""
    against: tuple[str, ...] = ()
    """Labels that it is compared with where the study has them, at its own budget if there is such a cell."""
    compression: dict[str, Any] | None = None
    """Fields of `recsys.config.Compression`, as given to `muxrec prune`."""

    @property
    def panel(self) -> str:
        """Data and model: cells that agree in them are compared, and share a panel of a figure."""
        return f"{self.data} {self.model}"

    @property
    def table_dtype(self) -> str:
        """Type of the stored rows."""
        return self.compression["table_dtype"] if self.compression else "fp32"

    @property
    def variant(self) -> str:
        """The label, with the type of the stored rows where it is compressed."""
        return f"{self.label} {self.table_dtype}" if self.compression else self.label

    @property
    def name(self) -> str:
        """`DATA MODEL VARIANT@BUDGET`, for patterns and lines about its progress."""
        return f"{self.panel} {self.variant}" + (f"@{self.budget:g}" if self.budget is not None else "")

    @property
    def num_seeds(self) -> int:
        """Runs of the plain command, with seeds 1, 2 and so on: the last pattern of SEEDS that matches."""
        return next((number for pattern, number in reversed(SEEDS.items()) if fnmatchcase(self.name, pattern)), 1)

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
    """Settings as `key=value`: JSON, which is YAML, but text without quotes."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return [f"{prefix}{key}={text}" for key, text in texts.items()]


class Study(NamedTuple):
    """A question, and the function that lists the cells which answer it."""

    title: str
    question: str
    data: tuple[str, ...]
    """Datasets that `cells` takes."""
    cells: Callable[[Mapping[str, StudyData]], list[Cell]]


def collisionless_rows(data: StudyData, experiment: Experiment) -> int:
    """Rows of the collisionless table of an experiment: values, missing and unseen of the features of each view."""
    views = MODELS[experiment.model.name].views(experiment.model, tuple(data.num_values))
    return sum(data.num_values[name] + 2 for names in views.values() for name in names)


def table_cell(data: Mapping[str, StudyData], panel: tuple[str, str], table: str, budget: float = 1.0) -> Cell:
    """The cell of a panel of NETWORKS on a table of `budget` times the bytes of the collisionless one.

    A hashed table is compared with the collisionless one, a unified one with both, and an optimizer with the default
    one and the dense one.
    """
    run, shared = NETWORKS[panel]
    start, _, optimizer = table.partition(", ")
    kind, shape = start.split()
    probes, width = map(int, shape.split("x"))
    cell = Cell(*panel, table, budget, run, {**shared, "embedding.kind": kind})
    cell.settings.update({"embedding.probes": probes, "embedding.width": width})
    if kind != "collisionless":
        rows = collisionless_rows(data[cell.data], with_overrides(RUNS[run](), _overrides(shared)))
        cell.settings["embedding.num_rows"] = max(1, round(rows * WIDTH / width * budget))
    if optimizer:
        cell.settings.update({"embedding.optimizer": optimizer})
        cell.settings.update(TUNED_ADAGRAD if optimizer == "rowwise_adagrad" else {})
        return cell._replace(against=tuple(other for other in (start, f"{start}, dense_adam") if other != table))
    return cell._replace(against={"hashed": (COLLISIONLESS,), "unified": (HASHED, COLLISIONLESS)}.get(kind, ()))


_ALL, _ONE = (1.0, 0.5, 0.1), (1.0,)


def on_tables(tables: Mapping[tuple[str, str], Mapping[str, Sequence[float]]]) -> Callable[..., list[Cell]]:
    """The cells of some tables, each with its sizes, by panel: for `Study.cells`."""
    return lambda data: [
        table_cell(data, panel, table, budget)
        for panel, own in tables.items()
        for table, budgets in own.items()
        for budget in budgets
    ]


def _precision(_: Mapping[str, StudyData]) -> list[Cell]:
    return [
        Cell(name, "final_mlp", precision, None, run, {**_BARS, "trainer.precision": precision}, against)
        for name, run in (("frappe", "frappe"), ("movielens", "movielens_1m"))
        for precision, against in (("fp32", ()), ("bf16", ("fp32",)))
    ]


TABLE_KINDS: dict[str, Study] = {
    "frappe_ladder": Study(
        "Frappe: from one row per value to one shared table",
        "What does each step from a collisionless table to a small unified one cost or gain, on the same data and "
        "with the same networks?",
        ("frappe",),
        on_tables(
            {
                ("frappe", "final_mlp"): {
                    **{COLLISIONLESS: _ONE, HASHED: _ALL, "unified 8x4": _ALL, "unified 4x4": _ONE},
                    **{"unified 1x16": _ONE, "unified 8x4, rowwise_adagrad": _ONE},
                },
                ("frappe", "final_net"): {COLLISIONLESS: _ONE, "unified 8x4": _ONE},
            }
        ),
    ),
    "movielens_unified": Study(
        "MovieLens-1M: one shared table, one table per feature, no collisions",
        "At equal bytes, does one table for all features beat a hashed table for each, and how far is it from a table "
        "without collisions?",
        ("movielens",),
        on_tables(
            {  # more rows per value at equal bytes are tried on the first model alone
                ("movielens", "dcn_v2"): {COLLISIONLESS: _ONE, HASHED: _ALL, "unified 1x16": _ALL, "unified 4x4": _ALL},
                ("movielens", "final_mlp"): {COLLISIONLESS: _ONE, HASHED: _ALL, "unified 1x16": _ALL},
            }
        ),
    ),
    "optimizers": Study(
        "Frappe: optimizers of the table",
        "Does the row-sparse Adam end where the dense one with dense L2 ends, and what does row-wise Adagrad give up?",
        ("frappe",),
        on_tables(
            {
                ("frappe", "final_mlp"): {
                    f"{table}, {optimizer}": _ONE
                    for table in (COLLISIONLESS, "unified 4x4")
                    for optimizer in ("dense_adam", "adam", "rowwise_adagrad")
                }
            }
        ),
    ),
    "precision": Study(
        "bf16 against fp32",
        "Does training the network in bf16 change what is learned?",
        ("frappe", "movielens"),
        _precision,
    ),
}
