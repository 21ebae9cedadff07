"""The state of a training run, and the schedules that decide after each epoch how it continues."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol

MIN_DELTA = 1e-6
"""A validation score counts as better if it exceeds the best one by more than this."""
MIN_LEARNING_RATE = 1e-6
"""Learning rates are not reduced below this."""
_KEYS = {"num_bad_epochs": "strikes"}
"""Fields that have another key in a checkpoint."""


@dataclass
class TrainState:
    """Progress of a training run, as its checkpoint holds it.

    >>> TrainState.of(TrainState(epoch=3).numbers()).epoch
    3
    """

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Steps in the current epoch."""
    global_step: int = 0
    """Steps in all finished epochs."""
    examples: int = 0
    """Examples seen in all steps."""
    loss_sum: float = 0.0
    """Losses of the current epoch, summed over its examples."""
    seconds: float = 0.0
    """Time in training steps."""
    eval_seconds: float = 0.0
    """Time in evaluations."""
    best_score: float | None = None
    """Validation score of the best weights; higher is better. None before the first evaluation."""
    best_epoch: int = 0
    """Number of finished epochs when the best weights were saved."""
    num_bad_epochs: int = 0
    """Epochs since then."""
    done: bool = False
    """True once training has ended."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record per finished epoch."""

    def numbers(self) -> dict[str, Any]:
        """The fields by their keys in a checkpoint."""
        return {_KEYS.get(name, name): value for name, value in vars(self).items()}

    @classmethod
    def of(cls, numbers: dict[str, Any]) -> "TrainState":
        """The state that `numbers` holds among other keys; raises `KeyError` for a missing one."""
        return cls(**{one.name: numbers[_KEYS.get(one.name, one.name)] for one in fields(cls)})


class Decision(NamedTuple):
    """Decision of a schedule after an epoch."""

    is_best: bool
    """True if this epoch's weights are the ones to keep."""
    rate_factor: float = 1.0
    """Multiplies the learning rates of the network and of the table."""
    stops: bool = False
    """True if training ends now, before its last epoch."""


class Schedule(Protocol):
    """Decides after each epoch; all its memory is in the `TrainState`, so a resumed run makes the same decisions."""

    def after_epoch(self, state: TrainState, score: float) -> Decision:
        """The decision after an epoch with this validation score, the higher the better.

        `state.epoch` already counts this epoch; the best score and the number of bad epochs do not.
        """
        ...


class PlateauSchedule(NamedTuple):
    """Reduces the learning rates after an epoch without a better score, and stops after some in a row (BARS).

    >>> schedule = PlateauSchedule(factor=0.1, patience=2)
    >>> schedule.after_epoch(TrainState(best_score=0.7), 0.8)
    Decision(is_best=True, rate_factor=1.0, stops=False)
    >>> schedule.after_epoch(TrainState(best_score=0.7, num_bad_epochs=1), 0.6)
    Decision(is_best=False, rate_factor=0.1, stops=True)
    """

    factor: float
    patience: int

    def after_epoch(self, state: TrainState, score: float) -> Decision:
        """Best where the score exceeds the best one by `MIN_DELTA`."""
        if state.best_score is None or score > state.best_score + MIN_DELTA:
            return Decision(is_best=True)
        return Decision(is_best=False, rate_factor=self.factor, stops=state.num_bad_epochs + 1 >= self.patience)


class CosineSchedule(NamedTuple):
    """Lowers the learning rates along half a cosine that ends with the last epoch; keeps the best epoch's weights.

    The rate is one number per epoch, that of the epoch's middle, over that of the first one (Loshchilov and Hutter,
    "SGDR", ICLR 2017, equation 5, without restarts). The table's rows then make up for missed steps at exact rates.

    >>> [round(CosineSchedule(num_epochs=4).share(epoch), 3) for epoch in range(4)]
    [1.0, 0.719, 0.321, 0.04]
    """

    num_epochs: int

    def share(self, epoch: int) -> float:
        """The rate of an epoch, counted from 0, over that of the first."""
        first, this = (1 + math.cos(math.pi * (number + 0.5) / self.num_epochs) for number in (0, epoch))
        return this / first

    def after_epoch(self, state: TrainState, score: float) -> Decision:
        """Never stops before the end, where the rate is lowest and the weights are usually best."""
        is_best = state.best_score is None or score > state.best_score + MIN_DELTA
        if state.epoch >= self.num_epochs:
            return Decision(is_best)
        return Decision(is_best, rate_factor=self.share(state.epoch) / self.share(state.epoch - 1))


class ConstantSchedule:
    """Trains all epochs at one rate and keeps the last weights."""

    def after_epoch(self, state: TrainState, score: float) -> Decision:
        """Always best."""
        return Decision(is_best=True)


def reduce_lr(rate: float, factor: float) -> float:
    """The rate times a factor of at most 1, but not below `MIN_LEARNING_RATE`; a rate already below that is unchanged.

    >>> reduce_lr(1e-3, 0.1), reduce_lr(5e-6, 0.1), reduce_lr(1e-7, 0.1)
    (0.0001, 1e-06, 1e-07)
    """
    return min(rate, max(rate * factor, MIN_LEARNING_RATE))
