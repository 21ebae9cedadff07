"""Statistics of numeric columns: exact where possible, and independent of the chunks."""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import features.dataset.fit
from features.dataset.fit import NumericSummary, fit_registry
from features.errors import InputError
from features.registry import FeatureRegistry
from tests.floats import floats

NAN = float("nan")
FINITE = floats(-1e6, 1e6)


def summary_of(*chunks: list[float], seed: int = 0) -> NumericSummary:
    summary = NumericSummary(seed)
    for chunk in chunks:
        summary.add(np.array(chunk, dtype=np.float64))
    return summary


@settings(deadline=None)
@given(st.lists(st.lists(FINITE, max_size=20), max_size=6))
def test_mean_and_deviation_are_numpys_however_the_values_arrive(chunks: list[list[float]]):
    summary = summary_of(*chunks)
    values = np.array([value for chunk in chunks for value in chunk])
    assert summary.count == len(values)
    if len(values):
        np.testing.assert_allclose(summary.mean, values.mean(), rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(summary.std, values.std(), rtol=1e-6, atol=1e-6)


def test_a_far_offset_costs_no_digits():
    """Seconds since 1970 with a spread of one: the textbook formula with squares would be all noise."""
    values = 1.7e9 + np.random.default_rng(0).standard_normal(30_000)
    summary = summary_of(*(part.tolist() for part in np.array_split(values, 7)))
    assert summary.std == pytest.approx(values.std(), rel=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.0, -1e30, 1 / 3])
def test_a_constant_column_has_no_deviation_at_all(value: float):
    summary = summary_of([value] * 7, [value] * 3)
    assert summary.std == 0.0
    assert summary.mean == pytest.approx(value)
    assert summary.boundaries(8) == ()


def test_nothing():
    summary = summary_of([], [])
    assert (summary.count, summary.mean, summary.std, summary.boundaries(4)) == (0, 0.0, 0.0, ())


def test_boundaries_cut_into_equal_parts():
    assert summary_of([float(n) for n in range(100)]).boundaries(4) == (24.0, 49.0, 74.0)
    values = np.random.default_rng(1).permutation(10_000).astype(float)
    edges = summary_of(values.tolist()).boundaries(10)
    counts = np.bincount(np.searchsorted(edges, values, side="right"))
    assert len(counts) == 10
    assert (abs(counts - 1000) <= 2).all()


def test_repeated_values_leave_fewer_buckets():
    assert summary_of([0.0] * 90 + [5.0] * 10).boundaries(64) == (5.0,)
    assert summary_of([1.0, 2.0] * 50 + [3.0]).boundaries(64) == (2.0, 3.0)
    assert summary_of([0.0] * 90 + [float(n) for n in range(1, 11)]).boundaries(4) == (1.0,)


def test_the_sample_is_bounded_uniform_and_blind_to_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features.dataset.fit, "RESERVOIR_SIZE", 2000)
    values = np.arange(50_000, dtype=np.float64)
    samples = []
    for parts in (1, 3, 50):
        summary = NumericSummary(seed=4)
        for part in np.array_split(values, parts):
            summary.add(part)
        samples.append(summary.sample)
        assert len(summary.sample) == 2000
    assert all(np.array_equal(samples[0], sample) for sample in samples)
    assert abs(samples[0].mean() - values.mean()) < 5 * values.std() / np.sqrt(2000)
    edges = np.array(summary_of(values.tolist(), seed=4).boundaries(4))
    np.testing.assert_allclose(edges, [12_500, 25_000, 37_500], rtol=0.15)


REGISTRY = FeatureRegistry.of(
    features={
        "user": "categorical",
        "price": "numeric",
        "age": {"type": "numeric", "transform": "bucketize", "num_buckets": 4},
        "stock": {"type": "numeric", "transform": "log1p"},
    }
)
CHUNKS = [
    pl.DataFrame({"user": ["a", "b"], "price": [1, None], "age": [NAN, 20.0], "stock": [1, 2]}),
    pl.DataFrame({"user": ["a", "b", "c"], "price": [3.5, 4.5, NAN], "age": [30.0, 40.0, 50.0], "stock": [1, 2, 3]}),
]


def test_a_registry_is_fitted_where_it_needs_it():
    fitted = fit_registry(REGISTRY, lambda: CHUNKS)
    user, price, age, stock = fitted.features
    assert price.fitted is not None
    assert price.fitted.mean == 3.0
    assert price.fitted.std == pytest.approx(np.std([1, 3.5, 4.5]))
    assert price.fitted.boundaries == ()
    assert age.fitted is not None
    assert age.fitted.boundaries == (30.0, 40.0, 50.0)
    assert stock.fitted is None
    assert user == REGISTRY.features[0]
    assert REGISTRY.diff(fitted) == []
    assert REGISTRY.features[1].fitted is None


def test_a_fitted_registry_is_left_as_it_is():
    fitted = fit_registry(REGISTRY, lambda: CHUNKS)

    def never() -> Iterator[pl.DataFrame]:
        raise AssertionError("read again")

    assert fit_registry(fitted, never) is fitted
    assert fit_registry(FeatureRegistry.of(features={"a": "categorical"}), never).features[0].name == "a"


def test_statistics_do_not_depend_on_the_other_features(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features.dataset.fit, "RESERVOIR_SIZE", 50)
    settings_of = {"type": "numeric", "transform": "bucketize", "num_buckets": 8}
    random = np.random.default_rng(2)
    frame = pl.DataFrame({"a": random.random(500), "b": random.random(500)})
    both = fit_registry(FeatureRegistry.of(features={"b": settings_of, "a": settings_of}), lambda: [frame])
    alone = fit_registry(FeatureRegistry.of(features={"a": settings_of}), lambda: [frame])
    assert both.features[1] == alone.features[0]


def test_refusals():
    with pytest.raises(InputError, match="column 'price': expected numbers; found no value in train; remove it"):
        fit_registry(REGISTRY, lambda: [CHUNKS[0].with_columns(price=pl.lit(None))])
    with pytest.raises(InputError, match="column 'age': expected a number; found 'old'"):
        fit_registry(REGISTRY, lambda: [CHUNKS[0].with_columns(age=pl.lit("old"))])
    with pytest.raises(InputError, match="split 'train': expected rows; found none"):
        fit_registry(REGISTRY, lambda: [CHUNKS[0].clear()])
