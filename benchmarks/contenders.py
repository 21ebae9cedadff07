"""The contenders of `benchmarks.train`: ways to train a table, each with the same network.

    python -m benchmarks.contenders '{"method": "muxrec", "num_rows": 100000}'     answers lines, see `main`

B examples, F categorical features, M table rows, w row width, U distinct rows of a batch. Every contender reads the
same rows [B, F] that muxrec's hash gives for the batch, and trains the network with the same loss, clipping and fused
Adam; only the table differs.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from benchmarks.common import peak_mb, serve
from data.synthetic import power_law
from features.hashing import rows_of_tokens
from features.layout import TableLayout
from features.registry import FeatureRegistry
from recsys.batch import Batch
from recsys.dataset import jagged
from recsys.embedding.table import EmbeddingConfig, initialise
from recsys.models import MODELS
from recsys.models.base import Model
from recsys.models.layers import ModelInputs
from recsys.ranker import build_ranker, layout_of, model_config
from recsys.runs.process import prepare_for_training
from recsys.trainer import Trainer, TrainerConfig, clip_global_norm

LEARNING_RATE = 1e-3
L2 = 1e-5
MAX_NORM = TrainerConfig().max_gradient_norm
CLICK_RATE = 0.25
BURST = 10
"""Batches that are made together, before the clock starts."""

QUICK: dict[str, Any] = {"batch_size": 64, "min_steps": 2, "min_seconds": 0.0, "max_warm_up_seconds": 0.0}
"""Settings for a case that only has to run."""


class Case(BaseModel):
    """The work of one worker, and how long it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    """Key into METHODS."""
    network: str = "mlp"
    """Key into MODELS; its defaults."""
    num_rows: int
    """M; each feature has as many values, so that nearly every row belongs to one."""
    ids: Literal["uniform", "power law"] = "uniform"
    """Distribution of the values of a feature."""
    batch_size: int = 4096
    num_features: int = 26
    width: int = 16
    min_steps: int = 10
    """Fewest timed steps per round."""
    min_seconds: float = 1.0
    """Fewest timed seconds per round."""
    max_warm_up_seconds: float = 20.0
    """Limit of the warm-up, which makes at least `min_steps`."""

    @property
    def warm_up_steps(self) -> int:
        """About as many steps as lie between two reads of a row, at most 300: rows then lag as they do later."""
        return max(self.min_steps, min(self.num_rows // (self.batch_size * self.num_features), 300))

    @property
    def registry(self) -> FeatureRegistry:
        """F scalar categorical features."""
        return FeatureRegistry.of(features={f"f{number:02d}": "categorical" for number in range(self.num_features)})

    @property
    def embedding(self) -> EmbeddingConfig:
        """The table: one row of full width per value."""
        return EmbeddingConfig(num_rows=self.num_rows, width=self.width, probes=1, l2=L2, learning_rate=LEARNING_RATE)

    @property
    def layout(self) -> TableLayout:
        """Salts, and the columns that the network reads."""
        return layout_of(self.registry, self.network, model_config(self.network, {}), self.embedding)


class Draw(NamedTuple):
    """One batch of made-up examples."""

    tokens: Tensor
    """[F, B], int64."""
    rows: Tensor
    """The table row of each token [B, F], int64."""
    labels: Tensor
    """[B], float32."""


class Source:
    """An endless supply of batches, the same for the same case."""

    def __init__(self, case: Case) -> None:
        self.case, layout = case, case.layout
        self.salts = [layout.salts_of(feature.name) for feature in case.registry.token_features]
        self.rng = np.random.default_rng(1)

    def draw(self) -> Draw:
        """The next batch."""
        shape, num_values = (self.case.num_features, self.case.batch_size), self.case.num_rows
        if self.case.ids == "uniform":
            tokens = self.rng.integers(0, num_values, shape, dtype=np.uint64)
        else:
            tokens = power_law(self.rng, shape[0] * shape[1], num_values).reshape(shape)
        rows = [rows_of_tokens(column, salts, num_values) for column, salts in zip(tokens, self.salts, strict=True)]
        labels = (self.rng.random(shape[1]) < CLICK_RATE).astype(np.float32)
        return Draw(
            torch.from_numpy(tokens.view(np.int64)),
            torch.from_numpy(np.stack(rows, axis=1)),
            torch.from_numpy(labels),
        )


class Contender(Protocol):
    """A way to train a table; only `step` is timed."""

    def ready(self, draw: Draw) -> Any:
        """The input of `step`."""
        ...

    def step(self, ready: Any) -> float:
        """One optimiser step; returns the loss."""
        ...

    def finish(self) -> None:
        """The work at the end of an epoch; also touches all memory that a longer run would touch."""
        ...


class Muxrec:
    """`Trainer.step` with a ranker of `build_ranker`."""

    def __init__(self, case: Case, *, optimizer: str = "adam", precision: str = "fp32") -> None:
        config = TrainerConfig.model_validate({"learning_rate": LEARNING_RATE, "precision": precision})
        embedding = case.embedding.model_copy(update={"optimizer": optimizer})
        network = model_config(case.network, {})
        self.keys = [feature.name for feature in case.registry.token_features]
        ranker, self.table_optimizer = build_ranker(
            case.registry, case.network, network, embedding, seed=1, learning_rate=LEARNING_RATE
        )
        self.ranker = ranker.train()
        unused = Path(tempfile.gettempdir())  # a step writes nothing
        self.trainer = Trainer(ranker, self.table_optimizer, config, unused, seed=1, l2=L2)

    def ready(self, draw: Draw) -> Batch:
        """A batch as the loader makes it."""
        ones = np.ones(len(draw.labels), dtype=np.int64)
        bags = [(tokens, ones) for tokens in draw.tokens.numpy()]
        return Batch(
            sparse_features=jagged(self.keys, bags, len(ones)),
            dense_features=torch.zeros(len(ones), 0),
            labels=draw.labels,
        )

    def step(self, ready: Batch) -> float:
        """Hashing, rows, forward, backward, clipping and both optimisers."""
        return self.trainer.step(ready).item()

    def finish(self) -> None:
        """Bring every row up to date, as before an evaluation."""
        self.table_optimizer.flush()


class Floor:
    """The network alone, on ready embeddings that require a gradient, as those of a table do."""

    def __init__(self, case: Case, *, precision: str = "fp32") -> None:
        self.network = network_of(case)
        self.shape = case.batch_size, case.layout.embedded_width
        self.is_bf16 = precision == "bf16"
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE, fused=True)
        ]

    def ready(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Embeddings [B, F * w] and labels."""
        return torch.empty(self.shape).uniform_(-0.05, 0.05).requires_grad_(), draw.labels

    def step(self, ready: tuple[Tensor, Tensor]) -> float:
        """Forward, backward, clipping and fused Adam."""
        return self.step_from(*ready)

    def finish(self) -> None:
        """Does nothing."""

    def step_from(self, embedded: Tensor, labels: Tensor) -> float:
        """The part of a step that follows the lookup of embeddings [B, F * w]."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.is_bf16):
            logits = self.network(embedded, embedded.new_zeros(len(embedded), 0))
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
        loss.backward()
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        clip_global_norm(gradients + self.table_gradients(), MAX_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def table_gradients(self) -> list[Tensor]:
        """Further gradients in the global norm."""
        return []


class DenseAdam(Floor):
    """`nn.Embedding` and one Adam with L2 over the whole table, as in FuxiCTR, RecBole and DeepCTR-Torch."""

    def __init__(self, case: Case, *, fused: bool | None = None, is_sparse: bool = False) -> None:
        super().__init__(case)
        table = torch.empty(case.num_rows, case.width)
        initialise(table, case.embedding.init)
        self.table = nn.Embedding(case.num_rows, case.width, sparse=is_sparse, _weight=table)
        if not is_sparse:
            groups = [
                {"params": self.table.parameters(), "weight_decay": L2},
                {"params": self.network.parameters()},
            ]
            self.optimizers = [torch.optim.Adam(groups, lr=LEARNING_RATE, fused=fused)]

    def ready(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Rows [B, F], hashed before the clock starts, and labels."""
        return draw.rows, draw.labels

    def step(self, ready: tuple[Tensor, Tensor]) -> float:
        """Gather, forward, backward with a gradient [M, w], clipping, Adam."""
        rows, labels = ready
        return self.step_from(self.table(rows).flatten(1), labels)

    def table_gradients(self) -> list[Tensor]:
        """The table's gradient [M, w]."""
        assert self.table.weight.grad is not None
        return [self.table.weight.grad]


class SparseAdam(DenseAdam):
    """`nn.Embedding(sparse=True)` and torch's SparseAdam, without L2, which moves only the rows that a batch reads."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, is_sparse=True)
        self.optimizers.append(torch.optim.SparseAdam(self.table.parameters(), lr=LEARNING_RATE))

    def table_gradients(self) -> list[Tensor]:
        """The gradient of the distinct rows [U, w]."""
        assert self.table.weight.grad is not None
        self.table.weight.grad = self.table.weight.grad.coalesce()
        return [self.table.weight.grad.values()]

    def finish(self) -> None:
        """Touch the moments of rows that no batch has read yet."""
        (state,) = self.optimizers[-1].state.values()
        for name in ("exp_avg", "exp_avg_sq"):
            state[name].add_(0)


def network_of(case: Case) -> Model:
    """The network of a case, in training mode; the same weights for the same case."""
    torch.manual_seed(1)
    inputs = ModelInputs(views=case.layout.view_widths)
    return MODELS[case.network](model_config(case.network, {}), inputs).train()


class Method(NamedTuple):
    """One contender: its title in the report, and how to build it."""

    title: str
    build: Callable[[Case], Contender]
    table_copies: float = 0.0
    """Peak number of floats in memory per float of the table."""
    floor: str = "floor"
    """The contender without a table that it is compared with."""


METHODS = {
    "floor": Method("floor: the network alone", Floor),
    "muxrec": Method("muxrec, adam", Muxrec, 3.1),
    "muxrec_rowwise": Method("muxrec, rowwise_adagrad", lambda case: Muxrec(case, optimizer="rowwise_adagrad"), 1.1),
    "dense_fused": Method("nn.Embedding, dense Adam (fused)", lambda case: DenseAdam(case, fused=True), 4.0),
    "dense": Method("nn.Embedding, dense Adam (default)", DenseAdam, 6.0),
    "sparse": Method("nn.Embedding(sparse), SparseAdam, no L2", SparseAdam, 3.0),
    "floor_bf16": Method("floor, bf16", lambda case: Floor(case, precision="bf16")),
    "muxrec_bf16": Method("muxrec, adam, bf16", lambda case: Muxrec(case, precision="bf16"), 3.1, "floor_bf16"),
}


class Bench:
    """One contender, its batches, and the clock."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.source = Source(case)
        self.contender = METHODS[case.method].build(case)

    def run(self, min_steps: int, min_seconds: float) -> dict[str, Any]:
        """Number and seconds of steps, until there are enough of both; making batches is not timed."""
        steps, seconds = 0, 0.0
        while steps < min_steps or seconds < min_seconds:
            burst = [self.contender.ready(self.source.draw()) for _ in range(BURST)]
            began = time.perf_counter()
            for ready in burst:
                self.contender.step(ready)
            seconds += time.perf_counter() - began
            steps += len(burst)
        return {"steps": steps, "seconds": seconds}

    def warm_up(self) -> dict[str, Any]:
        """Steps before the first timed one."""
        steps, seconds = 0, 0.0
        while steps < self.case.warm_up_steps and (
            steps < self.case.min_steps or seconds < self.case.max_warm_up_seconds
        ):
            done = self.run(1, 0.0)
            steps, seconds = steps + done["steps"], seconds + done["seconds"]
        return {"steps": steps, "seconds": seconds}

    def finish(self) -> dict[str, Any]:
        """Seconds at the end of an epoch, and peak memory of the whole process."""
        began = time.perf_counter()
        self.contender.finish()
        return {"finish_seconds": time.perf_counter() - began, "peak_mb": peak_mb()}


def main(argument: str) -> None:
    """Answer "build", "warm up", "round" and "finish" of one case."""
    prepare_for_training()  # the parent process has done so too, for the part that torch reads when it is loaded
    case = Case.model_validate_json(argument)
    benches: list[Bench] = []

    def answer(question: str) -> dict[str, Any]:
        if question == "build":
            benches.append(Bench(case))
            return {"threads": torch.get_num_threads()}
        (bench,) = benches
        if question == "warm up":
            return bench.warm_up()
        return bench.finish() if question == "finish" else bench.run(case.min_steps, case.min_seconds)

    serve(answer)


if __name__ == "__main__":
    main(sys.argv[1])
