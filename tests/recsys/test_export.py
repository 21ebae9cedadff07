"""What is served is what was trained: raw rows through the bundle against the ranker itself, for every model."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from features.dataset_info import read_dataset
from features.encode import encode
from features.errors import InputError
from features.golden import ODD_TEXTS, golden_frame
from features.registry import FeatureRegistry
from recsys import export
from recsys.collisions import collision_report, distinct_tokens
from recsys.dataset import Split, batch_of
from recsys.embedding import EmbeddingConfig
from recsys.export import dense_graph, export_bundle, probabilities
from recsys.models import MODELS
from recsys.ranker import Ranker, build_ranker, model_config
from serving.scorer import Scorer
from tests.recsys.conftest import training_of

REGISTRY = FeatureRegistry.of(
    features={
        "words": {"type": "categorical_list", "pooling": "sum"},
        "price": {"type": "numeric", "transform": "log1p"},
        "user": "categorical",
        "tags": {"type": "categorical_list", "separator": "|", "probes": 3},
        # As prepare would have fitted it: parity to 1e-6 is a promise for numbers of ordinary size.
        "age": {"type": "numeric", "fitted": {"mean": 40.0, "std": 20.0}},
        "item": {"type": "categorical", "probes": 1},
    }
)
NETWORKS: dict[str, dict[str, Any]] = {
    "final_mlp": {
        "mlp1_hidden": [12, 8],
        "mlp2_hidden": [6],
        "num_heads": 2,
        "gate_hidden": [5],
        "fs1_context": ["words", "price"],
        "fs2_context": ["item"],
    },
    "dual_mlp": {"mlp1_hidden": [12], "mlp2_hidden": [6]},
    "mlp": {"hidden": [12, 6]},
}
TOLERANCE = 1e-6

texts = st.one_of(st.none(), st.sampled_from(ODD_TEXTS), st.text(max_size=8))
rows = st.lists(
    st.fixed_dictionaries(
        {
            "words": st.one_of(st.none(), st.lists(texts, max_size=6)),
            "price": st.one_of(st.none(), st.floats(-1e3, 1e3)),
            "user": texts,
            "tags": st.one_of(st.none(), st.sampled_from(["", "|", "a|b", "a||b", "\u00e9|\U0001d4b3"]), texts),
            "age": st.one_of(st.none(), st.integers(-5, 130)),
            "item": texts,
        }
    ),
    min_size=1,
    max_size=12,
)
SCHEMA = {
    "words": pl.List(pl.String),
    "price": pl.Float64,
    "user": pl.String,
    "tags": pl.String,
    "age": pl.Int64,
    "item": pl.String,
}


def ranker_of(name: str, registry: FeatureRegistry = REGISTRY, **network: Any) -> Ranker:
    """A ranker with every part in use: no weight at zero, and the batch norms' statistics are those of some rows."""
    config = model_config(name, {**NETWORKS.get(name, {}), **network})
    width = 1 if name == "logistic_regression" else 4
    table = EmbeddingConfig(num_rows=83, width=width, probes=2, init="uniform")
    ranker, _ = build_ranker(registry, name, config, table, seed=3, learning_rate=0.1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        ranker.embedding.table.normal_(0, 0.3, generator=generator)
        for parameter in ranker.network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    raw = golden_frame(registry, 200, seed=5)
    for start in range(0, 200, 50):
        ranker.train()(batch_of(encode(raw[start : start + 50], registry), registry))
    return ranker.eval()


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ranker, Scorer]:
    """A ranker, and the scorer of its bundle."""
    ranker = ranker_of(request.param)
    out = tmp_path_factory.mktemp("bundle") / request.param
    return ranker, Scorer(export_bundle(ranker, REGISTRY, out, model=request.param))


# Parity


@given(rows)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_raw_rows_score_alike(pair: tuple[Ranker, Scorer], rows: list[dict[str, Any]]):
    ranker, scorer = pair
    raw = pl.DataFrame(rows, schema=SCHEMA)
    expected = probabilities(ranker, REGISTRY, raw)
    assert np.abs(scorer.score(raw) - expected).max() <= TOLERANCE
    # One at a time, as a service is asked.
    assert abs(scorer.score(rows[:1])[0] - expected[0]) <= TOLERANCE


def test_golden_rows_verify_and_differ(pair: tuple[Ranker, Scorer]):
    ranker, scorer = pair
    assert scorer.verify() <= TOLERANCE
    golden = scorer.bundle.golden
    assert golden.columns == [*SCHEMA, "probability"]
    assert len(golden) == 64
    assert golden["probability"].n_unique() > 60
    assert golden["probability"].std() > 0.005
    assert ranker.training is False


def test_what_the_manifest_says(pair: tuple[Ranker, Scorer]):
    ranker, scorer = pair
    manifest = scorer.bundle.manifest
    assert manifest.num_parameters == ranker.num_parameters
    assert manifest.layout == ranker.embedding.layout
    assert manifest.registry == REGISTRY


def test_batch_norm_is_folded(pair: tuple[Ranker, Scorer]):
    ranker, scorer = pair
    operators = {node.op_type for node in onnx.load_from_string(scorer.bundle.dense_onnx).graph.node}
    assert not operators & {"BatchNormalization", "Dropout", "Sqrt"}
    # The ranker itself is as it was.
    has_batch_norm = any(isinstance(part, nn.BatchNorm1d) for part in ranker.modules())
    assert has_batch_norm == (type(ranker.network) is not MODELS["logistic_regression"])


@pytest.mark.slow
def test_export_is_silent_and_repeatable(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    ranker = ranker_of("final_mlp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graphs = [export_bundle(ranker, REGISTRY, tmp_path / name, model="final_mlp").dense_onnx for name in "ab"]
    assert graphs[0] == graphs[1]
    assert capfd.readouterr() == ("", "")


# Registries without one of the two kinds

ONLY_TOKENS = FeatureRegistry.of(features={"user": "categorical", "tags": {"type": "categorical_list"}})
ONLY_NUMBERS = FeatureRegistry.of(
    features={"price": {"type": "numeric", "transform": "log1p"}, "age": {"type": "numeric", "transform": "none"}}
)


KINDS = [
    pytest.param(name, registry, id=f"{name}, only {kind}", marks=[] if name == "final_mlp" else pytest.mark.slow)
    for name in MODELS
    for kind, registry in (("tokens", ONLY_TOKENS), ("numbers", ONLY_NUMBERS))
]


@pytest.mark.parametrize(("name", "registry"), KINDS)
def test_registries_of_one_kind(tmp_path: Path, name: str, registry: FeatureRegistry):
    network = {"fs1_context": [], "fs2_context": [registry.features[1].name]} if name == "final_mlp" else {}
    ranker = ranker_of(name, registry, **network)
    scorer = Scorer(export_bundle(ranker, registry, tmp_path / "bundle", model=name))
    raw = golden_frame(registry, 100, seed=8)
    assert np.abs(scorer.score(raw) - probabilities(ranker, registry, raw)).max() <= TOLERANCE
    assert scorer.verify() <= TOLERANCE


def test_dense_graph_takes_any_number_of_rows():
    ranker = ranker_of("mlp", ONLY_TOKENS)
    graph = onnx.load_from_string(dense_graph(ranker.network, ranker.embedding.layout.embedded_width, 0))
    assert [value.name for value in graph.graph.input] == ["embedded"]
    assert [value.name for value in graph.graph.output] == ["logit"]
    rows, width = graph.graph.input[0].type.tensor_type.shape.dim
    assert rows.dim_param
    assert width.dim_value == ranker.embedding.layout.embedded_width


# Smaller tables


@pytest.fixture
def one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace each network once: the graph does not depend on the table, and tracing takes a second."""
    graphs: dict[int, bytes] = {}

    def cached(network: nn.Module, *widths: int) -> bytes:
        if id(network) not in graphs:
            graphs[id(network)] = dense_graph(network, *widths)
        return graphs[id(network)]

    monkeypatch.setattr(export, "dense_graph", cached)


@pytest.mark.usefixtures("one_graph")
def test_smaller_tables_stay_within_their_bounds(tmp_path: Path):
    """A value moves by at most 2^-11 of itself as fp16, and max|row| / 254 as int8; a linear model adds that up."""
    ranker = ranker_of("logistic_regression")
    raw = golden_frame(REGISTRY, 300, seed=2)
    expected = logits_of(probabilities(ranker, REGISTRY, raw))
    reads = encode(raw, REGISTRY).lengths["words"] * 2 + 2 + 3 + 1  # rows that count: a mean is one row
    largest = float(ranker.embedding.table.abs().max())
    # Rows of one value, as here, are stored to rounding as int8: the scale is the value.
    for dtype, bound in (("fp16", 2**-11), ("int8", 2**-22)):
        bundle = export_bundle(ranker, REGISTRY, tmp_path / dtype, model="lr", table_dtype=dtype)
        assert np.all(np.abs(logits_of(Scorer(bundle).score(raw)) - expected) <= reads * largest * bound + 1e-5)


def logits_of(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.log(scores / (1 - scores))


@pytest.mark.usefixtures("one_graph")
def test_rounding_is_small_beside_the_scores(tmp_path: Path):
    ranker = ranker_of("final_mlp")
    table = ranker.embedding.table.numpy()
    for dtype, worst, size in (("fp32", 1e-6, 16), ("fp16", 1e-3, 8), ("int8", 2e-2, 8)):
        bundle = export_bundle(ranker, REGISTRY, tmp_path / dtype, model="final_mlp", table_dtype=dtype)
        assert bundle.manifest.table_dtype == dtype
        assert 0 < Scorer(bundle).verify() <= worst
        assert bundle.manifest.files["table.safetensors"].bytes <= 83 * size + 400
        largest = np.abs(table).max(axis=1, keepdims=True)
        bounds = {"fp32": 0 * largest, "fp16": 2**-11 * largest, "int8": largest / 253.9}
        assert np.all(np.abs(bundle.table.gather(np.arange(83)) - table) <= bounds[dtype])


# What goes along


def test_trained_rows_and_profile(planted: Path, tmp_path: Path):
    training = training_of(planted, tmp_path / "run", epochs=1, embedding={"num_rows": 1000})
    training.fit()
    info, registry = read_dataset(planted)
    layout = training.ranker.embedding.layout
    _, usage = collision_report(layout, distinct_tokens(training.train.tokens()))
    bundle = export_bundle(
        training.ranker,
        registry,
        tmp_path / "bundle",
        model="final_mlp",
        info=info,
        trained_rows=usage > 0,
        metrics={"valid": {"auc": 0.75}},
        run_id="abc",
    )
    # Every row that a training batch touches, and no other.
    read = np.zeros(1000, dtype=bool)
    for batch in Split(planted, "train").batches(100):
        training.ranker.train()(batch)
        assert training.ranker.embedding.touched is not None
        read[training.ranker.embedding.touched.rows.numpy()] = True
    assert 0.1 < read.mean() < 0.9
    assert np.array_equal(bundle.table.is_trained(np.arange(1000)), read)
    assert bundle.profile["rows"] == info.splits["train"].rows
    assert bundle.profile["dataset_digest"] == info.digest
    assert bundle.profile["missing_rates"].keys() == {feature.name for feature in registry.features}
    assert bundle.manifest.metrics == {"valid": {"auc": 0.75}}
    assert bundle.manifest.run_id == "abc"


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad"])
def test_a_trained_ranker_scores_alike(planted: Path, tmp_path: Path, optimizer: str):
    training = training_of(planted, tmp_path / "run", embedding={"optimizer": optimizer})
    training.fit()
    registry = training.train.registry
    scorer = Scorer(export_bundle(training.ranker, registry, tmp_path / "bundle", model="final_mlp"))
    raw = pl.read_parquet(planted.parent / "test.parquet")
    assert np.abs(scorer.score(raw) - probabilities(training.ranker, registry, raw)).max() <= TOLERANCE
    assert scorer.verify() <= TOLERANCE


@pytest.mark.usefixtures("one_graph")
def test_an_output_that_is_taken(tmp_path: Path):
    ranker = ranker_of("logistic_regression")
    export_bundle(ranker, REGISTRY, tmp_path / "bundle", model="lr")
    with pytest.raises(InputError, match="bundle exists"):
        export_bundle(ranker, REGISTRY, tmp_path / "bundle", model="lr")
    export_bundle(ranker, REGISTRY, tmp_path / "bundle", model="again", overwrite=True)


def test_a_table_that_diverged_is_not_exported(tmp_path: Path):
    ranker = ranker_of("logistic_regression")
    ranker.embedding.table[5] = float("nan")
    with pytest.raises(InputError, match=r"table rows must be finite|expected probabilities"):
        export_bundle(ranker, REGISTRY, tmp_path / "bundle", model="lr")
    assert list(tmp_path.iterdir()) == []
