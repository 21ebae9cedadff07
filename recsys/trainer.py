"""The training loop: epochs, the plateau schedule, early stopping, checkpoints; it is handed everything it runs.

B examples. The recipe is that of BARS (PAPERS: Zhu et al., "BARS: Towards Open Benchmarking for Recommender Systems",
SIGIR 2022): Adam, a global gradient norm of at most 10, the learning rate cut to a tenth after an epoch without a
better validation score, and a stop after two such epochs in a row, at the best weights.
"""

import contextlib
import json
import logging
import math
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from features.errors import InputError
from features.files import write_text
from features.progress import progress_bar
from recsys import checkpoint
from recsys.batch import Batch
from recsys.embedding.optimizers import TableOptimizer
from recsys.evaluation.metrics import Monitor, evaluate, monitored
from recsys.evaluation.predict import predict

logger = logging.getLogger(__name__)

MIN_DELTA = 1e-6
"""By how much a validation score must beat the best one to be better."""
MIN_LEARNING_RATE = 1e-6
"""Below this the schedule does not cut a rate."""
Keep = Literal["best", "last"]
"""Of which epoch the weights stay."""
EVALUATION_BATCH_SIZE = 16_384
"""Examples a forward pass of an evaluation."""


class TrainerConfig(BaseModel):
    """How long and how fast."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=50, ge=1)
    """Most passes over the training rows; early stopping usually ends before."""
    batch_size: int | None = Field(default=None, ge=2)
    """Most examples a step; a fiftieth of the training rows, between 256 and 4096, where not set."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam, for the network, and for the table unless embedding.learning_rate is set."""
    patience: int = Field(default=2, ge=1)
    """Epochs in a row without a better validation score before the run stops."""
    learning_rate_factor: float = Field(default=0.1, gt=0, le=1)
    """What the rate is multiplied by after such an epoch."""
    max_gradient_norm: float = Field(default=10.0, gt=0)
    """Global norm that gradients are scaled down to."""
    monitor: Monitor = "auc"
    """Validation score that decides."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's matrix products in training: `bf16` rounds their operands to 8 bits of mantissa, the weights and
    everything else stay fp32. Evaluation and export are fp32 always."""
    checkpoint_steps: int = Field(default=2000, ge=1)
    """Steps between checkpoints inside an epoch; there is one after each epoch anyway."""

    def resolve_batch_size(self, num_rows: int) -> int:
        """`batch_size`, or one that takes about fifty steps an epoch on `num_rows` training rows.

        >>> TrainerConfig().resolve_batch_size(8_000), TrainerConfig().resolve_batch_size(100_000_000)
        (256, 4096)
        """
        return self.batch_size or min(max(num_rows // 50, 256), 4096)


class Batches(Protocol):
    """A source of batches: `recsys.dataset.Split`, or anything alike."""

    num_rows: int

    def num_batches(self, batch_size: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = False) -> int:
        """Batches of an epoch."""
        ...

    def batches(
        self, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0, start: int = 0
    ) -> Iterator[Batch]:
        """Batches of an epoch from number `start` on."""
        ...


class Trainer:
    """Trains a ranker in a run directory; a run that was cut off continues where its last checkpoint stands.

    After `fit` the ranker holds the weights that it was to keep, and `checkpoint/best.safetensors` holds them too.
    """

    def __init__(
        self,
        ranker: Any,
        table_optimizer: TableOptimizer,
        config: TrainerConfig,
        directory: Path,
        *,
        seed: int,
        l2: float = 0.0,
        progress: bool = False,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
        keep: Keep = "best",
        starts_trained: bool = False,
    ) -> None:
        """`ranker` is a module with a `loss(batch)`.

        `keep`: the weights of the best validation score; or the last ones, and then no epoch counts as a strike.
        `starts_trained`: the weights it is handed have learned before, and are kept where no epoch makes them better.
        `on_epoch` takes each record of the history once, or twice where a run is cut off right after it did.
        """
        self.ranker, self.table_optimizer, self.config = ranker, table_optimizer, config
        self.directory, self.seed, self.progress = directory, seed, progress
        self.on_epoch = on_epoch or (lambda record: None)
        self.keep: Keep = keep
        self.starts_trained = starts_trained
        self.optimizer = torch.optim.Adam(_parameter_groups(ranker, l2), lr=config.learning_rate, fused=True)
        self.network_parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.min_examples = 2 if any(isinstance(part, nn.BatchNorm1d) for part in ranker.modules()) else 1
        self.state = new_state()

    def fit(self, train: Batches, valid: Batches) -> dict[str, Any]:
        """Train to the end and return the final state: `history`, one record an epoch, and `best_epoch`."""
        torch.manual_seed(self.seed)
        self._restore()
        self._log()
        if self.starts_trained and not self._state_path.exists():
            self._save_start(valid)
        steps = train.num_batches(self.config.resolve_batch_size(train.num_rows))
        with progress_bar("train", steps * self.config.epochs, enabled=self.progress) as advance:
            advance(self.state["epoch"] * steps + self.state["step"])
            while not self.state["done"]:
                self._epoch(train, advance)
                self._finish_epoch(train, valid, advance)
        self._restore_initial_if_better()
        self._load_best()
        return self.state

    def _epoch(self, train: Batches, advance: Callable[..., None]) -> None:
        state, config = self.state, self.config
        self.ranker.train()
        began, seconds = time.perf_counter(), state["seconds"]
        batch_size, epoch, start = config.resolve_batch_size(train.num_rows), state["epoch"], state["step"]
        batches = train.batches(batch_size, shuffle=True, seed=self.seed, epoch=epoch, start=start)
        losses = torch.tensor(state["loss_sum"], dtype=torch.float64)
        for batch in batches:
            losses += self.step(batch) * batch.num_examples
            state["step"] += 1
            state["examples"] += batch.num_examples
            if state["step"] % config.checkpoint_steps == 0:
                state["loss_sum"] = losses.item()
                state["seconds"] = seconds + time.perf_counter() - began
                self._save()
            advance(1)
        state["loss_sum"] = losses.item()
        self.table_optimizer.flush()
        state["seconds"] = seconds + time.perf_counter() - began

    def step(self, batch: Batch) -> Tensor:
        """One optimiser step; returns the mean loss, detached.

        Raises `InputError` for a loss or gradient that is not finite, and for a single example under batch norm.
        """
        if batch.num_examples < self.min_examples:
            remedy = "set trainer.batch_size to 3 or more, or train without batch norm"
            raise InputError("batch norm needs two examples a step", found=str(batch.num_examples), remedy=remedy)
        with torch.autocast(batch.labels.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss = self.ranker.loss(batch)
        loss.backward()
        gradients = [p.grad for p in self.network_parameters if p.grad is not None]
        norm = clip_global_norm(gradients + self.table_optimizer.gradients(), self.config.max_gradient_norm)
        loss = loss.detach()
        if not math.isfinite(norm + loss.item()):
            remedy = "lower trainer.learning_rate, or standardize the numeric features"
            found = f"loss {loss.item()}, gradient norm {norm}"
            raise InputError("loss and gradients must stay finite", found=found, remedy=remedy)
        self.optimizer.step()
        self.table_optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _finish_epoch(self, train: Batches, valid: Batches, advance: Callable[..., None]) -> None:
        state = self.state
        loss = state["loss_sum"] / train.num_rows
        metrics = self._evaluated(valid)
        record = {
            "epoch": state["epoch"] + 1,
            "global_step": state["global_step"] + state["step"],
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss,
            **{f"valid_{name}": value for name, value in metrics.items()},
        }
        state["history"].append(record)
        state.update(epoch=state["epoch"] + 1, step=0, loss_sum=0.0, global_step=record["global_step"])
        self._schedule(self._score(metrics))
        self._save()
        self._log()
        advance(0, note=f"epoch {record['epoch']} loss {loss:.4f} valid auc {metrics['auc']:.4f}")

    def _evaluated(self, valid: Batches) -> dict[str, float]:
        began = time.perf_counter()
        metrics = evaluate(predict(self.ranker, valid.batches(EVALUATION_BATCH_SIZE)))
        self.state["eval_seconds"] += time.perf_counter() - began
        return metrics

    def _score(self, metrics: dict[str, float]) -> float:
        """The higher the better."""
        return monitored(metrics, self.config.monitor)

    def _save_start(self, valid: Batches) -> None:
        numbers = {"epoch": 0, "score": self._score(self._evaluated(valid))}
        checkpoint.save_state(self._start_path, self.ranker.state_dict(), numbers)

    def _restore_initial_if_better(self) -> None:
        """Make the weights of the start the best ones where they are; the schedule never knew of them."""
        if not self._start_path.exists():
            return
        tensors, numbers = checkpoint.load_state(self._start_path)
        if numbers["score"] > self.state["best_score"]:
            checkpoint.save_state(self._best_path, tensors, {"epoch": 0})
            self.state.update(best_score=numbers["score"], best_epoch=0)
            self._save()
        self._start_path.unlink()

    def _schedule(self, score: float) -> None:
        """Keep the best weights, or any; cut the rate and count a strike otherwise."""
        state, config = self.state, self.config
        if self.keep == "last" or state["best_score"] is None or score > state["best_score"] + MIN_DELTA:
            state.update(best_score=score, best_epoch=state["epoch"], num_bad_epochs=0)
            checkpoint.save_state(self._best_path, self.ranker.state_dict(), {"epoch": state["epoch"]})
        else:
            state["strikes"] += 1
            for group in self.optimizer.param_groups:
                group["lr"] = _reduce_lr(group["lr"], config.learning_rate_factor)
            self.table_optimizer.learning_rate = _reduce_lr(
                self.table_optimizer.learning_rate, config.learning_rate_factor
            )
        state["done"] = state["strikes"] >= config.patience or state["epoch"] >= config.epochs

    def _log(self) -> None:
        """Hand on the records that `log.jsonl` does not hold yet: also those that a cut-off run saved and no more."""
        path = self.directory / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() and self.state["history"] else []
        for record in self.state["history"][len(lines) :]:
            self.on_epoch(record)
            lines.append(json.dumps(record))
            write_text(path, "".join(f"{line}\n" for line in lines))

    @property
    def _state_path(self) -> Path:
        return self.directory / "checkpoint" / "state.safetensors"

    @property
    def _best_path(self) -> Path:
        return self.directory / "checkpoint" / "best.safetensors"

    @property
    def _start_path(self) -> Path:
        return self.directory / "checkpoint" / "start.safetensors"

    def _save(self) -> None:
        tensors = {
            **checkpoint.prefixed("ranker", self.ranker.state_dict()),
            **checkpoint.prefixed("network_optimizer", checkpoint.optimizer_tensors(self.optimizer)),
            **checkpoint.prefixed("table_optimizer", self.table_optimizer.state_dict()),
            "random": torch.get_rng_state(),
        }
        rates = {"network": self.optimizer.param_groups[0]["lr"], "table": self.table_optimizer.learning_rate}
        checkpoint.save_state(self._state_path, tensors, {**self.state, "learning_rates": rates})

    def _restore(self) -> None:
        if not self._state_path.exists():
            (self.directory / "log.jsonl").unlink(missing_ok=True)
            return
        tensors, numbers = checkpoint.load_state(self._state_path)
        try:
            rates = numbers.pop("learning_rates")
            for group in self.optimizer.param_groups:
                group["lr"] = rates["network"]
            self.table_optimizer.learning_rate = rates["table"]  # first: setting it may bring rows up to date
            self.ranker.load_state_dict(checkpoint.unprefixed("ranker", tensors))
            checkpoint.load_optimizer_tensors(self.optimizer, checkpoint.unprefixed("network_optimizer", tensors))
            self.table_optimizer.load_state_dict(checkpoint.unprefixed("table_optimizer", tensors))
            torch.set_rng_state(tensors["random"])
            self.state = {key: numbers[key] for key in self.state}
        except (KeyError, RuntimeError, ValueError) as error:  # whole, but of another model
            raise checkpoint.damaged(self._state_path, error) from None
        logger.info("resumed at epoch %d, step %d", self.state["epoch"] + 1, self.state["step"])

    def _load_best(self) -> None:
        tensors, _ = checkpoint.load_state(self._best_path)
        self.ranker.load_state_dict(tensors)


def new_state() -> dict[str, Any]:
    """Numbers of a run that has not begun."""
    return {
        "epoch": 0,
        "step": 0,
        "global_step": 0,
        "examples": 0,
        "loss_sum": 0.0,
        "seconds": 0.0,
        "eval_seconds": 0.0,
        "best_score": None,
        "best_epoch": 0,
        "strikes": 0,
        "done": False,
        "history": [],
    }


def _reduce_lr(rate: float, factor: float) -> float:
    return min(rate, max(rate * factor, MIN_LEARNING_RATE))


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        # getrusage counts what the process that started this one held.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="ignore").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _parameter_groups(ranker: nn.Module, l2: float) -> list[dict[str, Any]]:
    """Numeric embeddings take the table's L2, as in BARS; the table itself has its own optimiser."""
    embedding = list(getattr(getattr(ranker, "network", None), "embedding_parameters", list)())
    known = {id(parameter) for parameter in embedding}
    others = [p for p in ranker.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": embedding, "weight_decay": l2}]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def clip_global_norm(grads: list[Tensor], max_norm: float) -> float:
    """Scale gradients by one factor to a joint L2 norm of at most ``max_norm`` (Pascanu et al. 2013, algorithm 1).

    Args:
        grads: gradients of any shapes, the network's and the table block's together; scaled in place.
        max_norm: above 0.

    Returns:
        The joint norm before scaling. If it is not finite nothing is scaled, so that the caller can skip the step.

    Raises:
        InputError: ``max_norm`` not above 0.

    Example:
        >>> grads = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]
        >>> clip_global_norm(grads, 1.0)
        5.0
        >>> grads[0]
        tensor([0.6000])
    """
    if not max_norm > 0:
        raise InputError("max_norm must be above 0", found=repr(max_norm), remedy="leave clipping out to switch it off")
    norm = math.hypot(*(float(torch.linalg.vector_norm(grad)) for grad in grads))
    if max_norm < norm < math.inf:
        for grad in grads:
            grad.mul_(max_norm / norm)
    return norm
