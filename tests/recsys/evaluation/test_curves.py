"""The two curves against plain loops over thresholds and bins."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from recsys.evaluation import curves
from recsys.evaluation.curves import reliability_curve, roc_curve
from recsys.evaluation.metrics import auc
from recsys.evaluation.predictions import Predictions
from tests.recsys.evaluation.test_metrics import EXACT, ROWS, bins_by_loop, both_classes, columns


class TestReliabilityCurve:
    @EXACT
    @given(rows=ROWS, num_bins=st.integers(1, 25))
    def test_agrees_with_a_loop(self, rows, num_bins):
        labels, probabilities, _ = columns(rows)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(curves, "NUM_BINS", num_bins)
            curve = reliability_curve(Predictions.of(labels, probabilities))
        bins = bins_by_loop(labels, probabilities, num_bins)
        np.testing.assert_allclose(curve.mean_probability, [rows[:, 0].mean() for rows in bins])
        np.testing.assert_allclose(curve.mean_label, [rows[:, 1].mean() for rows in bins])
        assert curve.count.tolist() == [len(rows) for rows in bins]

    def test_bins_have_equal_frequency_without_ties(self):
        rng = np.random.default_rng(0)
        curve = reliability_curve(Predictions.of(rng.random(1003) < 0.3, rng.random(1003)))
        assert len(curve.count) == 20
        assert curve.count.max() - curve.count.min() <= 1
        assert curve.count.sum() == 1003


class TestRocCurve:
    @EXACT
    @given(rows=ROWS)
    def test_holds_the_rates_of_every_threshold(self, rows):
        labels, scores, _ = columns(rows)
        assume(both_classes(labels))
        false_rate, true_rate = roc_curve(Predictions.of(labels, scores))
        thresholds = [math.inf, *sorted(set(scores.tolist()), reverse=True)]
        np.testing.assert_allclose(false_rate, [(scores[labels == 0] >= t).mean() for t in thresholds])
        np.testing.assert_allclose(true_rate, [(scores[labels == 1] >= t).mean() for t in thresholds])
        assert np.trapezoid(true_rate, false_rate) == pytest.approx(auc(Predictions.of(labels, scores)))

    @pytest.mark.parametrize("max_points", [2, 3, 200])
    def test_thins_to_points_of_the_full_curve(self, max_points, monkeypatch):
        rng = np.random.default_rng(1)
        scores = rng.random(5000)
        labels = rng.random(5000) < scores**4
        monkeypatch.setattr(curves, "MAX_POINTS", 10_000)
        full = set(zip(*roc_curve(Predictions.of(labels, scores)), strict=True))
        monkeypatch.setattr(curves, "MAX_POINTS", max_points)
        false_rate, true_rate = roc_curve(Predictions.of(labels, scores))
        assert 2 <= len(false_rate) <= max_points
        assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)
        assert set(zip(false_rate, true_rate, strict=True)) <= full
        if max_points == 200:
            assert np.trapezoid(true_rate, false_rate) == pytest.approx(auc(Predictions.of(labels, scores)), abs=1e-3)


@EXACT
@given(rows=ROWS, data=st.data())
def test_a_whole_weight_is_that_many_rows(rows, data):
    labels, probabilities, _ = columns(rows)
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)).map(np.array))
    again = np.repeat(labels, weights), np.repeat(probabilities, weights)
    assume(both_classes(again[0]))
    for curve in (roc_curve, reliability_curve):
        for expected, found in zip(
            curve(Predictions.of(*again)), curve(Predictions.of(labels, probabilities, weights=weights)), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-12)
