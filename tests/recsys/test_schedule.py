"""Schedules by themselves: scores in, decisions out; and the state's keys in a checkpoint."""

import math

import pytest

from recsys.schedule import (
    MIN_DELTA,
    ConstantSchedule,
    CosineSchedule,
    Decision,
    PlateauSchedule,
    Schedule,
    TrainState,
)

KEYS = [
    *("epoch", "step", "global_step", "examples", "loss_sum", "seconds", "eval_seconds"),
    *("best_score", "best_epoch", "strikes", "done", "history"),
]


def decisions(schedule: Schedule, scores: list[float]) -> list[Decision]:
    """The decisions of a schedule on each score, until it stops."""
    state, found = TrainState(), []
    for score in scores:
        state.epoch += 1
        found.append(schedule.after_epoch(state, score))
        if found[-1].is_best:
            state.best_score, state.num_bad_epochs = score, 0
        else:
            state.num_bad_epochs += 1
        if found[-1].stops:
            break
    return found


BEST, WORSE, LAST = Decision(is_best=True), Decision(False, 0.1), Decision(False, 0.1, stops=True)


@pytest.mark.parametrize(
    ("patience", "scores", "expected"),
    [
        (2, [0.5, 0.6, 0.55, 0.7, 0.7, 0.6, 0.9], [BEST, BEST, WORSE, BEST, WORSE, LAST]),
        (1, [0.5, 0.4, 0.9], [BEST, LAST]),
        (3, [0.5, 0.4, 0.4, 0.4], [BEST, WORSE, WORSE, LAST]),
        (1, [-0.5, -0.4, -0.4 + MIN_DELTA / 2], [BEST, BEST, LAST]),
        (1, [0.0, 2 * MIN_DELTA], [BEST, BEST]),
    ],
)
def test_plateaus_reduce_the_rate_and_stop_after_some_in_a_row(
    patience: int, scores: list[float], expected: list[Decision]
):
    assert decisions(PlateauSchedule(factor=0.1, patience=patience), scores) == expected


def test_a_constant_schedule_takes_every_epoch():
    assert decisions(ConstantSchedule(), [0.5, 0.4, 0.3]) == [BEST] * 3


@pytest.mark.parametrize("num_epochs", [1, 2, 5, 15])
def test_a_cosine_ends_with_the_last_epoch(num_epochs: int):
    scores = [0.5 + 0.1 * (number % 2) for number in range(num_epochs)]
    found = decisions(CosineSchedule(num_epochs), scores)
    assert len(found) == num_epochs
    assert not any(one.stops for one in found)
    assert [one.is_best for one in found] == [number < 2 for number in range(num_epochs)]
    rate, rates = 1.0, []
    for one in found:
        rates.append(rate)
        rate *= one.rate_factor
    middle = [math.cos(math.pi * (number + 0.5) / num_epochs / 2) ** 2 for number in range(num_epochs)]
    assert rates == pytest.approx([one / middle[0] for one in middle])
    assert found[-1].rate_factor == 1, "the state of a finished run is that of its last epoch"


def test_a_state_keeps_its_keys_in_a_checkpoint():
    state = TrainState(epoch=2, best_score=0.5, num_bad_epochs=1, history=[{"epoch": 1}])
    numbers = state.numbers()
    assert list(numbers) == KEYS  # in this order: a checkpoint of the same state is the same bytes
    assert numbers["strikes"] == 1
    assert TrainState.of(numbers | {"learning_rates": {}}) == state
    del numbers["strikes"]
    with pytest.raises(KeyError):
        TrainState.of(numbers)
