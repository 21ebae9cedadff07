"""The loop: a step, the schedule, the best weights, repeatability; and planted data with a known best score."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.synthetic import bayes, planted_frame
from features.errors import InputError
from features.registry import FeatureRegistry
from recsys import trainer as trainer_module
from recsys.checkpoint import load_state
from recsys.dataset import Split
from recsys.evaluation.metrics import evaluate
from recsys.evaluation.predict import predict
from recsys.evaluation.predictions import Predictions
from recsys.models import MODELS
from recsys.schedule import ConstantSchedule, CosineSchedule
from recsys.trainer import TrainerConfig
from tests.planted import planted_dataset, write_dataset
from tests.recsys.conftest import Cut, same, scripted, training_of, weights_of

OPTIMIZERS = ("adam", "rowwise_adagrad")
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


# A step


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 rows, of which every third has weight 0; the others weigh 2 and 0.5."""
    rows = planted_frame(120, num_features=2, num_distinct=5)
    rows = rows.with_columns(importance=pl.Series([0.0, 2.0, 0.5] * 40))
    registry = FeatureRegistry.of(weight="importance", features={"f00": "categorical", "f01": "categorical"})
    return write_dataset(tmp_path_factory.mktemp("weighted"), registry, {"train": rows, "valid": rows})


def test_loss_is_the_weighted_mean_over_the_batch(weighted: Path, tmp_path: Path):
    training = training_of(weighted, tmp_path, model="logistic_regression", embedding={"width": 1, "probes": 1})
    (batch,) = Split(weighted, "train").batches(120)
    with torch.no_grad():
        losses = F.binary_cross_entropy_with_logits(training.ranker(batch), batch.labels, reduction="none")
    assert batch.weights is not None
    assert training.trainer.step(batch).item() == pytest.approx((losses * batch.weights).mean().item(), rel=1e-5)


@every_optimizer
def test_rows_without_weight_teach_nothing(weighted: Path, tmp_path: Path, optimizer: str):
    (batch,) = Split(weighted, "train").batches(120)
    assert batch.weights is not None
    flipped = torch.where(batch.weights == 0, 1 - batch.labels, batch.labels)
    assert not torch.equal(flipped, batch.labels)
    after = []
    for labels in (batch.labels, flipped):
        training = training_of(weighted, tmp_path, model="mlp", embedding={"optimizer": optimizer})
        torch.manual_seed(0)
        for _ in range(3):
            training.trainer.step(trainer_module.Batch(**{**vars(batch), "labels": labels}))
        after.append(weights_of(training))
    assert same(*after)


def test_bf16_rounds_the_matrix_products_of_training_alone(planted: Path, tmp_path: Path):
    losses, predictions = [], []
    for precision in ("fp32", "bf16"):
        training = training_of(planted, tmp_path, model="mlp", settings={"dropout": 0}, precision=precision)
        predictions.append(predict(training.ranker, training.valid.batches(50)).probabilities)
        losses.append(training.trainer.step(next(training.train.batches(64))).item())
        assert {parameter.dtype for parameter in training.ranker.parameters()} == {torch.float32}
    assert np.array_equal(*predictions)
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_gradients_of_table_and_network_share_one_norm(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    training = training_of(planted, tmp_path, max_gradient_norm=1e-3)
    norms: list[float] = []
    take = training.table_optimizer.step

    def measured() -> None:
        gradients = [p.grad for p in training.trainer.network_parameters if p.grad is not None]
        assert len(training.table_optimizer.gradients()) == 1
        gradients += training.table_optimizer.gradients()
        norms.append(math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients)))
        take()

    monkeypatch.setattr(training.table_optimizer, "step", measured)
    for batch in training.train.batches(64):
        training.trainer.step(batch)
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-4)


def test_numeric_embeddings_take_the_tables_l2(planted: Path, tmp_path: Path):
    training = training_of(planted, tmp_path, embedding={"l2": 0.25})
    plain, decayed = training.trainer.optimizer.param_groups
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0, 0.25)
    assert {id(p) for p in decayed["params"]} == {id(p) for p in training.ranker.network.embedding_parameters()}
    assert len(decayed["params"]) == 2  # the network's own, and that of the gate which reads x00
    every = [id(p) for p in training.ranker.network.parameters()]
    assert sorted(every) == sorted(id(p) for p in training.trainer.network_parameters)


@every_optimizer
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, optimizer: str):
    registry = FeatureRegistry.of(features={"f00": "categorical", "x": {"type": "numeric", "transform": "none"}})
    rows = planted_frame(40, num_features=2, num_distinct=5).with_columns(x=pl.lit(3e38))
    path = write_dataset(tmp_path, registry, {"train": rows, "valid": rows})
    training = training_of(path, tmp_path, model="mlp", embedding={"optimizer": optimizer})
    with pytest.raises(InputError, match=r"must stay finite; found loss .*; lower trainer.learning_rate"):
        training.fit()
    assert not (tmp_path / "checkpoint").exists()


def test_a_batch_of_one_row(planted: Path, tmp_path: Path):
    training = training_of(planted, tmp_path, batch_size=2)
    batch = next(training.train.batches(1))
    with pytest.raises(
        InputError, match=r"batch norm needs two examples per step; found 1; set trainer.batch_size to 3"
    ):
        training.trainer.step(batch)
    plain = training_of(planted, tmp_path, model="mlp", settings={"batch_norm": False, "hidden": [4]})
    assert plain.trainer.step(batch).isfinite()


# The schedule


@every_optimizer
def test_plateaus_reduce_both_rates_and_two_in_a_row_end_the_run(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
):
    scripted(monkeypatch, [0.6, 0.7, 0.69, 0.8, 0.8, 0.79, 0.99])
    seen: list[tuple[float, dict[str, Tensor]]] = []
    embedding = {"optimizer": optimizer, "learning_rate": 0.02}
    training = training_of(
        planted,
        tmp_path,
        embedding=embedding,
        epochs=50,
        on_epoch=lambda _: seen.append((training.table_optimizer.learning_rate, weights_of(training))),
    )
    state = training.fit()
    rates = [record["learning_rate"] for record in state.history]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2, 1e-3, 1e-3, 1e-4])
    # The table's own rate, after each epoch's decision.
    assert [rate for rate, _ in seen] == pytest.approx([2e-2, 2e-2, 2e-3, 2e-3, 2e-4, 2e-5], rel=1e-5)
    assert (state.best_epoch, state.best_score, state.num_bad_epochs) == (4, 0.8, 2)
    assert same(weights_of(training), seen[3][1])
    assert not same(weights_of(training), seen[5][1])
    best, numbers = load_state(tmp_path / "checkpoint" / "best.safetensors")
    assert same(best, seen[3][1])
    assert numbers == {"epoch": 4}


def test_a_cosine_lowers_both_rates_and_keeps_the_best_weights(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scripted(monkeypatch, [0.7, 0.8, 0.6, 0.6, 0.6])
    ends: list[tuple[float, dict[str, Tensor]]] = []
    training = training_of(
        planted,
        tmp_path,
        embedding={"learning_rate": 0.02},
        epochs=5,
        schedule="cosine",
        patience=1,
        on_epoch=lambda _: ends.append((training.table_optimizer.learning_rate, weights_of(training))),
    )
    state = training.fit()
    shares = [CosineSchedule(5).share(epoch) for epoch in range(5)]
    assert [record["learning_rate"] for record in state.history] == pytest.approx([0.01 * one for one in shares])
    assert [rate for rate, _ in ends] == pytest.approx([0.02 * one for one in [*shares[1:], shares[-1]]], rel=1e-5)
    assert (state.best_epoch, len(state.history)) == (2, 5)
    assert same(weights_of(training), ends[1][1])


def test_a_cosine_goes_on_where_it_was_cut_off(planted: Path, tmp_path: Path):
    def cut(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise Cut

    settings: dict[str, Any] = {"epochs": 4, "schedule": "cosine"}
    whole, again = training_of(planted, tmp_path / "whole", **settings), tmp_path / "cut"
    whole.fit()
    with pytest.raises(Cut):
        training_of(planted, again, on_epoch=cut, **settings).fit()
    resumed = training_of(planted, again, **settings)
    resumed.fit()
    assert same(weights_of(resumed), weights_of(whole))


def test_the_last_weights_stay_where_they_are_asked_for(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As OptFS needs, whose gates are hard only in the last epoch: no bad epochs, one rate, also when resumed."""
    scripted(monkeypatch, [0.8, 0.7, 0.6, 0.5])
    ends: list[dict[str, Tensor]] = []
    training = training_of(
        planted, tmp_path, epochs=4, patience=1, on_epoch=lambda _: ends.append(weights_of(training))
    )
    training.trainer.schedule = ConstantSchedule()
    state = training.fit()
    assert (state.best_epoch, state.num_bad_epochs, len(ends)) == (4, 0, 4)
    assert len({record["learning_rate"] for record in state.history}) == 1
    assert same(weights_of(training), ends[3])
    assert not same(weights_of(training), ends[0])
    again = training_of(planted, tmp_path, epochs=4, patience=1)
    again.trainer.schedule = ConstantSchedule()
    again.fit()
    assert same(weights_of(again), ends[3])


def test_the_best_score_may_be_the_lowest(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, [0.6, 0.4, 0.5, 0.4 - 1e-7], "logloss")
    state = training_of(planted, tmp_path, epochs=9, monitor="logloss").fit()
    assert (state.best_epoch, len(state.history)) == (2, 4)


def test_patience_and_epochs_end_a_run(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, [0.7, 0.6, 0.6, 0.6, 0.6])
    assert len(training_of(planted, tmp_path / "a", epochs=9, patience=3).fit().history) == 4
    scripted(monkeypatch, [0.7, 0.8, 0.9])
    assert len(training_of(planted, tmp_path / "b", epochs=3).fit().history) == 3


def test_rates_are_reduced_to_a_floor(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, [0.7, *[0.6] * 4])
    training = training_of(
        planted, tmp_path, embedding={"learning_rate": 1e-7}, epochs=9, patience=4, learning_rate=5e-5
    )
    rates = [record["learning_rate"] for record in training.fit().history]
    assert rates == pytest.approx([5e-5, 5e-5, 5e-6, 1e-6, 1e-6])
    assert training.table_optimizer.learning_rate == 1e-7  # one that began below it stays where it is


# The record


def test_history_is_what_the_log_holds(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    records: list[dict[str, Any]] = []
    training = training_of(planted, tmp_path, on_epoch=records.append)
    training.trainer.progress = True
    state = training.fit()
    assert records == state.history
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == records
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert {"global_step", "learning_rate", "train_loss", "valid_auc", "valid_logloss"} <= records[0].keys()
    assert state.examples == 3 * training.train.num_rows
    assert state.seconds > 0
    assert state.eval_seconds > 0
    assert "train" in capsys.readouterr().err


def test_validation_scores_are_those_of_the_evaluated_model(planted: Path, tmp_path: Path):
    training = training_of(planted, tmp_path)
    state = training.fit()
    best = state.history[state.best_epoch - 1]
    found = evaluate(predict(training.ranker, training.valid.batches(7)))
    # In batches of another size rounding differs, and may turn round a pair of rows: an AUC is that coarse.
    assert found == pytest.approx({name: best[f"valid_{name}"] for name in found}, abs=1e-4)


def test_predictions_do_not_depend_on_the_batches(planted: Path, tmp_path: Path):
    training = training_of(planted, tmp_path, epochs=1)
    training.fit()
    labels, probabilities, groups, weights = predict(training.ranker, training.valid.batches(1000))
    assert groups is None
    assert weights is None
    assert probabilities.dtype == np.float64
    other_labels, others, _, _ = predict(training.ranker, training.valid.batches(3))
    assert np.array_equal(labels, other_labels)
    assert np.abs(probabilities - others).max() < 1e-5  # float32 sums, in an order that may go by the batch


def test_every_row_is_up_to_date_when_it_is_evaluated(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows that no batch read for a while have caught up; those of the best weights too."""
    training = training_of(planted, tmp_path, embedding={"num_rows": 500, "l2": 0.1}, epochs=2)
    table, num_epochs = training.ranker.embedding.table, 0

    def checked(predictions: Predictions) -> dict[str, float]:
        nonlocal num_epochs
        num_epochs += 1
        found = table.clone()
        training.table_optimizer.flush()
        assert torch.equal(table, found)
        return evaluate(predictions)

    monkeypatch.setattr(trainer_module, "evaluate", checked)
    training.fit()
    assert num_epochs == 2


def test_a_ranker_in_evaluation_mode_is_trained_all_the_same(planted: Path, tmp_path: Path):
    one, other = (training_of(planted, tmp_path / name, epochs=1) for name in "ab")
    other.ranker.eval()
    assert one.fit().history == other.fit().history


@every_optimizer
def test_a_seed_repeats_a_run_bit_for_bit(planted: Path, tmp_path: Path, optimizer: str):
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        training = training_of(planted, tmp_path / name, embedding={"optimizer": optimizer}, seed=seed, epochs=2)
        torch.rand(7)  # earlier draws do not matter
        runs.append((training.fit().history, weights_of(training)))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert same(runs[0][1], runs[1][1])


@pytest.mark.parametrize("model", MODELS)
def test_every_model_trains(planted: Path, tmp_path: Path, model: str):
    settings = {} if model == "logistic_regression" else None
    training = training_of(planted, tmp_path, model=model, settings=settings, epochs=2)
    history = training.fit().history
    assert all(math.isfinite(value) for record in history for value in record.values())
    assert history[1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0}, {"epoch": 3}])
def test_settings_that_cannot_be(settings: dict[str, Any]):
    with pytest.raises(ValueError, match="validation error"):
        TrainerConfig.model_validate(settings)


# Planted data


def final_auc(data: Path, directory: Path, **settings: Any) -> float:
    training = training_of(data, directory, epochs=5, batch_size=512, **settings)
    training.fit()
    return evaluate(predict(training.ranker, Split(data, "test").batches(4096)))["auc"]


@pytest.fixture(scope="module")
def interaction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two features that say nothing alone and everything together."""
    return planted_dataset(tmp_path_factory.mktemp("interaction"), 40_000, seed=5, num_features=2, num_distinct=20)


NETWORK = {"mlp1_hidden": [32], "mlp2_hidden": [16], "mlp1_dropout": 0, "mlp2_dropout": 0, "num_heads": 4}


@every_optimizer
def test_final_mlp_finds_the_interaction(interaction: Path, tmp_path: Path, optimizer: str):
    best, _ = bayes(planted_frame(40_000, seed=5, num_features=2, num_distinct=20)[36_000:])
    assert best > 0.78
    embedding = {"num_rows": 256, "l2": 1e-5, "optimizer": optimizer}
    embedding |= {"learning_rate": 0.05} if optimizer == "rowwise_adagrad" else {}
    found = final_auc(interaction, tmp_path, settings=NETWORK, embedding=embedding)
    assert best - 0.01 < found < best + 0.003


def test_a_linear_model_provably_does_not(interaction: Path, tmp_path: Path):
    embedding = {"num_rows": 256, "l2": 1e-5, "width": 1, "probes": 1}
    # The best any sum over single features can do is chance; four standard errors of 4,000 rows.
    assert abs(final_auc(interaction, tmp_path, model="logistic_regression", embedding=embedding) - 0.5) < 0.04


@pytest.mark.slow
def test_all_kinds_of_features_come_close_to_the_truth(tmp_path: Path):
    sizes = {"num_features": 3, "num_distinct": 20, "num_lists": 1, "num_numeric": 1}
    data = planted_dataset(tmp_path, 60_000, seed=5, **sizes)
    best, _ = bayes(planted_frame(60_000, seed=5, **sizes)[54_000:])
    settings = {**NETWORK, "fs1_context": ["f00", "x00"], "fs2_context": ["l00"], "gate_hidden": [16]}
    found = final_auc(data, tmp_path / "run", settings=settings, embedding={"num_rows": 512, "l2": 1e-5})
    assert best - 0.012 < found < best + 0.003
