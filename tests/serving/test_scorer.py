import math
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import InputError
from features.layout import TableLayout
from features.registry import FeatureRegistry
from serving import scorer as scoring
from serving.bundle.bundle import Bundle
from serving.bundle.table import quantized_rows
from serving.scorer import Scorer
from tests.floats import floats
from tests.serving.conftest import (
    BIAS,
    DENSE_WEIGHTS,
    LAYOUT,
    RATE,
    ROUNDING,
    dense_graph,
    embedded_weights,
    make_bundle,
    raw_frame,
    reference,
    table,
)

MISSING_TOKEN = xxhash.xxh3_64_intdigest(b"\xffmissing")
MASK = 2**64 - 1


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> Scorer:
    return Scorer(bundle, num_threads=1)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "int8"])
def test_scores_are_those_of_plain_loops(tmp_path: Any, dtype: Any) -> None:
    scorer = Scorer(make_bundle(tmp_path / "bundle", table_dtype=dtype))
    raw = raw_frame(200, seed=1)
    rows = quantized_rows(table(), dtype)
    assert np.abs(scorer.score(raw) - reference(raw, rows)).max() < 1e-6
    assert scorer.verify() < 1e-6


@pytest.mark.parametrize(("dtype", "bound"), [("fp16", 2e-3), ("int8", 2e-2)])
def test_a_smaller_table_costs_little(tmp_path: Any, scorer: Scorer, dtype: Any, bound: float) -> None:
    raw = raw_frame(200, seed=1)
    small = Scorer(make_bundle(tmp_path / "bundle", table_dtype=dtype)).score(raw)
    assert 0 < np.abs(small - scorer.score(raw)).max() < bound


def test_a_batch_is_its_rows(scorer: Scorer) -> None:
    raw = raw_frame(50, seed=2)
    scores = scorer.score(raw)
    assert scores.dtype == np.float64
    assert scores.shape == (50,)
    one_by_one = np.concatenate([scorer.score(raw[row]) for row in range(len(raw))])
    assert np.abs(scores - one_by_one).max() <= ROUNDING
    assert np.abs(scorer.score(raw.reverse())[::-1] - scores).max() <= ROUNDING


def test_chunks_and_blocks_change_nothing(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_frame(100, seed=3)
    expected = scorer.score(raw)
    candidates = raw.drop("user", "words").to_dicts()
    in_context = scorer.score({"user": 7, "words": ["a"]}, candidates)
    monkeypatch.setattr(scoring, "BLOCK_ROWS", 3)
    assert np.abs(scorer.score(raw) - expected).max() <= ROUNDING
    assert np.abs(scorer.score({"user": 7, "words": ["a"]}, candidates) - in_context).max() <= ROUNDING
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 7)
    assert np.abs(scorer.score(raw) - expected).max() <= ROUNDING
    assert np.abs(scorer.score(raw.to_dicts()) - expected).max() <= ROUNDING


def test_other_columns_and_their_order_change_nothing(scorer: Scorer) -> None:
    raw = raw_frame(30)
    other = raw.select(reversed(raw.columns)).with_columns(click=1, more=pl.lit("x"))
    assert np.array_equal(scorer.score(other), scorer.score(raw))


# --- forms of rows ----------------------------------------------------------------------------------------------------


def test_mappings_score_like_frames(scorer: Scorer) -> None:
    raw = raw_frame(80, seed=4)
    expected = scorer.score(raw)
    assert np.array_equal(scorer.score(raw.to_dicts()), expected)
    without_nulls = [{key: value for key, value in row.items() if value is not None} for row in raw.to_dicts()]
    assert np.array_equal(scorer.score(without_nulls), expected)


def test_pandas_and_arrow_score_like_polars(scorer: Scorer) -> None:
    raw = raw_frame(80, seed=5)
    expected = scorer.score(raw)
    assert np.array_equal(scorer.score(pa.table(raw)), expected)
    assert np.array_equal(scorer.score(raw.to_arrow()), expected)
    plain = pd.DataFrame({name: raw[name].to_list() for name in raw.columns})
    assert plain["user"].dtype == np.float64, "pandas makes floats of integers with nulls"
    assert np.array_equal(scorer.score(plain), expected)
    assert np.array_equal(scorer.score(plain.convert_dtypes()), expected)
    assert np.array_equal(scorer.score(plain.astype({"item": "category"})), expected)


def test_pandas_columns_of_mixed_types(scorer: Scorer) -> None:
    rows = [{"user": 7}, {"user": "7"}, {"user": 7.0}, {"user": None}, {"user": float("nan")}, {}]
    scores = scorer.score(pd.DataFrame(rows), allow_missing=True)
    assert np.ptp(scores[:3]) <= ROUNDING
    assert np.ptp(scores[3:]) <= ROUNDING
    assert abs(scores[0] - scores[3]) > 1e-3
    assert np.array_equal(scorer.score(rows), scores)


def test_values_of_several_types_keep_their_meaning(scorer: Scorer) -> None:
    forms: list[list[Any]] = [[7, "7", 7.0, np.int64(7), np.float32(7)], [True, "true", np.True_], [None, float("nan")]]
    for same in forms:
        for value in same:
            mixed = [{"user": value}, {"user": "other"}, {"user": 12}, {"user": None}]
            assert abs(scorer.score(mixed)[0] - scorer.score([{"user": same[0]}])[0]) <= ROUNDING
    lists: list[Any] = [["7", "a"], (7, "a"), np.array(["7", "a"]), pl.Series(["7", "a"]), [7.0, "a"]]
    assert np.ptp(scorer.score([{"words": value} for value in lists])) <= ROUNDING
    assert np.ptp(scorer.score([{"genres": value} for value in ("a|b", ["a", "b"])])) <= ROUNDING


def test_missing_empty_and_absent_differ_as_they_should(scorer: Scorer) -> None:
    rows: list[dict[str, Any]] = [{}, {"words": None}, {"words": [None]}, {"words": []}, {"words": [""]}]
    scores = scorer.score(rows)
    assert np.ptp(scores[:3]) <= ROUNDING
    assert np.diff(np.sort(scores[2:])).min() > 1e-4


def test_no_rows(scorer: Scorer) -> None:
    for nothing in ([], (), raw_frame(0), raw_frame(0).to_arrow(), pd.DataFrame({"user": []})):
        scores = scorer.score(nothing, allow_missing=True)
        assert (scores.shape, scores.dtype) == ((0,), np.float64)
    assert scorer.embed(scorer.encode(raw_frame(0))).shape == (0, LAYOUT.embedded_width)
    assert scorer.logits(scorer.encode(raw_frame(0))).dtype == np.float32
    assert scorer.score({"user": 7}, []).shape == (0,)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"user": 1}, "expected a polars or pandas frame, .* found dict; put it in a list"),
        ("user", "expected a polars or pandas frame, .* found str"),
        (7, "found int"),
        ([1], "found a list that holds int"),
        ([{}, None], "found a list that holds NoneType"),
        (raw_frame(3).lazy(), "found LazyFrame"),
        ([{"price": "3x"}], "column 'price': expected a number; found '3x'; declare it"),
        ([{"usr": 7}], "expected a row with a feature of the model; found keys 'usr'; did you mean 'user'?"),
        ([{"user": 7}, {}, {"a": 1, "b": 2}], "found keys 'a', 'b'; send some of user, price"),
        ([{"price": [3]}], "column 'price': expected a number; found list"),
        ([{"price": 10**400}], "column 'price': expected finite numbers"),
        ([{"price": float("inf")}], "column 'price': expected finite numbers"),
        ([{"user": 1}, {"user": [1, 2]}], "column 'user': expected one value per row; found a list"),
        ([{"user": 1.5}], "column 'user': expected categories: text, integers or booleans; found the number 1.5"),
        ([{"user": b"x"}], "column 'user': expected categories"),
        ([{"user": object()}], "column 'user': expected categories"),
        ([{"user": {"a": 1}}], "column 'user': expected categories"),
        ([{"user": "\ud800"}], "column 'user': expected text; found .*; send valid Unicode"),
        ([{"words": "a b"}], "column 'words': expected a list; found str, such as 'a b'; send a list, or set `sep"),
        ([{"words": 3}], "column 'words': expected a list; found int"),
        ([{"words": [[1]]}], "column 'words': expected categories"),
        ([{"words": ["\udfff"]}], "column 'words': expected text"),
        (raw_frame(3).drop("item"), "expected a column 'item'; found columns row, user"),
        (pd.DataFrame({"user": [1]}), "expected a column 'price'"),
        (pd.DataFrame([[1, 2]], columns=["user", "user"]), "column 'user': expected one column of that name; found 2"),
    ],
)
def test_rows_that_cannot_be_scored(scorer: Scorer, rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scorer.score(rows)


def test_an_error_knows_its_row(scorer: Scorer) -> None:
    raw = raw_frame(20_000)
    wrong = raw.with_columns(user=pl.when(pl.col("row") == 17_000).then(0.5).otherwise(pl.col("user")))
    with pytest.raises(InputError) as caught:
        scorer.score(wrong)
    assert caught.value.row == 17_000
    for value in ({"user": 0.5}, {"price": "x"}, {"words": "x"}, {"words": ["x", 0.5]}):
        with pytest.raises(InputError) as caught:
            scorer.score([{}, {"user": 1, "words": ["y"]}, value])
        assert caught.value.row == 2


def test_a_logit_that_is_no_number_is_an_error(scorer: Scorer) -> None:
    with pytest.raises(InputError, match="expected a logit that is a number; found NaN") as caught:
        scorer.probabilities(np.array([0, np.nan, 0], dtype=np.float32))
    assert caught.value.row == 1


def test_extreme_logits(scorer: Scorer) -> None:
    logits = np.array([-np.inf, -3e38, -1000, 0, 1000, np.inf], dtype=np.float32)
    probabilities = scorer.probabilities(logits)
    assert (probabilities[:3] < 1e-300).all()
    assert probabilities[3] == pytest.approx(0.5 * RATE / (0.5 + 0.5 * RATE))
    assert (probabilities[4:] == 1.0).all()


# --- embedding --------------------------------------------------------------------------------------------------------


def test_pooling_sums_in_the_order_of_the_list(bundle: Bundle, scorer: Scorer) -> None:
    """Bit for bit what a loop over the values gives in float32, next to lists that are empty."""
    generator = np.random.default_rng(6)
    words = [[str(k) for k in generator.integers(0, 999, n)] for n in (0, 3, 0, 0, 40, 1, 17, 0)]
    embedded = scorer.embed(scorer.encode([{"words": value} for value in words])).reshape(len(words), -1, LAYOUT.width)
    for position in LAYOUT.positions_of("words"):
        salt = LAYOUT.slots[position].salt
        for row, values in enumerate(words):
            total = np.zeros(LAYOUT.width, dtype=np.float32)
            for value in values:
                total += table()[row_of(xxhash.xxh3_64_intdigest(value.encode()), salt)]
            assert np.array_equal(embedded[row, position], total)


def test_a_registry_of_scalars_or_of_lists_alone(tmp_path: Any) -> None:
    for kind, values in [("categorical", ["a", None, "b"]), ("categorical_list", [["a", "b"], None, []])]:
        registry = FeatureRegistry.of(features={"one": kind, "two": kind})
        layout = TableLayout.of(registry, num_rows=50, width=5, probes=3, views={"main": ("one", "two")})
        raw = pl.DataFrame({"one": values, "two": values[::-1]})
        bundle = make_bundle(
            tmp_path / kind,
            registry=registry,
            layout=layout,
            table=table()[:50],
            dense_onnx=dense_graph(width=30, num_dense=0),
            golden=raw.with_columns(probability=0.5),
        )
        scores = Scorer(bundle).score(raw)
        assert np.isfinite(scores).all()
        assert len(set(scores)) == 3
        assert Scorer(bundle).score(raw.head(0)).shape == (0,)


def test_a_feature_that_no_view_reads(tmp_path: Any) -> None:
    layout = TableLayout.of(
        FeatureRegistry.of(features={"one": "categorical", "two": "categorical_list"}),
        num_rows=50,
        width=5,
        probes=1,
        views={"main": ("one",)},
    )
    raw = pl.DataFrame({"one": ["a", "b"], "two": [["x"], ["y"]]})
    bundle = make_bundle(
        tmp_path / "bundle",
        registry=FeatureRegistry.of(features={"one": "categorical", "two": "categorical_list"}),
        layout=layout,
        table=table()[:50],
        dense_onnx=dense_graph(width=5, num_dense=0),
        golden=raw.with_columns(probability=0.5),
    )
    scorer = Scorer(bundle)
    assert np.array_equal(scorer.score(raw), scorer.score(raw.with_columns(two=pl.Series([["z"], []]))))


# --- an independent reference -----------------------------------------------------------------------------------------


def row_of(token: int, salt: int) -> int:
    """The row formula of the contract, in Python integers."""
    mixed = token ^ salt
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    mixed ^= mixed >> 31
    return ((mixed >> 32) * LAYOUT.num_rows) >> 32


def token_of(value: Any) -> int:
    """The token of the contract: xxh3_64 of the canonical text."""
    if value is None:
        return MISSING_TOKEN
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, float):
        value = int(value)
    return xxhash.xxh3_64_intdigest(str(value).encode())


def probability_of(row: dict[str, Any]) -> float:
    """The bundle's answer from the contract alone: nothing of features/ or serving/ but the pinned slots."""
    price, age = row.get("price") or 0.0, row.get("age") or 0.0
    logit = BIAS + float(DENSE_WEIGHTS[0]) * math.copysign(math.log1p(abs(price)), price)
    logit += float(DENSE_WEIGHTS[1]) * age
    weights = embedded_weights()
    for position, slot in enumerate(LAYOUT.slots):
        value = row.get(slot.feature)
        values = value if isinstance(value, list) else [value]
        vectors = [table()[row_of(token_of(one), slot.salt)] for one in values]
        divisor = max(1, len(vectors)) if slot.feature == "genres" else 1
        for column in range(LAYOUT.width):
            pooled = sum(float(vector[column]) for vector in vectors) / divisor
            logit += float(weights[position * LAYOUT.width + column]) * pooled
    p = 1 / (1 + math.exp(-logit))
    return p * RATE / (1 - p + p * RATE)


def test_salts_are_those_of_the_contract() -> None:
    for slot in LAYOUT.slots:
        text = "\x1f".join(("3", slot.feature, slot.view, str(slot.probe)))
        assert slot.salt == xxhash.xxh3_64_intdigest(text.encode())


CATEGORY = st.one_of(st.none(), st.integers(), st.text(), st.booleans(), st.integers(-(2**40), 2**40).map(float))
NUMBER = st.one_of(st.none(), st.integers(-1000, 1000), floats(-1000, 1000, width=32), st.booleans())
LIST = st.one_of(st.none(), st.lists(CATEGORY, max_size=6))
ROW = st.fixed_dictionaries(
    {}, optional={"user": CATEGORY, "item": CATEGORY, "price": NUMBER, "age": NUMBER, "genres": LIST, "words": LIST}
)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(ROW, max_size=5))
def test_any_rows_score_as_the_contract_says(scorer: Scorer, rows: list[dict[str, Any]]) -> None:
    scores = scorer.score(rows)
    assert scores.shape == (len(rows),)
    assert np.allclose(scores, [probability_of(row) for row in rows], rtol=1e-4, atol=1e-6)
    assert np.allclose(scores, [scorer.score([row])[0] for row in rows], rtol=0, atol=ROUNDING)


# --- nothing heavy ----------------------------------------------------------------------------------------------------

SCORE = """
import sys
{prelude}
from serving.batch.job import score_files
from serving import Scorer
scores = Scorer({bundle!r}).score([{{"user": 7}}, {{"words": ["a", None]}}])
assert scores.shape == (2,)
score_files({bundle!r}, [{golden!r}], {out!r}, keep=["user"], progress=False)
loaded = [name for name in ("torch", "pandas", "mlflow", "pyarrow", "onnx", "pytest") if sys.modules.get(name)]
assert not loaded, loaded
"""
BLOCK = "sys.modules.update(dict.fromkeys(['torch', 'torchrec', 'pandas', 'mlflow', 'pyarrow', 'onnx']))"


@pytest.mark.parametrize("prelude", ["", BLOCK], ids=["installed", "blocked"])
def test_scoring_loads_nothing_heavy(bundle: Bundle, tmp_path: Any, prelude: str) -> None:
    paths = {"bundle": str(bundle.path), "golden": str(bundle.path / "golden.parquet"), "out": str(tmp_path / "out")}
    code = SCORE.format(prelude=prelude, **paths)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_pandas_frame_needs_no_pyarrow(bundle: Bundle) -> None:
    code = f"""
import sys
sys.modules["pyarrow"] = None
import pandas as pd
from serving import Scorer
frame = pd.DataFrame({{"user": [1, None, "x"], "price": [1.5, None, 2], "words": [["a"], None, []]}})
assert Scorer({str(bundle.path)!r}).score(frame, allow_missing=True).shape == (3,)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_threads_share_a_scorer(scorer: Scorer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    frames = [raw_frame(40, seed=seed) for seed in range(8)]
    score: Callable[[pl.DataFrame], Any] = scorer.score
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(score, frames))
    for scores, frame in zip(together, frames, strict=True):
        assert np.array_equal(scores, scorer.score(frame))


def test_a_frame_without_any_feature_is_not_all_missing(scorer: Scorer) -> None:
    for rows in (pd.DataFrame({"usr": [7]}), pl.DataFrame({"usr": [7]})):
        with pytest.raises(InputError, match="expected a row with a feature of the model; found keys"):
            scorer.score(rows, allow_missing=True)


def test_missing_values_of_pandas_and_decimals_in_mappings(scorer: Scorer) -> None:
    given = [{"user": pd.NA, "price": Decimal("0.5"), "words": pd.NaT}, {"user": 7, "price": pd.NA}]
    plain = [{"user": None, "price": 0.5, "words": None}, {"user": 7, "price": None}]
    assert np.array_equal(scorer.score(given), scorer.score(plain))


def test_the_package_imports_its_scorer_when_it_is_asked_for() -> None:
    code = "import sys, serving\nassert 'serving.scorer' not in sys.modules\nfrom serving import Scorer"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
