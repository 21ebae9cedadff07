"""Bundles with target statistics: they score as plain loops do, and a damaged file is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from features.encode import encode
from features.errors import InputError
from serving.bundle import Bundle
from serving.bundle.manifest import PriorCorrection
from serving.bundle.target_statistics import TargetStatistics, ValueColumns
from serving.scorer import Scorer
from tests.serving.conftest import (
    BIAS,
    DENSE_WEIGHTS,
    RATE,
    REGISTRY,
    ROUNDING,
    dense_graph,
    embedded_weights,
    make_bundle,
    raw_frame,
    reseal,
)
from tests.serving.server.app import NAME as NAME_OF_MODEL
from tests.serving.server.app import Served

NAME = "target_statistics.safetensors"
NAMES = [feature.name for feature in REGISTRY.token_features]
NUM_DENSE = 2 + 2 * len(NAMES)


def statistics(rows: pl.DataFrame) -> TargetStatistics:
    """Made-up columns for the values of these rows."""
    random, found = np.random.default_rng(3), {}
    for name, tokens in encode(rows, REGISTRY).tokens.items():
        values = np.unique(tokens)
        found[name] = ValueColumns(values, random.normal(0, 0.1, (2 + len(values), 2)).astype(np.float32))
    return TargetStatistics({name: found[name] for name in NAMES})


STATISTICS = statistics(raw_frame(12))


def settings(**changes: Any) -> dict[str, Any]:
    golden = raw_frame(20, seed=9).drop("row").with_columns(probability=pl.lit(0.5))
    return {
        "dense_onnx": dense_graph(num_dense=NUM_DENSE),
        "target_statistics": STATISTICS,
        "golden": golden,
        **changes,
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose golden rows have the probabilities of plain loops."""
    folder = tmp_path_factory.mktemp("statistics")
    scorer = Scorer(make_bundle(folder / "draft", **settings()))
    golden = scorer.bundle.golden.drop("probability")
    golden = golden.with_columns(probability=pl.Series(expected(scorer, golden)))
    return make_bundle(folder / "bundle", **settings(golden=golden)).path


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", **settings()).path


def expected(scorer: Scorer, raw: pl.DataFrame) -> Any:
    """Probabilities by a loop over rows, features and values; the embedding is that of the scorer."""
    encoded = encode(raw, REGISTRY)
    answers = []
    for number, embedded in enumerate(scorer.embed(scorer.encode(raw))):
        dense = encoded.dense[number].tolist()
        for name in NAMES:
            tokens, columns = STATISTICS.features[name]
            own = encoded.bag(name, number, number + 1)[0].tolist()
            positions = {int(token): 2 + k for k, token in enumerate(tokens)}
            picked = [columns[positions.get(token, 0)].astype(np.float64) for token in own]
            dense += np.mean(picked, axis=0).tolist() if own else columns[1].tolist()
        weights = np.resize(DENSE_WEIGHTS, NUM_DENSE).astype(np.float64)
        answers.append(float(embedded.astype(np.float64) @ embedded_weights()) + float(dense @ weights) + BIAS)
    return PriorCorrection(negative_rate=RATE).apply(1 / (1 + np.exp(-np.array(answers))))


def test_scores_are_those_of_plain_loops(path: Path) -> None:
    """Lists, missing values, values that train did not show; more rows than a block, and row by row."""
    scorer, raw = Scorer(path), raw_frame(700, seed=1)
    scores = scorer.score(raw)
    assert np.abs(scores - expected(scorer, raw)).max() < 1e-6
    one_by_one = [scorer.score(raw[row])[0] for row in range(0, 700, 50)]
    assert np.abs(scores[::50] - one_by_one).max() <= ROUNDING
    assert np.abs(scorer.score(raw[:30].to_dicts()) - scores[:30]).max() <= ROUNDING


def test_a_server_takes_such_a_version(path: Path, bundle: Bundle) -> None:
    """Its golden rows are scored again first."""
    sources, scorer = [bundle.path], Scorer(path)
    served = Served(lambda: sources[-1]).start()
    rows = [{"user": 7, "age": 30, "genres": ["a", "b"]}, {"user": 8}]
    before = served.client().post("/score", json={"rows": rows}).json()
    sources.append(path)
    assert served.client().post(f"/v2/repository/models/{NAME_OF_MODEL}/load").json()["outcome"] == "loaded"
    after = served.client().post("/score", json={"rows": rows}).json()
    assert (before["version"], after["version"]) == (bundle.model_id, scorer.bundle.model_id)
    assert after["scores"] == scorer.score(rows).tolist() != before["scores"]
    assert scorer.verify() < 1e-6


@pytest.mark.parametrize("shared", [(), ("user", "age"), ("genres", "words"), tuple(NAMES), ("price", "age", "user")])
def test_a_context_is_its_expanded_rows(path: Path, shared: tuple[str, ...]) -> None:
    scorer = Scorer(path)
    rows = raw_frame(20, seed=2).drop("row").to_dicts()
    context = {name: rows[0][name] for name in shared}
    candidates = [{name: value for name, value in row.items() if name not in shared} for row in rows]
    whole = scorer.score([{**context, **candidate} for candidate in candidates])
    assert np.array_equal(scorer.score(context, candidates), whole)


def test_the_format_is_version_4_and_the_file_is_part_of_the_identity(path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(path)
    assert bundle.manifest.format_version == 4
    assert set(load_file(path / NAME)) == {f"{name}.{part}" for name in NAMES for part in ("tokens", "columns")}
    other = TargetStatistics({name: one._replace(columns=2 * one.columns) for name, one in STATISTICS.features.items()})
    for number, (changes, is_equal) in enumerate([({}, True), ({"target_statistics": other}, False)]):
        again = make_bundle(tmp_path / str(number), **settings(golden=bundle.golden, **changes))
        assert (again.model_id == bundle.model_id) == is_equal


# --- faults -----------------------------------------------------------------------------------------------------------


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda found: {**found, name: change(found[name])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("user.tokens", lambda tokens: tokens[::-1].copy()), "increasing tokens of 'user'"),
        (changed("user.tokens", np.zeros_like), "increasing tokens of 'user'"),
        (changed("user.tokens", lambda tokens: tokens[:-1]), r"'user.columns' to be F32"),
        (changed("user.tokens", lambda tokens: tokens[:, None]), r"'user.tokens' to be U64"),
        (changed("user.tokens", lambda tokens: tokens.astype(np.float32)), "'user.tokens' to be U64"),
        (changed("user.columns", lambda columns: columns.astype(np.float16)), "'user.columns' to be F32"),
        (changed("user.columns", lambda columns: columns[:, :1]), "'user.columns' to be F32"),
        (changed("user.columns", lambda columns: columns * np.float32(np.nan)), "finite columns"),
        (changed("user.columns", lambda columns: columns + np.float32(np.inf)), "finite columns"),
        (lambda found: {**found, "more": found["user.tokens"]}, "expected tensors user.tokens"),
        (lambda found: {name: one for name, one in found.items() if name != "item.columns"}, "expected tensors"),
    ],
)
def test_statistics_that_are_none(fresh: Path, change: Callable[[Any], Any], message: str) -> None:
    save_file(change(load_file(fresh / NAME)), fresh / NAME)
    reseal(fresh)
    with pytest.raises(InputError, match=message) as caught:
        Bundle.open(fresh)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (8).to_bytes(8, "little") + b"[" * 8])
def test_bytes_that_are_no_safetensors(fresh: Path, content: bytes) -> None:
    (fresh / NAME).write_bytes(content)
    reseal(fresh)
    with pytest.raises(InputError, match=rf"{NAME}: expected a header"):
        Bundle.open(fresh)


def test_a_changed_byte_is_found(fresh: Path) -> None:
    content = bytearray((fresh / NAME).read_bytes())
    content[-1] ^= 1
    (fresh / NAME).write_bytes(content)
    with pytest.raises(InputError, match=rf"{NAME}: expected sha256 \w+; found \w+; the bundle is damaged"):
        Bundle.open(fresh)


def test_an_older_version_has_no_such_file(fresh: Path) -> None:
    with pytest.raises(InputError, match=rf"expected files .*; found .*{NAME}"):
        reseal(fresh, format_version=3)


def test_a_graph_of_other_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dense.onnx: expected float tensors .*'dense': \['B', 10\]"):
        make_bundle(tmp_path / "bundle", **settings(dense_onnx=dense_graph()))
    files = json.dumps(sorted(path.name for path in tmp_path.iterdir()))
    assert files == "[]"


def test_statistics_of_other_features(tmp_path: Path) -> None:
    some = TargetStatistics({name: STATISTICS.features[name] for name in NAMES[1:]})
    with pytest.raises(InputError, match=r"expected tensors user\.tokens"):
        make_bundle(tmp_path / "bundle", **settings(target_statistics=some))


def test_a_feature_without_values(tmp_path: Path) -> None:
    """All its lists were empty in train."""
    none = ValueColumns(np.zeros(0, np.uint64), np.array([[1, 2], [3, 4]], np.float32))
    changed_one = TargetStatistics({**STATISTICS.features, "words": none})
    scorer = Scorer(make_bundle(tmp_path / "bundle", **settings(target_statistics=changed_one)))
    found = scorer.bundle.target_statistics
    assert found is not None
    columns = found.columns(encode(raw_frame(60), REGISTRY))[:, -2:]
    assert {tuple(row) for row in columns.tolist()} == {(1, 2), (3, 4)}
    assert np.isfinite(scorer.score(raw_frame(60))).all()
