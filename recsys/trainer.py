"""The training loop: steps, epochs and checkpoints, for any ranker, table optimiser and data.

B examples. Adam, a global gradient norm of at most 10, and the weights of the best validation score, as in BARS (Zhu et
al., "BARS: Towards Open Benchmarking for Recommender Systems", SIGIR 2022). `plateau` is also BARS's schedule: the
learning rate reduced to a tenth after an epoch without a better score, and a stop after two such epochs in a row.
"""

import json
import logging
import math
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
from recsys.schedule import ConstantSchedule, CosineSchedule, PlateauSchedule, Schedule, TrainState, reduce_lr

logger = logging.getLogger(__name__)

Keep = Literal["best", "last"]
"""The epoch whose weights are kept."""
EVALUATION_BATCH_SIZE = 16_384
"""Examples per forward pass of an evaluation."""


class TrainerConfig(BaseModel):
    """Length, speed and precision of training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=50, ge=1)
    """Passes over the training rows; under `plateau` at most, as early stopping usually ends training earlier."""
    batch_size: int | None = Field(default=None, ge=2)
    """Maximum examples per step; if not set, a fiftieth of the training rows, between 256 and 4096."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Adam's rate for the network, and for the table unless embedding.learning_rate is set."""
    schedule: Literal["plateau", "cosine"] = "plateau"
    """`plateau`: the learning rate falls after an epoch without a better validation score, and training stops early, as
    in BARS. `cosine`: it falls to almost 0 over all `epochs`, which are then trained to the end."""
    patience: int = Field(default=2, ge=1)
    """Epochs in a row without a better validation score before the run stops, under `plateau`."""
    learning_rate_factor: float = Field(default=0.1, gt=0, le=1)
    """Multiplies the learning rate after such an epoch, under `plateau`."""
    max_gradient_norm: float = Field(default=10.0, gt=0)
    """Gradients with a larger global norm are scaled down to this norm."""
    monitor: Monitor = "auc"
    """Validation score that early stopping and the learning rate follow."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the network's matrix products in training: `bf16` rounds their operands to 8 bits of mantissa; the
    weights and everything else stay fp32. Evaluation and export always use fp32."""
    checkpoint_steps: int = Field(default=2000, ge=1)
    """Steps between checkpoints within an epoch; each epoch ends with one anyway."""

    def resolve_batch_size(self, num_rows: int) -> int:
        """`batch_size`, or one that makes about fifty steps per epoch on `num_rows` training rows.

        >>> TrainerConfig().resolve_batch_size(8_000), TrainerConfig().resolve_batch_size(100_000_000)
        (256, 4096)
        """
        return self.batch_size or min(max(num_rows // 50, 256), 4096)


class Batches(Protocol):
    """A source of batches, as `recsys.dataset.Split` is."""

    num_rows: int

    def num_batches(self, batch_size: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = False) -> int:
        """Number of batches in an epoch."""
        ...

    def batches(
        self, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0, start: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch, from number `start` on."""
        ...


class Trainer:
    """Trains a ranker in a run directory; an interrupted run resumes from its last checkpoint.

    After `fit` the ranker has the weights that the run keeps, which are also in `checkpoint/best.safetensors`.
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
        """`ranker` is a module with `loss(batch)` and `parameter_groups(l2)`, as `recsys.ranker.Ranker`.

        `keep`: the weights of the best validation score, or the last ones, which are trained for all epochs at one
        rate. `starts_trained`: the ranker is trained already, and its initial weights are kept unless an epoch
        improves on them. `on_epoch` gets each record of the history once, or twice if the run is interrupted there.
        """
        self.ranker, self.table_optimizer, self.config = ranker, table_optimizer, config
        self.directory, self.seed, self.progress = directory, seed, progress
        self.on_epoch = on_epoch or (lambda record: None)
        self.starts_trained = starts_trained
        self.schedule = schedule_of(config, keep)
        self.optimizer = torch.optim.Adam(ranker.parameter_groups(l2), lr=config.learning_rate, fused=True)
        self.network_parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.min_examples = 2 if any(isinstance(part, nn.BatchNorm1d) for part in ranker.modules()) else 1
        self.state = TrainState()
        self._state_path = directory / "checkpoint" / "state.safetensors"
        self._weights = checkpoint.KeptWeights(ranker, directory / "checkpoint")

    def fit(self, train: Batches, valid: Batches) -> TrainState:
        """Train to the end, and return the final state."""
        torch.manual_seed(self.seed)
        self._restore()
        self._log()
        if self.starts_trained and not self._state_path.exists():
            self._weights.save_initial(self._score(self._evaluate(valid)))
        steps = train.num_batches(self.config.resolve_batch_size(train.num_rows))
        with progress_bar("train", steps * self.config.epochs, enabled=self.progress) as advance:
            advance(self.state.epoch * steps + self.state.step)
            while not self.state.done:
                self._train_epoch(train, advance)
                self._finish_epoch(train, valid, advance)
        self._restore_initial_if_better()
        self._weights.load_best()
        return self.state

    def _train_epoch(self, train: Batches, advance: Callable[..., None]) -> None:
        state, config = self.state, self.config
        self.ranker.train()
        began, seconds = time.perf_counter(), state.seconds
        size = config.resolve_batch_size(train.num_rows)
        losses = torch.tensor(state.loss_sum, dtype=torch.float64)
        for batch in train.batches(size, shuffle=True, seed=self.seed, epoch=state.epoch, start=state.step):
            losses += self.step(batch) * batch.num_examples
            state.step += 1
            state.examples += batch.num_examples
            if state.step % config.checkpoint_steps == 0:
                state.loss_sum = losses.item()
                state.seconds = seconds + time.perf_counter() - began
                self._save()
            advance(1)
        state.loss_sum = losses.item()
        self.table_optimizer.flush()
        state.seconds = seconds + time.perf_counter() - began

    def step(self, batch: Batch) -> Tensor:
        """One optimiser step; returns the mean loss, detached.

        Raises `InputError` for a loss or gradient that is not finite, and for a single example under batch norm.
        """
        if batch.num_examples < self.min_examples:
            remedy = "set trainer.batch_size to 3 or more, or train without batch norm"
            raise InputError("batch norm needs two examples per step", found=str(batch.num_examples), remedy=remedy)
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
        loss = state.loss_sum / train.num_rows
        metrics = self._evaluate(valid)
        state.epoch, state.global_step = state.epoch + 1, state.global_step + state.step
        state.step, state.loss_sum = 0, 0.0
        record = {
            "epoch": state.epoch,
            "global_step": state.global_step,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss,
            **{f"valid_{name}": value for name, value in metrics.items()},
        }
        state.history.append(record)
        self._follow_schedule(self._score(metrics))
        self._save()
        self._log()
        advance(0, note=f"epoch {state.epoch} loss {loss:.4f} valid auc {metrics['auc']:.4f}")

    def _evaluate(self, valid: Batches) -> dict[str, float]:
        began = time.perf_counter()
        metrics = evaluate(predict(self.ranker, valid.batches(EVALUATION_BATCH_SIZE)))
        self.state.eval_seconds += time.perf_counter() - began
        return metrics

    def _score(self, metrics: dict[str, float]) -> float:
        """The monitored metric; higher is better."""
        return monitored(metrics, self.config.monitor)

    def _follow_schedule(self, score: float) -> None:
        state = self.state
        decision = self.schedule.after_epoch(state, score)
        if decision.is_best:
            state.best_score, state.best_epoch, state.num_bad_epochs = score, state.epoch, 0
            self._weights.save_best(state.epoch)
        else:
            state.num_bad_epochs += 1
        if decision.rate_factor < 1:
            rates = [reduce_lr(rate, decision.rate_factor) for rate in self._learning_rates().values()]
            self._set_learning_rates(*rates)
        state.done = decision.stops or state.epoch >= self.config.epochs

    def _restore_initial_if_better(self) -> None:
        """Kept out of the schedule, which must not reduce a rate because of the score of the initial weights."""
        assert self.state.best_score is not None
        score = self._weights.restore_initial_if_better(self.state.best_score)
        if score is not None:
            self.state.best_score, self.state.best_epoch = score, 0
            self._save()
        self._weights.remove_initial()

    def _log(self) -> None:
        """Report the records that `log.jsonl` lacks, also those that an interrupted process saved but did not log."""
        path = self.directory / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() and self.state.history else []
        for record in self.state.history[len(lines) :]:
            self.on_epoch(record)
            lines.append(json.dumps(record))
            write_text(path, "".join(f"{line}\n" for line in lines))

    def _learning_rates(self) -> dict[str, float]:
        return {"network": self.optimizer.param_groups[0]["lr"], "table": self.table_optimizer.learning_rate}

    def _set_learning_rates(self, network: float, table: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = network
        self.table_optimizer.learning_rate = table

    def _save(self) -> None:
        tensors = {
            **checkpoint.prefixed("ranker", self.ranker.state_dict()),
            **checkpoint.prefixed("network_optimizer", checkpoint.optimizer_tensors(self.optimizer)),
            **checkpoint.prefixed("table_optimizer", self.table_optimizer.state_dict()),
            "random": torch.get_rng_state(),
        }
        numbers = {**self.state.numbers(), "learning_rates": self._learning_rates()}
        checkpoint.save_state(self._state_path, tensors, numbers)

    def _restore(self) -> None:
        if not self._state_path.exists():
            (self.directory / "log.jsonl").unlink(missing_ok=True)
            return
        tensors, numbers = checkpoint.load_state(self._state_path)
        try:
            self._set_learning_rates(**numbers["learning_rates"])  # first: it may bring rows up to date
            self.ranker.load_state_dict(checkpoint.unprefixed("ranker", tensors))
            checkpoint.load_optimizer_tensors(self.optimizer, checkpoint.unprefixed("network_optimizer", tensors))
            self.table_optimizer.load_state_dict(checkpoint.unprefixed("table_optimizer", tensors))
            torch.set_rng_state(tensors["random"])
            self.state = TrainState.of(numbers)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:  # a whole file, but of another model
            raise checkpoint.damaged(self._state_path, error) from None
        logger.info("resumed at epoch %d, step %d", self.state.epoch + 1, self.state.step)


def schedule_of(config: TrainerConfig, keep: Keep) -> Schedule:
    """The schedule of a training: a constant rate where the last weights are kept, else the config's."""
    if keep == "last":
        return ConstantSchedule()
    if config.schedule == "cosine":
        return CosineSchedule(config.epochs)
    return PlateauSchedule(config.learning_rate_factor, config.patience)


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
