import numpy as np
import pytest

from serving.batch.distribution import ScoreDistribution


def test_quantiles_are_close() -> None:
    generator = np.random.default_rng(0)
    scores = 1 / (1 + np.exp(-generator.normal(-4, 2, 50_000)))
    distribution = ScoreDistribution()
    for part in np.array_split(scores, 7):
        distribution.add(part)
    for name, value in distribution.quantiles().items():
        share = {"min": 0.0, "max": 1.0}.get(name) or int(name.strip("pminax") or 0) / 100
        assert value == pytest.approx(np.quantile(scores, 1.0 if name == "max" else share), rel=0.01)
    assert distribution.mean == pytest.approx(scores.mean())


def test_quantiles_of_the_ends() -> None:
    distribution = ScoreDistribution()
    distribution.add(np.array([0.0, 0.0, 1.0]))
    quantiles = distribution.quantiles()
    assert (quantiles["min"], quantiles["max"]) == (0.0, 1.0)
    assert quantiles["p50"] < 1e-8
