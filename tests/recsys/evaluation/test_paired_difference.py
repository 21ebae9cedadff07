"""Differences of metrics against hand-counted variances, the bootstrap, and how often an interval holds the truth."""

from itertools import product

import numpy as np
import pytest

from features.errors import InputError
from recsys.evaluation.metrics import auc, ece, log_loss
from recsys.evaluation.paired_difference import (
    ONE_SIDED_95,
    auc_influence,
    calibration_influence,
    compare,
    log_loss_influence,
)
from recsys.evaluation.predictions import Predictions, checked


def rows(seed: int, num_rows: int, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and two models that see the same truth through separate noise."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=num_rows)
    labels = (random.random(num_rows) < 1 / (1 + np.exp(-truth))).astype(np.float64)
    models = [1 / (1 + np.exp(-truth - noise * random.normal(size=num_rows))) for _ in range(2)]
    return labels, models[0], models[1]


def delong(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Variance of the difference of two AUCs by the loops of DeLong et al. 1988, section 2."""
    components = []
    for scores in (first, second):
        positives, negatives = scores[labels == 1], scores[labels == 0]
        wins = np.array([[(x > y) + (x == y) / 2 for y in negatives] for x in positives])
        components.append((wins.mean(axis=1), wins.mean(axis=0)))
    (v10_a, v01_a), (v10_b, v01_b) = components
    s10, s01 = np.cov(v10_a, v10_b), np.cov(v01_a, v01_b)
    contrast = np.array([1, -1])
    return float(contrast @ (s10 / len(v10_a) + s01 / len(v01_a)) @ contrast)


def test_the_auc_has_the_variance_of_delong():
    labels, first, second = rows(1, 160)
    second = second.round(1)  # ties
    found = compare(labels, first, second)[0]
    # DeLong divides each class by its rows less one; here all rows are one sample. 160 rows make that 1 %.
    assert found.standard_error == pytest.approx(np.sqrt(delong(labels, first, second)), rel=0.01)


def test_values_are_those_of_the_metrics():
    labels, first, second = rows(2, 500)
    weights = np.random.default_rng(0).integers(0, 4, 500).astype(np.float64)
    for amounts in (None, weights):
        found = {one.metric: one for one in compare(labels, first, second, weights=amounts)}
        rate = np.average(labels, weights=amounts)
        for side, scores in (("champion", first), ("challenger", second)):
            assert getattr(found["auc"], side) == pytest.approx(auc(Predictions.of(labels, scores, weights=amounts)))
            assert getattr(found["logloss"], side) == pytest.approx(
                log_loss(Predictions.of(labels, scores, weights=amounts))
            )
            relative = ece(Predictions.of(labels, scores, weights=amounts)) / rate
            assert getattr(found["calibration_error"], side) == pytest.approx(relative)


def test_a_row_of_weight_k_is_k_rows_of_one_group():
    labels, first, second = rows(3, 200)
    counts = np.random.default_rng(1).integers(1, 4, 200)
    owners = np.arange(200)
    weighted = compare(labels, first, second, weights=counts, groups=owners)
    repeated = compare(*(np.repeat(one, counts) for one in (labels, first, second)), groups=np.repeat(owners, counts))
    for one, other in zip(weighted, repeated, strict=True):
        assert one.difference == pytest.approx(other.difference)
        assert one.standard_error == pytest.approx(other.standard_error)


@pytest.mark.parametrize("influence", [auc_influence, log_loss_influence, calibration_influence])
def test_an_influence_is_the_derivative_by_the_weight_of_a_row(influence):
    labels, scores, _ = rows(4, 300)
    found = influence(checked(Predictions.of(labels, scores)))
    assert found.of_rows.sum() == pytest.approx(0, abs=1e-12)
    step = 1e-6
    for row in (0, 17, 250):
        weights = np.ones(300)
        weights[row] += step
        moved = influence(checked(Predictions.of(labels, scores, weights=weights))).value
        assert (moved - found.value) / step == pytest.approx(found.of_rows[row], rel=1e-3, abs=1e-8)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Both models are equally good by construction, so the true difference is 0: nine of ten intervals hold it."""
    held = np.zeros(3)
    for seed in range(300):
        held += [one.low <= 0 <= one.high for one in compare(*rows(100 + seed, 800))]
    # 270 expected, standard deviation 5.2. A calibration error is not smooth where it is 0, so its interval is wider.
    assert 252 <= held[0] <= 288
    assert 252 <= held[1] <= 288
    assert held[2] >= 252


def test_rows_of_a_group_count_as_one():
    """Each row ten times over says nothing new: the groups' interval stays, the rows' own one shrinks by root ten."""
    labels, first, second = rows(5, 400)
    alone = compare(labels, first, second)[0]
    many = [np.repeat(one, 10) for one in (labels, first, second)]
    grouped = compare(*many, groups=np.repeat(np.arange(400), 10))[0]
    naive = compare(*many)[0]
    assert grouped.standard_error == pytest.approx(alone.standard_error)
    assert naive.standard_error == pytest.approx(alone.standard_error / np.sqrt(10), rel=0.01)


def test_equal_models_differ_by_nothing_for_sure():
    labels, first, _ = rows(6, 100)
    for one in compare(labels, first, first):
        assert (one.difference, one.low, one.high, one.loss) == (0, 0, 0, 0)


def test_loss_is_at_the_bad_end_of_either_kind_of_metric():
    labels, first, second = rows(7, 300)
    by_name = {one.metric: one for one in compare(labels, first, second)}
    rank, likelihood = by_name["auc"], by_name["logloss"]
    assert rank.loss == pytest.approx(-(rank.difference - ONE_SIDED_95 * rank.standard_error))
    assert likelihood.loss == pytest.approx(likelihood.difference + ONE_SIDED_95 * likelihood.standard_error)
    assert rank.loss > rank.loss_at_least


def test_auc_influence_against_all_pairs():
    labels, scores = np.array([0, 1, 1, 0, 1]), np.array([0.3, 0.3, 0.9, 0.1, 0.2])
    pairs = [(i, j) for i, j in product(range(5), range(5)) if labels[i] and not labels[j]]
    wins = {(i, j): (scores[i] > scores[j]) + (scores[i] == scores[j]) / 2 for i, j in pairs}
    value = np.mean(list(wins.values()))
    expected = np.zeros(5)
    for (i, j), win in wins.items():
        expected[i] += (win - value) / 6  # three positives, two negatives: a positive is in two of six pairs
        expected[j] += (win - value) / 6
    found = auc_influence(checked(Predictions.of(labels, scores)))
    assert found.value == pytest.approx(value)
    assert found.of_rows == pytest.approx(expected)


def test_malformed_input_is_refused():
    with pytest.raises(InputError, match="labels of both classes"):
        compare([1, 1], [0.5, 0.5], [0.5, 0.5])
    with pytest.raises(InputError, match="more than one group"):
        compare([0, 1], [0.5, 0.5], [0.5, 0.6], groups=["a", "a"])
