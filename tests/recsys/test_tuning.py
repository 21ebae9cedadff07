"""Training that begins with weights which have learned before: it ends no worse on validation than it began."""

from pathlib import Path
from typing import Any

import pytest

from recsys.checkpoint import load_state
from tests.recsys.conftest import Training, same, scripted, training_of, weights_of


def tuned(data: Path, directory: Path, **trainer: Any) -> Training:
    """One whose weights have learned before."""
    training = training_of(data, directory, **trainer)
    training.trainer.starts_trained = True
    return training


def test_trained_weights_stay_where_no_epoch_makes_them_better(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And the schedule is the same as without: the rate is not cut as they were better."""
    after = [0.7, 0.8, 0.79, 0.78]
    scripted(monkeypatch, after)
    plain = training_of(planted, tmp_path / "plain", epochs=9).fit()
    scripted(monkeypatch, [0.9, *after])
    training = tuned(planted, tmp_path / "run", epochs=9)
    start = weights_of(training)
    state = training.fit()
    assert state.history == plain.history
    assert (state.best_epoch, state.best_score, plain.best_epoch) == (0, 0.9, 2)
    assert same(weights_of(training), start)
    best, numbers = load_state(tmp_path / "run" / "checkpoint" / "best.safetensors")
    assert same(best, start)
    assert numbers == {"epoch": 0}
    assert not (tmp_path / "run" / "checkpoint" / "start.safetensors").exists()
    again = tuned(planted, tmp_path / "run", epochs=9)  # nothing is left of the script: nothing is evaluated
    assert again.fit().best_epoch == 0
    assert same(weights_of(again), start)


def test_trained_weights_go_where_an_epoch_is_better(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, [0.75, 0.7, 0.8, 0.79, 0.78])
    training = tuned(planted, tmp_path, epochs=9)
    start = weights_of(training)
    assert training.fit().best_epoch == 2
    assert not same(weights_of(training), start)
    assert sorted(path.name for path in (tmp_path / "checkpoint").iterdir()) == [
        "best.safetensors",
        "state.safetensors",
    ]


def test_trained_weights_are_scored_once_however_often_a_run_is_cut_off(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scripted(monkeypatch, [0.9, 0.7, 0.8, 0.79, 0.78])

    def cut(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    first = tuned(planted, tmp_path, epochs=9, on_epoch=cut)
    start = weights_of(first)
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    second = tuned(planted, tmp_path, epochs=9)
    state = second.fit()
    assert [record["valid_auc"] for record in state.history] == [0.7, 0.8, 0.79, 0.78]
    assert state.best_epoch == 0
    assert same(weights_of(second), start)
