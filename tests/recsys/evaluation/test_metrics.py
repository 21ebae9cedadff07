"""Every metric against a brute-force oracle, hand-computed cases, and the laws that hold for all of them."""

import math
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from features.errors import InputError
from recsys.evaluation.curves import reliability_curve, roc_curve
from recsys.evaluation.metrics import (
    LOG_LOSS_CLIP,
    METRICS,
    auc,
    brier,
    calibration_ratio,
    ece,
    evaluate,
    gauc,
    log_loss,
    normalized_entropy,
)
from recsys.evaluation.predictions import Predictions

# Eighths are exact in floats and few enough to tie often.
ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 8).map(lambda k: k / 8), st.integers(0, 3)), min_size=2, max_size=40
)
EXACT = settings(max_examples=60, deadline=None, database=None)


def columns(rows):
    labels, probabilities, groups = (np.array(column) for column in zip(*rows, strict=True))
    return labels, probabilities, groups


def both_classes(labels):
    return 0 < sum(labels) < len(labels)


def auc_by_pairs(labels, probabilities):
    won = pairs = 0.0
    for y, p in zip(labels, probabilities, strict=True):
        for other_y, other_p in zip(labels, probabilities, strict=True):
            if y == 1 and other_y == 0:
                won += 1.0 if p > other_p else 0.5 if p == other_p else 0.0
                pairs += 1
    return won / pairs


def gauc_by_loop(labels, probabilities, groups):
    total = weight = 0.0
    for group in set(groups.tolist()):
        inside = groups == group
        if both_classes(labels[inside]):
            total += inside.sum() * auc_by_pairs(labels[inside], probabilities[inside])
            weight += inside.sum()
    return total / weight if weight else None


def log_loss_by_loop(labels, probabilities):
    total = 0.0
    for y, p in zip(labels, probabilities, strict=True):
        q = min(max(p, LOG_LOSS_CLIP), 1 - LOG_LOSS_CLIP)
        total -= math.log(q) if y else math.log(1 - q)
    return total / len(labels)


def bins_by_loop(labels, probabilities, num_bins):
    """Rows of each bin: all ties together, at their middle rank."""
    bins = {}
    for y, p in zip(labels, probabilities, strict=True):
        below, tied = (probabilities < p).sum(), (probabilities == p).sum()
        middle = below + tied / 2
        bins.setdefault(int(middle * num_bins / len(labels)), []).append((p, y))
    return [np.array(bins[key]) for key in sorted(bins)]


ORACLES = {
    "auc": lambda y, p, g: auc_by_pairs(y, p),
    "gauc": gauc_by_loop,
    "logloss": lambda y, p, g: log_loss_by_loop(y, p),
    "normalized_entropy": lambda y, p, g: log_loss_by_loop(y, p) / log_loss_by_loop(y, np.full(len(y), y.mean())),
    "ece": lambda y, p, g: sum(abs(rows[:, 0].sum() - rows[:, 1].sum()) for rows in bins_by_loop(y, p, 20)) / len(y),
    "calibration_ratio": lambda y, p, g: sum(p.tolist()) / sum(y.tolist()),
    "brier": lambda y, p, g: sum((a - b) ** 2 for a, b in zip(y.tolist(), p.tolist(), strict=True)) / len(y),
}


def test_every_metric_has_an_oracle():
    assert list(ORACLES) == list(METRICS)


@pytest.mark.parametrize("name", METRICS)
class TestContract:
    @EXACT
    @given(rows=ROWS)
    def test_agrees_with_the_oracle(self, name, rows):
        labels, probabilities, groups = columns(rows)
        assume(both_classes(labels))
        expected = ORACLES[name](labels, probabilities, groups)
        assume(expected is not None)
        value = METRICS[name].function(Predictions.of(labels, probabilities, groups=groups))
        assert isinstance(value, float)
        assert value == pytest.approx(expected, abs=1e-12, rel=1e-9)  # the oracle rounds 1 - (1 - clip)

    @EXACT
    @given(rows=ROWS, seed=st.integers(0, 1000))
    def test_ignores_the_order_of_rows(self, name, rows, seed):
        labels, probabilities, groups = columns(rows)
        assume(both_classes(labels) and gauc_by_loop(labels, probabilities, groups) is not None)
        order = np.random.default_rng(seed).permutation(len(labels))
        value = METRICS[name].function(Predictions.of(labels, probabilities, groups=groups))
        shuffled = METRICS[name].function(Predictions.of(labels[order], probabilities[order], groups=groups[order]))
        assert shuffled == pytest.approx(value, rel=1e-12, abs=1e-15)

    def test_takes_the_types_that_a_model_gives(self, name):
        labels, probabilities = [0, 1, 1, 0, 1], [0.25, 0.5, 0.75, 0.5, 0.125]
        groups = ["a", "a", "b", "b", "b"]
        value = METRICS[name].function(Predictions.of(labels, probabilities, groups=groups))
        for dtype in (bool, np.float32, np.int64):
            assert (
                METRICS[name].function(
                    Predictions.of(np.array(labels, dtype), np.float32(probabilities), groups=np.array(groups))
                )
                == value
            )

    @pytest.mark.parametrize(
        ("labels", "probabilities", "message"),
        [
            ([0, 1], [0.5], r"shape \[N\].*found \[2\] and \[1\]"),
            ([[0, 1]], [[0.5, 0.5]], r"shape \[N\]"),
            ([], [], "N > 0"),
            ([0, 2, 1], [0.5, 0.5, 0.5], "labels must be 0 or 1; found 2 in row 1; map"),
            ([0.0, 1.0, math.nan], [0.5, 0.5, 0.5], "labels must be 0 or 1; found nan in row 2"),
            ([0, 1], [0.5, math.nan], "found nan in row 1"),
            ([0, 1], [-math.inf, 0.5], "found -inf in row 0"),
        ],
    )
    def test_refuses_malformed_input(self, name, labels, probabilities, message):
        with pytest.raises(InputError, match=message):
            METRICS[name].function(Predictions.of(labels, probabilities, groups=np.zeros(len(labels))))


@pytest.mark.parametrize("name", ["logloss", "normalized_entropy", "ece", "calibration_ratio", "brier"])
def test_probabilities_must_be_probabilities(name):
    with pytest.raises(InputError, match=r"\[0, 1\]; found 1.5 in row 1; check for a missing sigmoid"):
        METRICS[name].function(Predictions.of([0, 1], [0.5, 1.5]))


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("metric", [auc, normalized_entropy, roc_curve])
def test_one_class_leaves_ranking_undefined(metric, label):
    with pytest.raises(InputError, match=f"needs labels of both classes; found only {label} in 3 rows; use"):
        metric(Predictions.of([label] * 3, [0.1, 0.2, 0.3]))


def test_one_class_leaves_the_rest_defined():
    assert log_loss(Predictions.of([0, 0], [0.5, 0.5])) == pytest.approx(math.log(2))
    assert brier(Predictions.of([1, 1], [0.5, 1.0])) == 0.125
    assert ece(Predictions.of([1, 1], [0.5, 0.5])) == 0.5
    assert calibration_ratio(Predictions.of([1, 1], [0.5, 0.5])) == 0.5
    with pytest.raises(InputError, match="needs a positive label"):
        calibration_ratio(Predictions.of([0, 0], [0.5, 0.5]))


def test_three_numbers_by_hand():
    labels, probabilities = [1, 0, 1], [0.5, 0.25, 0.25]
    assert auc(Predictions.of(labels, probabilities)) == 0.75  # pairs: won, tied
    assert log_loss(Predictions.of(labels, probabilities)) == pytest.approx(-math.log(0.5 * 0.75 * 0.25) / 3)
    entropy = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert normalized_entropy(Predictions.of(labels, probabilities)) == pytest.approx(
        -math.log(0.5 * 0.75 * 0.25) / 3 / entropy
    )
    assert ece(Predictions.of(labels, probabilities)) == pytest.approx(
        (0.5 + 2 * 0.25) / 3
    )  # bins {0.5} and {0.25, 0.25}
    assert calibration_ratio(Predictions.of(labels, probabilities)) == 0.5
    assert brier(Predictions.of(labels, probabilities)) == pytest.approx((0.25 + 0.0625 + 0.5625) / 3)
    assert gauc(Predictions.of(labels, probabilities, groups=[7, 7, 9])) == 1.0  # group 9 has one class


def test_log_loss_of_sure_mistakes_is_clipped():
    assert log_loss(Predictions.of([1, 0], [0.0, 1.0])) == pytest.approx(-math.log(LOG_LOSS_CLIP))
    assert log_loss(Predictions.of([1, 0], [1.0, 0.0])) == pytest.approx(LOG_LOSS_CLIP)


@EXACT
@given(rows=ROWS)
def test_monotone_transforms_leave_ranking_unchanged(rows):
    labels, probabilities, groups = columns(rows)
    assume(both_classes(labels) and gauc_by_loop(labels, probabilities, groups) is not None)
    for transform in (np.exp, lambda p: p**3 / 5, lambda p: 100 * p - 7):
        scores = transform(probabilities)
        assert auc(Predictions.of(labels, scores)) == auc(Predictions.of(labels, probabilities))
        assert gauc(Predictions.of(labels, scores, groups=groups)) == gauc(
            Predictions.of(labels, probabilities, groups=groups)
        )


@EXACT
@given(rows=ROWS)
def test_reversing_scores_reverses_auc(rows):
    labels, probabilities, _ = columns(rows)
    assume(both_classes(labels))
    assert auc(Predictions.of(labels, -probabilities)) == pytest.approx(
        1 - auc(Predictions.of(labels, probabilities)), abs=1e-15
    )
    assert auc(Predictions.of(1 - labels, probabilities)) == pytest.approx(
        1 - auc(Predictions.of(labels, probabilities)), abs=1e-15
    )


def test_constant_scores_are_worth_one_half():
    assert auc(Predictions.of([0, 1, 1, 0, 1], [0.3] * 5)) == 0.5


@pytest.fixture(scope="module")
def calibrated():
    """Probabilities 0.05, 0.15 ... 0.95, each with exactly that share of positives."""
    probabilities = np.repeat(np.arange(10) / 10 + 0.05, 200)
    labels = np.concatenate([np.arange(200) < round(200 * p) for p in probabilities[::200]])
    return labels, probabilities


def test_a_calibrated_oracle_has_no_calibration_error(calibrated):
    labels, probabilities = calibrated
    assert ece(Predictions.of(labels, probabilities)) == pytest.approx(0, abs=1e-12)
    assert calibration_ratio(Predictions.of(labels, probabilities)) == pytest.approx(1)
    curve = reliability_curve(Predictions.of(labels, probabilities))
    np.testing.assert_allclose(curve.mean_probability, curve.mean_label, atol=1e-12)


@pytest.mark.parametrize("name", ["logloss", "normalized_entropy", "brier"])
@pytest.mark.parametrize("distort", [np.sqrt, np.square, lambda p: 0.5 * p, lambda p: 0.9 * p + 0.05])
def test_the_truth_scores_best(calibrated, name, distort):
    labels, probabilities = calibrated
    assert METRICS[name].function(Predictions.of(labels, distort(probabilities))) > METRICS[name].function(
        Predictions.of(labels, probabilities)
    )


def test_the_base_rate_scores_one():
    labels = np.arange(1000) % 7 == 0
    assert normalized_entropy(Predictions.of(labels, np.full(1000, labels.mean()))) == pytest.approx(1)


class TestWeights:
    """A row of weight k counts as k rows do, one of weight 0 as none."""

    @EXACT
    @given(rows=ROWS, data=st.data())
    @pytest.mark.parametrize("name", METRICS)
    def test_a_whole_weight_is_that_many_rows(self, name, rows, data):
        labels, probabilities, groups = columns(rows)
        weights = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)).map(np.array))
        again = [np.repeat(column, weights) for column in (labels, probabilities, groups)]
        assume(both_classes(again[0]) and gauc_by_loop(*again) is not None)
        expected = METRICS[name].function(Predictions.of(again[0], again[1], groups=again[2]))
        value = METRICS[name].function(Predictions.of(labels, probabilities, groups=groups, weights=weights))
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-15)

    @EXACT
    @given(rows=ROWS, seed=st.integers(0, 1000))
    @pytest.mark.parametrize("name", METRICS)
    def test_the_unit_of_weight_does_not_matter(self, name, rows, seed):
        labels, probabilities, groups = columns(rows)
        assume(both_classes(labels) and gauc_by_loop(labels, probabilities, groups) is not None)
        weights = np.random.default_rng(seed).random(len(rows)) + 0.01
        value, scaled = (
            METRICS[name].function(Predictions.of(labels, probabilities, groups=groups, weights=k * weights))
            for k in (1, 1 / 1024)
        )
        assert scaled == pytest.approx(value, rel=1e-12, abs=1e-15)

    def test_agrees_with_scikit_learn(self):
        rng = np.random.default_rng(4)
        probabilities, weights = rng.integers(0, 50, 2000) / 50, rng.exponential(size=2000)
        labels = rng.random(2000) < probabilities
        clipped = np.clip(probabilities, LOG_LOSS_CLIP, 1 - LOG_LOSS_CLIP)
        arguments = {"weights": weights}
        assert auc(Predictions.of(labels, probabilities, **arguments)) == pytest.approx(
            roc_auc_score(labels, probabilities, sample_weight=weights)
        )
        assert log_loss(Predictions.of(labels, probabilities, **arguments)) == pytest.approx(
            sklearn_log_loss(labels, clipped, sample_weight=weights)
        )
        assert brier(Predictions.of(labels, probabilities, **arguments)) == pytest.approx(
            brier_score_loss(labels, probabilities, sample_weight=weights)
        )

    def test_by_hand(self):
        labels, probabilities, weights = [1, 0, 1], [0.5, 0.25, 0.25], [0.5, 2.0, 1.5]
        assert (
            auc(Predictions.of(labels, probabilities, weights=weights)) == (0.5 * 2 + 1.5 * 2 / 2) / 4
        )  # pairs: won, tied
        assert calibration_ratio(Predictions.of(labels, probabilities, weights=weights)) == (0.25 + 0.5 + 0.375) / 2
        assert ece(Predictions.of(labels, probabilities, weights=weights)) == pytest.approx(
            (0.5 * 0.5 + 3.5 * (1.5 / 3.5 - 0.25)) / 4
        )
        assert normalized_entropy(Predictions.of(labels, probabilities, weights=weights)) == pytest.approx(
            -(0.5 * math.log(0.5) + 2 * math.log(0.75) + 1.5 * math.log(0.25)) / 4 / math.log(2)
        )
        groups = ["a", "a", "b"]
        assert (
            gauc(Predictions.of([1, 0, 0, 1], [0.5, 0.2, 0.5, 0.2], groups=[*groups, "b"], weights=[1, 1, 3, 3]))
            == 0.25
        )

    @pytest.mark.parametrize("name", METRICS)
    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ([1, 1], r"weights must have shape \[4\]; found \[2\]; give one weight per row"),
            ([1, 1, -0.5, 1], "weights must be finite numbers from 0; found -0.5 in row 2"),
            ([1, math.nan, 1, 1], "found nan in row 1"),
            ([1, 1, 1, math.inf], "found inf in row 3"),
            ([0, 0, 0, 0], "a row must have a weight above 0"),
        ],
    )
    def test_refuses_malformed_weights(self, name, weights, message):
        with pytest.raises(InputError, match=message):
            METRICS[name].function(
                Predictions.of([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], groups=[1, 1, 1, 1], weights=weights)
            )

    def test_a_class_without_weight_is_not_there(self):
        with pytest.raises(InputError, match="needs labels of both classes; found only 1 in 2 rows"):
            auc(Predictions.of([0, 1, 1], [0.1, 0.2, 0.3], weights=[0, 1, 1]))
        figures = evaluate(Predictions.of([0, 1, 1, 0], [0.1, 0.2, 0.3, 0.4], [1, 1, 2, 2], [0, 1, 1, 1]))
        assert figures["gauc"] == 0.0  # group 1 has one class left


class TestGauc:
    def test_needs_groups(self):
        with pytest.raises(InputError, match="gauc needs groups; found none; name"):
            gauc(Predictions.of([0, 1], [0.1, 0.2]))

    def test_needs_a_mixed_group(self):
        with pytest.raises(InputError, match="group with both classes"):
            gauc(Predictions.of([0, 1], [0.1, 0.2], groups=[1, 2]))

    def test_needs_a_group_for_every_row(self):
        with pytest.raises(InputError, match=r"groups must have shape \[2\]; found \[3\]"):
            gauc(Predictions.of([0, 1], [0.1, 0.2], groups=[1, 2, 3]))

    def test_one_group_is_auc(self):
        labels, probabilities = [0, 1, 0, 1, 1], [0.3, 0.3, 0.9, 0.8, 0.1]
        assert gauc(Predictions.of(labels, probabilities, groups=["only"] * 5)) == auc(
            Predictions.of(labels, probabilities)
        )

    def test_a_million_rows_in_a_hundred_thousand_groups(self):
        rng = np.random.default_rng(2)
        probabilities = rng.random(1_000_000)
        labels, groups = rng.random(1_000_000) < probabilities, rng.integers(0, 100_000, 1_000_000)
        began = time.process_time()
        value = gauc(Predictions.of(labels, probabilities, groups=groups))
        assert time.process_time() - began < 3  # about 0.4 s on a quiet core
        assert value == pytest.approx(5 / 6, abs=2e-3)  # P(win) of independent p ~ U(0, 1) and y ~ B(p)


class TestEvaluate:
    def test_runs_every_metric(self):
        labels, probabilities, groups = [0, 1, 1, 0], [0.25, 0.5, 0.75, 0.5], [1, 1, 2, 2]
        assert evaluate(Predictions.of(labels, probabilities, groups)) == {
            name: metric.function(Predictions.of(labels, probabilities, groups=groups))
            for name, metric in METRICS.items()
        }

    @pytest.mark.parametrize("groups", [None, [1, 2, 2, 1]])
    def test_leaves_gauc_out_where_it_is_undefined(self, groups):
        metrics = evaluate(Predictions.of([0, 1, 1, 0], [0.25, 0.5, 0.75, 0.5], groups))
        assert list(metrics) == [name for name in METRICS if name != "gauc"]

    def test_keeps_gauc_for_one_mixed_group_among_others(self):
        assert evaluate(Predictions.of([0, 1, 1, 0], [0.25, 0.5, 0.75, 0.5], ["x", "z", "y", "y"]))["gauc"] == 1.0

    def test_refuses_groups_of_another_length(self):
        with pytest.raises(InputError, match="one group per row"):
            evaluate(Predictions.of([0, 1], [0.25, 0.5], [1]))

    def test_refuses_one_class(self):
        with pytest.raises(InputError, match="both classes"):
            evaluate(Predictions.of([1, 1], [0.25, 0.5]))
