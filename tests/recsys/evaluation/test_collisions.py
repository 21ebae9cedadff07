"""Collisions counted by hand on tiny tables, and compared with the number expected of uniform hashing."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from features.encode import EncodedBatch
from features.hashing import MISSING_TOKEN, rows_of_tokens
from features.layout import TableLayout
from features.registry import FeatureRegistry
from recsys.dataset import Split
from recsys.evaluation import collisions
from recsys.evaluation.collisions import collision_report, distinct_tokens, vocabulary_of

Distinct = dict[str, tuple[npt.NDArray[np.uint64], int]]


def layout_of(
    features: dict[str, Any],
    num_rows: int,
    probes: int = 1,
    views: dict[str, tuple[str, ...]] | None = None,
    **kind: Any,
) -> TableLayout:
    registry = FeatureRegistry.of(features=features)
    every = {"main": tuple(features), **(views or {})}
    return TableLayout.of(registry, num_rows=num_rows, width=1, probes=probes, views=every, **kind)


def values(*counts: int) -> Distinct:
    """Features a, b, ... with so many distinct values, each read twice."""
    tokens = [np.arange(count, dtype=np.uint64) for count in counts]
    return {name: (token, 2 * len(token)) for name, token in zip("abcdefgh", tokens, strict=False)}


def values_of(name: str, count: int) -> Distinct:
    """One feature of so many distinct values."""
    return {name: (np.arange(count, dtype=np.uint64), 2 * count)}


def test_by_hand(monkeypatch: pytest.MonkeyPatch):
    """a has 4 values and 2 probes, and a gate reads it too; b has 2 values; the table has 8 rows."""
    layout = layout_of({"a": {"type": "categorical", "probes": 2}, "b": "categorical"}, 8, views={"fs1": ("a",)})
    rows = {
        4: np.array([[0, 0, 1, 2], [3, 3, 4, 4], [0, 5, 5, 6]]),  # a: main probe 0, main probe 1, fs1 probe 0, ...
        2: np.array([[2, 6]]),  # b
    }
    rows[4] = np.concatenate([rows[4], [[1, 1, 1, 3]]])  # ... fs1 probe 1
    monkeypatch.setattr(collisions, "rows_of", lambda layout, vocabulary, name, tokens: rows[len(tokens)])
    report, usage = collision_report(layout, values(4, 2))
    assert usage.tolist() == [3, 4, 2, 3, 2, 2, 2, 0]
    assert (report.num_rows, report.entries, report.load_factor, report.occupied) == (8, 18, 18 / 8, 7)
    a, b = report.features
    assert (a.feature, a.distinct, a.load) == ("a", 4, 1.0)
    # Probe 0: two of four values share row 0. Probe 1: all four share a row.
    assert a.measured_intra == (2 / 4 + 4 / 4) / 2
    # Probe 0: the value in row 2 meets b there. Probe 1: b reads neither row 3 nor 4.
    assert a.measured_inter == (1 / 4 + 0) / 2
    # Values 0 and 1 read rows 0 and 3, both of them.
    assert a.indistinguishable == 2
    assert (b.measured_intra, b.indistinguishable, b.load) == (0.0, 0, 2 / 8)
    assert b.measured_inter == 1.0  # row 2 is read by a's main view, row 6 by its gate
    # 8 reads of a through 4 slots, 4 of b through one.
    assert (a.share_of_reads, b.share_of_reads) == (32 / 36, 4 / 36)
    assert report.rows()[0]["feature"] == "a"


def test_expectations_by_hand():
    """With two rows an entry shares a given row with k others with probability 1 - 2^-k."""
    report, _ = collision_report(layout_of({"a": "categorical", "b": "categorical"}, 2), values(3, 2))
    a, b = report.features
    assert (a.expected_intra, a.expected_inter) == pytest.approx((1 - 2**-2, 1 - 2**-2))
    assert (b.expected_intra, b.expected_inter) == pytest.approx((1 - 2**-1, 1 - 2**-3))
    assert report.expected_occupied == pytest.approx(2 * (1 - 2**-5))


def test_one_row_is_shared_by_all():
    report, usage = collision_report(layout_of({"a": "categorical", "b": "categorical"}, 1), values(3, 1))
    a, b = report.features
    assert (a.expected_intra, a.measured_intra, a.expected_inter, a.measured_inter) == (1, 1, 1, 1)
    assert (b.expected_intra, b.measured_intra, b.indistinguishable) == (0, 0, 0)
    assert a.indistinguishable == 3
    assert usage.tolist() == [4]
    assert report.expected_occupied == report.occupied == 1


def test_a_feature_without_values():
    """A list that was empty in every training row."""
    layout = layout_of({"a": "categorical_list", "b": "categorical"}, 5, probes=2)
    report, usage = collision_report(layout, values(0, 3))
    a, _ = report.features
    assert (a.distinct, a.load, a.share_of_reads, a.indistinguishable) == (0, 0, 0, 0)
    assert (a.expected_intra, a.measured_intra, a.expected_inter, a.measured_inter) == (0, 0, 0, 0)
    assert usage.sum() == report.entries == 6
    empty, usage = collision_report(layout_of({"a": "categorical_list"}, 5), values(0))
    assert (empty.entries, empty.occupied, empty.expected_occupied, usage.tolist()) == (0, 0, 0, [0] * 5)


def test_no_token_feature():
    registry = FeatureRegistry.of(features={"x": {"type": "numeric", "transform": "none"}})
    layout = TableLayout.of(registry, num_rows=5, width=1, probes=1, views={"main": ()})
    report, usage = collision_report(layout, {})
    assert (report.entries, report.expected_occupied, report.features, usage.tolist()) == (0, 0, [], [0] * 5)


ML_1M = (6040, 3706, 2, 7, 21, 3401)
"""Distinct values of user, movie, gender, age, occupation and zip code in MovieLens-1M, about: 13,177 in all."""


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(13_653, 8_452), (27_306, 10_453), (6_826, 5_836), (2_731, 2_709), (1_365, 1_365)]
)
def test_occupied_rows_of_movielens(num_rows: int, expected: int):
    """C5: M (1 - (1 - 1/M)^N) rows are read; the published replication counted 8,411 to 10,460 here."""
    assert sum(ML_1M) == 13_177
    report, usage = collision_report(layout_of(dict.fromkeys("abcdef", "categorical"), num_rows), values(*ML_1M))
    assert report.entries == 13_177
    assert report.expected_occupied == pytest.approx(expected, abs=0.6)
    empty = np.exp(-13_177 / num_rows)  # balls into bins: variance M e^-a (1 - (1 + a) e^-a)
    std = np.sqrt(num_rows * empty * (1 - (1 + 13_177 / num_rows) * empty))
    assert abs(report.occupied - report.expected_occupied) <= 4 * std + 1
    assert report.occupied == (usage > 0).sum()


@pytest.mark.parametrize("num_rows", [300, 3_000, 30_000])
def test_measured_is_near_expected(num_rows: int):
    features = {"a": {"type": "categorical", "probes": 2}, "b": "categorical", "c": "categorical"}
    report, _ = collision_report(layout_of(features, num_rows, views={"fs1": ("b",)}), values(4_000, 1_500, 60))
    for feature in report.features:
        for kind in ("intra", "inter"):
            expected, measured = getattr(feature, f"expected_{kind}"), getattr(feature, f"measured_{kind}")
            # Values that share a row count together, which doubles the variance of independent ones at most.
            std = np.sqrt(2 * expected * (1 - expected) / feature.distinct)
            assert abs(measured - expected) <= 4 * std + 1e-9


def test_indistinguishable_values_are_as_rare_as_their_probes_say():
    """C6: two values agree in all n probes with probability M^-n."""
    num_values, num_rows = 3_000, 100
    for probes in (1, 2, 3):
        report, _ = collision_report(layout_of({"a": "categorical"}, num_rows, probes), values(num_values))
        expected = num_values * -np.expm1((num_values - 1) * np.log1p(-(num_rows**-probes)))
        assert abs(report.features[0].indistinguishable - expected) <= 4 * np.sqrt(2 * expected) + 1e-9
        rows = rows_of_tokens(np.arange(num_values, dtype=np.uint64), _salts(probes, num_rows)[:, None], num_rows)
        codes, counts = np.unique(rows.T, axis=0, return_counts=True)
        assert report.features[0].indistinguishable == counts[counts > 1].sum()
        assert len(codes) == len(counts)


def _salts(probes: int, num_rows: int) -> npt.NDArray[np.uint64]:
    return layout_of({"a": "categorical"}, num_rows, probes).salts_of("a")


def test_one_table_a_feature_collides_inside_more():
    """Why multiplexing: at equal rows, intra-feature collisions fall although inter-feature ones appear."""
    counts = (3_000, 1_000)
    shared, _ = collision_report(layout_of(dict.fromkeys("ab", "categorical"), 2_000), values(*counts))
    for feature, count in zip(shared.features, counts, strict=True):
        alone, _ = collision_report(layout_of({"a": "categorical"}, 2_000 * count // 4_000), values(count))
        assert feature.measured_intra < alone.features[0].measured_intra
        assert feature.measured_inter > alone.features[0].measured_inter == 0


def test_a_hashed_table_collides_in_ranges_of_its_own():
    """2,000 rows over a (3,000 values), b (1,000) and a gate of b: each as in its own table."""
    layout = layout_of(
        dict.fromkeys("ab", "categorical"),
        2_000,
        views={"fs1": ("b",)},
        kind="hashed",
        num_values={"a": 3_000, "b": 1_000},
    )
    report, usage = collision_report(layout, values(3_000, 1_000))
    assert (report.num_rows, report.entries) == (2_000, 5_000)
    expected_occupied = 0.0
    for feature, (count, size, views) in zip(report.features, [(3_000, 1_200, 1), (1_000, 400, 2)], strict=True):
        alone, _ = collision_report(
            layout_of({feature.feature: "categorical"}, size), values_of(feature.feature, count)
        )
        assert feature.model_copy(update={"share_of_reads": 1.0}) == alone.features[0]
        expected_occupied += views * alone.expected_occupied
    assert report.expected_occupied == pytest.approx(expected_occupied)
    assert abs(report.occupied - report.expected_occupied) <= 4 * np.sqrt(2_000)
    assert report.occupied == (usage > 0).sum()


def test_one_feature_hashed_collides_as_unified():
    """C7: nothing to divide; the whole report is the same."""
    registry = {"a": {"type": "categorical", "probes": 2}}
    unified, usage = collision_report(layout_of(registry, 50), values(40))
    hashed, same = collision_report(layout_of(registry, 50, kind="hashed", num_values={"a": 40}), values(40))
    assert unified == hashed
    assert np.array_equal(usage, same)


def test_collisionless_values_share_nothing():
    distinct = values(40, 7)
    distinct["a"] = (np.append(distinct["a"][0], np.uint64(MISSING_TOKEN)), distinct["a"][1] + 3)
    vocabulary = vocabulary_of(distinct)
    assert (len(vocabulary["a"]), len(vocabulary["b"])) == (40, 7)
    counts = {name: len(tokens) for name, tokens in vocabulary.items()}
    layout = layout_of(
        dict.fromkeys("ab", "categorical"), 1, views={"fs1": ("b",)}, kind="collisionless", num_values=counts
    )
    report, usage = collision_report(layout, distinct, vocabulary)
    assert (report.num_rows, report.entries, report.occupied, report.expected_occupied) == (60, 55, 55, 55)
    assert np.flatnonzero(usage == 0).tolist() == [1, 42, 43, 51, 52]  # unseen; b has no missing value either
    for feature in report.features:
        shares = (feature.expected_intra, feature.measured_intra, feature.expected_inter, feature.measured_inter)
        assert (*shares, feature.indistinguishable) == (0, 0, 0, 0, 0)
    assert [feature.load for feature in report.features] == [41 / 42, 7 / 9]


def test_values_that_train_did_not_show_share_a_row():
    """The report of other data: 3 values are known, 5 are not."""
    layout = layout_of({"a": "categorical"}, 1, kind="collisionless", num_values={"a": 3})
    report, usage = collision_report(layout, values(8), {"a": np.arange(3, dtype=np.uint64)})
    assert usage.tolist() == [0, 5, 1, 1, 1]
    assert (report.features[0].measured_intra, report.features[0].indistinguishable) == (5 / 8, 5)


def test_distinct_tokens_over_batches():
    first = EncodedBatch(
        num_examples=3,
        tokens={"a": np.array([5, 1, 5], dtype=np.uint64), "b": np.zeros(0, dtype=np.uint64)},
        lengths={"b": np.zeros(3, dtype=np.int64)},
        dense=np.zeros((3, 0), np.float32),
    )
    second = EncodedBatch(
        num_examples=2,
        tokens={"a": np.array([2**64 - 1, 1], dtype=np.uint64), "b": np.array([7, 7, 8], dtype=np.uint64)},
        lengths={"b": np.array([2, 1])},
        dense=np.zeros((2, 0), np.float32),
    )
    found = distinct_tokens([first, second])
    assert found["a"][0].tolist() == [1, 5, 2**64 - 1]
    assert found["b"][0].tolist() == [7, 8]
    assert (found["a"][1], found["b"][1]) == (5, 3)
    assert found["b"][0].dtype == np.uint64


def test_distinct_tokens_of_a_split_do_not_depend_on_its_windows(planted: Path):
    whole, windows = (distinct_tokens(Split(planted, "train", window_bytes=size).tokens()) for size in (1 << 29, 1))
    assert whole.keys() == windows.keys()
    for name, (tokens, reads) in whole.items():
        assert np.array_equal(tokens, windows[name][0])
        assert reads == windows[name][1]
    assert whole["f00"][1] == 640
