"""One context and many candidates are their expanded rows bit for bit; coverage counts what training did not see."""

import gc
import weakref
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.addressing import addressing_of
from features.encode import encode
from features.errors import InputError
from serving.bundle import Bundle
from serving.coverage import add_coverage
from serving.scorer import Coverage, Scorer
from tests.floats import floats
from tests.serving.conftest import REGISTRY, make_bundle, of_kind, raw_frame, table

NAMES = [feature.name for feature in REGISTRY.features]
VALUES: dict[str, Any] = {
    "user": st.one_of(st.none(), st.integers(0, 50), st.text(max_size=3)),
    "price": st.one_of(st.none(), st.integers(-9, 9), floats(-100, 100)),
    "genres": st.one_of(st.none(), st.text("a|b", max_size=6), st.lists(st.integers(0, 9), max_size=3)),
    "item": st.one_of(st.none(), st.text(max_size=3)),
    "words": st.one_of(st.none(), st.lists(st.one_of(st.none(), st.text(max_size=2)), max_size=4)),
    "age": st.one_of(st.none(), st.integers(0, 99)),
}


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> Scorer:
    return Scorer(bundle, num_threads=1)


@st.composite
def requests(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    shared = draw(st.sets(st.sampled_from(NAMES)))
    own = [name for name in NAMES if name not in shared]
    context = draw(st.fixed_dictionaries({name: VALUES[name] for name in shared}))
    candidate = st.fixed_dictionaries({}, optional={name: VALUES[name] for name in own})
    return context, draw(st.lists(candidate, max_size=5))


@settings(max_examples=150, deadline=None)
@given(request=requests())
def test_a_context_is_its_expanded_rows(scorer: Scorer, request: Any) -> None:
    context, candidates = request
    rows = [{**context, **candidate} for candidate in candidates]
    assert np.array_equal(scorer.embed(scorer.encode(context, candidates)), scorer.embed(scorer.encode(rows)))
    assert np.array_equal(scorer.score(context, candidates), scorer.score(rows))
    assert scorer.coverage(scorer.encode(context, candidates)) == scorer.coverage(scorer.encode(rows))


@pytest.mark.parametrize("kind", ["hashed", "collisionless"])
def test_the_other_kinds_of_table_too(tmp_path: Any, kind: str) -> None:
    scorer = Scorer(make_bundle(tmp_path / kind, **of_kind(kind)))
    context = {"user": 3, "words": ["w1", None, "w9"], "price": 2.5}
    candidates = raw_frame(40).drop(*context).to_dicts()
    rows = [{**context, **candidate} for candidate in candidates]
    assert np.array_equal(scorer.score(context, candidates), scorer.score(rows))


def test_candidates_may_be_a_frame(scorer: Scorer) -> None:
    raw, context = raw_frame(30).drop("row"), {"user": 7, "words": ["a", "b"]}
    candidates = raw.drop(*context)
    expected = scorer.score([{**row, **context} for row in raw.to_dicts()])
    assert np.array_equal(scorer.score(context, candidates), expected)
    assert np.array_equal(scorer.score(context, candidates.to_arrow()), expected)
    plain = pd.DataFrame({name: candidates[name].to_list() for name in candidates.columns})
    assert np.array_equal(scorer.score(context, plain), expected)
    with pytest.raises(InputError, match="expected a column 'item'; found columns price, genres, age"):
        scorer.score(context, candidates.drop("item"))
    absent = scorer.score(context, candidates.drop("item"), allow_missing=True)
    assert np.array_equal(absent, scorer.score(context, candidates.with_columns(item=None)))


def test_unknown_keys_are_left_out(scorer: Scorer) -> None:
    context, candidates = {"user": 7, "request": "x"}, [{"item": "a", "position": 1}, {"item": "b", "request": "y"}]
    assert np.array_equal(scorer.score(context, candidates), scorer.score([{"user": 7, "item": i} for i in ("a", "b")]))


@pytest.mark.parametrize(
    ("context", "candidates", "message", "row"),
    [
        ([{"user": 7}], [{}], "expected a context: one mapping; found list; send what all candidates share", None),
        ({"user": 7}, {"item": "a"}, "found dict; put it in a list", None),
        (
            {"user": 7},
            [{"item": "a"}, {"user": 7}],
            "a context and its candidates share no feature; found 'user'",
            None,
        ),
        ({"user": 7}, pl.DataFrame({"user": [7]}), "share no feature; found 'user'", None),
        ({"user": 7}, pd.DataFrame({"item": ["a"], "user": [7]}), "share no feature; found 'user'", None),
        ({"user": 1.5}, [{}], "column 'user': expected categories", None),
        ({"user": 7}, [{}, {"price": "x"}], "column 'price': expected a number", 1),
    ],
)
def test_requests_that_cannot_be_scored(scorer: Scorer, context: Any, candidates: Any, message: str, row: Any) -> None:
    with pytest.raises(InputError, match=message) as caught:
        scorer.score(context, candidates)
    assert caught.value.row == row


def test_a_scorer_goes_with_its_last_user(tmp_path: Any) -> None:
    """A server that switches models must not wait for the collector of cycles to unmap a table."""
    scorer = Scorer(make_bundle(tmp_path / "bundle"))
    scorer.score({"user": 7}, [{"item": "a"}])
    gone = weakref.ref(scorer)
    gc.disable()
    try:
        del scorer
        assert gone() is None
    finally:
        gc.enable()


# --- coverage ---------------------------------------------------------------------------------------------------------


def test_coverage_by_hand(tmp_path: Any) -> None:
    """A collisionless table knows every value of train: those of the first 12 rows of `raw_frame`."""
    settings = of_kind("collisionless")
    layout, vocabulary = settings["layout"], settings["vocabulary"]
    trained = np.ones(layout.num_rows, dtype=np.bool_)
    for start, num_rows in layout.ranges.values():
        assert num_rows >= 2
        trained[start : start + 2] = False  # neither a missing value nor, of course, an unseen one
    scorer = Scorer(make_bundle(tmp_path / "bundle", **settings, trained_rows=trained))
    seen = raw_frame(12)
    user = next(user for user in seen["user"] if user is not None)
    word = next(word for words in seen["words"] for word in ([] if words is None else words) if word is not None)
    assert len(vocabulary["user"]) == seen["user"].n_unique() - seen["user"].has_nulls()
    rows: list[dict[str, Any]] = [
        {"user": user, "words": [word, "new", None], "price": 1.0},
        {"user": 1234, "words": None, "price": float("nan")},
        {"user": None, "words": [], "price": None, "genres": "a|new"},
    ]
    expected = {
        "user": Coverage(num_examples=3, missing=1, num_values=2, unseen=1),
        "price": Coverage(num_examples=3, missing=2, num_values=0, unseen=0),
        "genres": Coverage(num_examples=3, missing=2, num_values=2, unseen=1),
        "item": Coverage(num_examples=3, missing=3, num_values=0, unseen=0),
        "words": Coverage(num_examples=3, missing=1, num_values=2, unseen=1),
        "age": Coverage(num_examples=3, missing=3, num_values=0, unseen=0),
    }
    assert scorer.coverage(scorer.encode(rows)) == expected
    schema = {"user": pl.Int64, "words": pl.List(pl.String), "price": pl.Float64, "genres": pl.String}
    frame = scorer.encode(pl.DataFrame(rows, schema=schema), allow_missing=True)
    assert scorer.coverage(frame) == expected
    assert list(scorer.coverage(frame)) == NAMES


def test_counts_add_up(scorer: Scorer) -> None:
    raw = raw_frame(50)
    parts = [scorer.coverage(scorer.encode(part)) for part in (raw[:20], raw[20:])]
    whole = scorer.coverage(scorer.encode(raw))
    assert add_coverage(parts[0], parts[1]) == whole
    for name in ("user", "item", "price", "genres", "words"):
        assert whole[name].missing == raw[name].null_count() + (raw[name].to_list().count([None]))
    assert all(count.unseen == 0 for count in whole.values()), "a bundle that does not say which rows were trained"


def test_a_value_is_unseen_where_one_of_its_rows_is_untrained(tmp_path: Any) -> None:
    rows = [{"user": user} for user in range(200)]
    none = np.zeros(len(table()), dtype=np.bool_)
    assert (
        Scorer(make_bundle(tmp_path / "none", trained_rows=none))
        .coverage(Scorer(make_bundle(tmp_path / "other", trained_rows=none)).encode(rows))["user"]
        .unseen
        == 200
    )
    half = np.arange(len(table())) % 2 == 0
    scorer = Scorer(make_bundle(tmp_path / "half", trained_rows=half))
    unseen = scorer.coverage(scorer.encode(rows))["user"].unseen
    one_by_one = [scorer.coverage(scorer.encode([row]))["user"].unseen for row in rows]
    assert 0 < unseen == sum(one_by_one) < 200


def test_in_a_pruned_table_a_value_is_unseen_where_nothing_of_it_is_left(tmp_path: Any) -> None:
    rows = [{"user": user} for user in range(200)]
    left = np.arange(len(table())) % 3 == 0
    widths = np.where(left, table().shape[1], 0)
    pruned = {"row_widths": widths, "compression": {"rows_kept": int(left.sum())}}
    scorer = Scorer(make_bundle(tmp_path / "pruned", **pruned))
    layout, tokens = scorer.bundle.layout, encode(pl.DataFrame(rows), REGISTRY, allow_missing=True).tokens["user"]
    read = addressing_of(layout, None, layout.positions_of("user")).rows(tokens[:, None])
    expected = sum(not left[own].any() for own in read)
    assert 0 < expected < sum(not left[own].all() for own in read)
    assert scorer.coverage(scorer.encode(rows))["user"].unseen == expected
