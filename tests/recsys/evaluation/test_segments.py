"""Segments against a plain loop over examples, and figures where some of them are not defined."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encode import EncodedBatch, encode
from features.hashing import MISSING_TOKEN
from features.registry import FeatureRegistry
from recsys.dataset import Split
from recsys.evaluation.metrics import auc, calibration_ratio, ece, gauc, log_loss
from recsys.evaluation.predictions import Predictions
from recsys.evaluation.segments import SEGMENTS, segment_report, token_counts

REGISTRY = FeatureRegistry.of(features={"user": "categorical", "tags": "categorical_list"})
# Values a, b, c and d are seen 1, 9, 10 and 150 times, "e" never.
TIMES = {"a": 1, "b": 9, "c": 10, "d": 150}


def seen_by_loop(values: list[str | None]) -> str:
    """The segment of an example's values: the rarest one's that is there."""
    times = [TIMES.get(value, 0) for value in values if value is not None]
    if not times:
        return "missing"
    return next(name for name, least in (("100+", 100), ("10-99", 10), ("1-9", 1), ("0", 0)) if min(times) >= least)


def encoded(users: list[str | None], tags: list[Any]) -> EncodedBatch:
    frame = pl.DataFrame({"user": users, "tags": tags}, schema={"user": pl.String, "tags": pl.List(pl.String)})
    return encode(frame, REGISTRY)


@pytest.fixture(scope="module")
def counts() -> dict[str, pl.DataFrame]:
    values = [value for value, times in TIMES.items() for _ in range(times)]
    windows = [
        encoded(values[start : start + 50], [[value] for value in values[start : start + 50]])
        for start in (0, 50, 100, 150)
    ]
    return token_counts([*windows, encoded([None] * 20, [None] * 20)], ["user", "tags"])


def test_tokens_are_counted_over_windows(planted: Path):
    split = Split(planted, "train", window_bytes=14_000)
    names = [feature.name for feature in split.registry.token_features]
    found = token_counts(split.tokens(), names)
    expected = {name: Counter() for name in names}
    for part in sorted((planted / "train").glob("*.parquet")):
        for name in names:
            column = pl.read_parquet(part)[name]
            expected[name].update((column.explode().drop_nulls() if name == "l00" else column).to_list())
    assert {name: dict(frame.iter_rows()) for name, frame in found.items()} == expected


values = st.sampled_from([*TIMES, "e", None])


@settings(max_examples=60, deadline=None, database=None)
@given(
    rows=st.lists(
        st.tuples(values, st.one_of(st.none(), st.lists(values, max_size=3)), st.integers(0, 1), st.integers(0, 8)),
        min_size=1,
        max_size=40,
    ),
    cut=st.integers(0, 40),
)
def test_every_example_is_in_its_segment_with_its_figures(rows, cut, counts):
    users, tags, labels, eighths = map(list, zip(*rows, strict=True))
    predictions = Predictions(np.array(labels, np.float32), np.array(eighths) / 8, None, None)
    batches = [encoded(users[:cut], tags[:cut]), encoded(users[cut:], tags[cut:])]
    report = segment_report(predictions, batches, counts)
    for feature, examples in (("user", [[user] for user in users]), ("tags", [one or [] for one in tags])):
        seen = np.array([seen_by_loop(example) for example in examples])
        mine = {segment.seen_in_train: segment for segment in report if segment.feature == feature}
        assert list(mine) == [name for name in SEGMENTS if (seen == name).any()]
        for name, segment in mine.items():
            y, p = predictions.labels[seen == name], predictions.probabilities[seen == name]
            assert (segment.rows, segment.label_rate) == (len(y), pytest.approx(y.mean()))
            assert (segment.metrics["logloss"], segment.metrics["ece"]) == (
                log_loss(Predictions.of(y, p)),
                ece(Predictions.of(y, p)),
            )
            assert segment.metrics["auc"] == (auc(Predictions.of(y, p)) if 0 < y.sum() < len(y) else None)
            assert segment.metrics["calibration_ratio"] == (
                calibration_ratio(Predictions.of(y, p)) if y.sum() else None
            )
            assert segment.metrics["gauc"] is None


def test_groups_and_weights_go_with_their_rows(counts):
    labels, probabilities = np.float32([0, 1, 0, 1, 0]), np.array([0.1, 0.4, 0.3, 0.2, 0.9])
    groups, weights = np.array([1, 1, 2, 2, 3]), np.float32([1, 2, 3, 4, 0])
    predictions = Predictions(labels, probabilities, groups, weights)
    batch = encoded(["d", "d", "d", "d", "e"], [[]] * 5)
    never, often, no_tag = segment_report(predictions, [batch], counts)
    assert (never.seen_in_train, never.rows, never.label_rate, never.metrics["logloss"]) == ("0", 1, None, None)
    four = {"groups": groups[:4], "weights": weights[:4]}
    assert (*often[2:4], often.metrics["auc"]) == (
        4,
        pytest.approx(0.6),
        auc(Predictions.of(labels[:4], probabilities[:4], **four)),
    )
    assert (
        often.metrics["gauc"] == gauc(Predictions.of(labels[:4], probabilities[:4], **four)) == 0.3
    )  # group 1 right, group 2 wrong
    assert no_tag.seen_in_train == "missing"


def test_the_missing_token_is_no_value(counts):
    assert MISSING_TOKEN in counts["user"]["token"].to_list()  # twenty times, and still no value that was seen
    (segment, _) = segment_report(
        Predictions(np.float32([1]), np.array([0.5]), None, None), [encoded([None], [None])], counts
    )
    assert segment.seen_in_train == "missing"
