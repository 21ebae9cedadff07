"""Shared by the tests of `recsys`: an awkward table layout with its plain-loop reference, and a small training run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.addressing import Vocabulary
from features.layout import TableLayout
from features.registry import FeatureRegistry
from recsys import checkpoint
from recsys import trainer as trainer_module
from recsys.dataset import Split
from recsys.embedding.active_rows import ActiveRows
from recsys.embedding.optimizers import TableOptimizer
from recsys.embedding.table import EmbeddingConfig, UnifiedEmbedding
from recsys.ranker import Ranker, build_ranker, model_config
from recsys.schedule import TrainState
from recsys.trainer import Trainer, TrainerConfig
from tests.planted import planted_dataset
from tests.rows import row

# The tensors of these tests are tiny: on two busy cores threads make the tests ten times slower.
torch.set_num_threads(1)


class Cut(BaseException):
    """Simulates a killed process: no code catches it."""


def cut_off(monkeypatch: pytest.MonkeyPatch, muxrec: Any, command: Sequence[Any]) -> None:
    """Run a command that is killed after its third checkpoint: inside the first epoch, with one every two steps."""
    save_state, count = checkpoint.save_state, 0

    def cut(*arguments: Any) -> None:
        nonlocal count
        count += 1
        save_state(*arguments)
        if count == 3:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", cut)
        with pytest.raises(Cut):
            muxrec(*command)


Bags = Mapping[str, Sequence[Sequence[int]]]
"""Feature to the tokens of each example."""

# Lists are between scalars, probes and pooling differ, and views name features against the registry's order.
FEATURES: dict[str, Any] = {
    "user": "categorical",
    "tags": {"type": "categorical_list", "probes": 2},
    "item": {"type": "categorical", "probes": 12},
    "words": {"type": "categorical_list", "pooling": "sum", "probes": 1},
}
REGISTRY = FeatureRegistry.of(seed=5, features=FEATURES)
LAYOUT = TableLayout.of(
    REGISTRY,
    num_rows=37,
    width=3,
    probes=3,
    views={"main": ("words", "item", "user", "tags"), "fs1": ("words", "item"), "fs2": ("tags",)},
)


def looked_up(layout: TableLayout, table: Tensor, bags: Bags, vocabulary: Vocabulary | None = None) -> Tensor:
    """Reference for the embedding: loops over examples, views, features, probes and tokens; differentiable."""
    num_examples = len(next(iter(bags.values())))
    examples = []
    for example in range(num_examples):
        columns = []
        for view, probes in layout.views.items():
            for feature, num_probes in probes.items():
                for probe in range(num_probes):
                    total = torch.zeros(layout.width)
                    bag = bags[feature][example]
                    for token in bag:
                        total = total + table[row(layout, view, feature, probe, token, vocabulary)]
                    is_mean = layout.pooling.get(feature) == "mean"
                    columns.append(total / max(1, len(bag)) if is_mean else total)
        examples.append(torch.cat(columns))
    return torch.stack(examples)


def jagged(bags: Bags) -> KeyedJaggedTensor:
    values = [token for bag_list in bags.values() for bag in bag_list for token in bag]
    lengths = [len(bag) for bag_list in bags.values() for bag in bag_list]
    return KeyedJaggedTensor(
        keys=list(bags),
        values=torch.from_numpy(np.array(values, dtype=np.uint64).view(np.int64)),
        lengths=torch.tensor(lengths, dtype=torch.int64),
        stride=len(next(iter(bags.values()))),
    )


def random_bags(layout: TableLayout, num_examples: int, seed: int = 0, num_values: int = 9) -> dict[str, Any]:
    """Few values, so that rows repeat inside a batch, inside a list and between features."""
    random = np.random.default_rng(seed)
    vocabulary = [int(token) for token in random.integers(0, 2**64 - 1, num_values, dtype=np.uint64)]
    bags: dict[str, Any] = {}
    for feature in layout.keys:
        lengths = random.integers(0, 4, num_examples) if feature in layout.pooling else np.ones(num_examples, int)
        bags[feature] = [[vocabulary[k] for k in random.integers(0, num_values, length)] for length in lengths]
    return bags


def embedding_of(layout: TableLayout, seed: int = 0) -> UnifiedEmbedding:
    torch.manual_seed(seed)
    return UnifiedEmbedding(layout)


def recorded(embedding: UnifiedEmbedding) -> list[ActiveRows]:
    """A list to which each forward pass in training adds the rows that it gathers."""
    gather_fn, active_rows = embedding.gather_fn, []

    def gather(rows: Tensor) -> Tensor:
        active_rows.append(ActiveRows(rows, gather_fn(rows)))
        return active_rows[-1].w

    embedding.gather_fn = gather
    return active_rows


# Small training runs

FINAL_MLP: dict[str, Any] = {
    "mlp1_hidden": [16],
    "mlp2_hidden": [8],
    "mlp1_dropout": 0.3,
    "mlp2_dropout": 0.1,
    "gate_hidden": [8],
    "fs1_context": ["f00", "x00"],
    "fs2_context": ["l00"],
    "num_heads": 2,
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """A ranker with everything that `fit` takes."""

    ranker: Ranker
    table_optimizer: TableOptimizer
    trainer: Trainer
    train: Split
    valid: Split

    def fit(self) -> TrainState:
        return self.trainer.fit(self.train, self.valid)


def training_of(
    data: Path,
    directory: Path,
    *,
    model: str = "final_mlp",
    settings: dict[str, Any] | None = None,
    embedding: dict[str, Any] | None = None,
    seed: int = 1,
    on_epoch: Any = None,
    **trainer: Any,
) -> Training:
    """A run in `directory` as a new process starts it; 640 training rows are read in four windows."""
    train, valid = Split(data, "train", window_bytes=14_000), Split(data, "valid")
    table = EmbeddingConfig.model_validate({"num_rows": 64, "l2": 0.01, "probes": 2, **(embedding or {})})
    config = TrainerConfig.model_validate({"epochs": 3, "batch_size": 64, "learning_rate": 0.01, **trainer})
    network = model_config(model, settings if settings is not None else FINAL_MLP if model == "final_mlp" else {})
    ranker, table_optimizer = build_ranker(
        train.registry, model, network, table, seed=seed, learning_rate=config.learning_rate
    )
    loop = Trainer(ranker, table_optimizer, config, directory, seed=seed, l2=table.l2, on_epoch=on_epoch)
    return Training(ranker=ranker, table_optimizer=table_optimizer, trainer=loop, train=train, valid=valid)


def weights_of(training: Training) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in training.ranker.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float], metric: str = "auc") -> None:
    """Let validation give these scores, one per epoch."""
    script: Iterator[float] = iter(scores)
    other = {"auc": "logloss", "logloss": "auc"}[metric]
    monkeypatch.setattr(trainer_module, "evaluate", lambda *_: {metric: next(script), other: 0.5})


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 640 + 80 + 80 planted rows with scalars, a list and a number, its training rows in seven parts."""
    sizes = {"num_features": 4, "num_distinct": 30, "num_lists": 1, "num_numeric": 1}
    return planted_dataset(tmp_path_factory.mktemp("planted"), 800, seed=2, part_rows=100, **sizes)
