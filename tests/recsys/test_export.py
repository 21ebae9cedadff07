"""The served model is the trained one: raw rows through the bundle against the ranker itself, for every model."""

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

from features.dataset.info import read_dataset
from features.encode import encode
from features.errors import InputError
from features.golden import ODD_TEXTS, golden_frame
from features.registry import FeatureRegistry
from recsys import export
from recsys.dataset import Split, batch_of
from recsys.embedding.table import EmbeddingConfig
from recsys.evaluation.collisions import collision_report, distinct_tokens
from recsys.export import export_bundle, probabilities
from recsys.models import MODELS
from recsys.ranker import Ranker, build_ranker, model_config
from serving.scorer import Scorer
from tests.floats import floats
from tests.recsys.conftest import recorded, training_of
from tests.recsys.networks import EQUAL_WIDTHS

# As prepare would have fitted it: parity to 1e-6 is a promise for numbers of ordinary size.
AGE = {"type": "numeric", "fitted": {"mean": 40.0, "std": 20.0}}
FEATURES: dict[str, Any] = {
    "words": {"type": "categorical_list", "pooling": "sum"},
    "price": {"type": "numeric", "transform": "log1p"},
    "user": "categorical",
    "tags": {"type": "categorical_list", "separator": "|", "probes": 3},
    "age": AGE,
    "item": {"type": "categorical", "probes": 1},
}
REGISTRY = FeatureRegistry.of(features=FEATURES)
EVEN = FeatureRegistry.of(features={**FEATURES, "tags": {**FEATURES["tags"], "probes": 2}, "item": "categorical"})
"""The same tokens, two probes each."""
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

texts = st.one_of(st.none(), st.sampled_from(ODD_TEXTS), st.text(max_size=8))
rows = st.lists(
    st.fixed_dictionaries(
        {
            "words": st.one_of(st.none(), st.lists(texts, max_size=6)),
            "price": st.one_of(st.none(), floats(-1e3, 1e3)),
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
    registry = EVEN if request.param in EQUAL_WIDTHS else REGISTRY
    ranker = ranker_of(request.param, registry)
    out = tmp_path_factory.mktemp("bundle") / request.param
    return ranker, Scorer(export_bundle(ranker, registry, out, model=request.param))


# Parity


@given(rows)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_raw_rows_score_alike(pair: tuple[Ranker, Scorer], rows: list[dict[str, Any]]):
    ranker, scorer = pair
    raw = pl.DataFrame(rows, schema=SCHEMA)
    expected = probabilities(ranker, REGISTRY, raw, exact=True)
    # Models that multiply their inputs round more, as the bundle tells of its golden rows; these rows are odder.
    tolerance = 2 * scorer.bundle.golden_tolerance
    assert tolerance <= 1e-4  # how much a processor rounds differs; scores of other rows differ by far more
    assert np.abs(scorer.score(raw) - expected).max() <= tolerance
    # One at a time, as a service is asked.
    assert abs(scorer.score(rows[:1])[0] - expected[0]) <= tolerance


def test_golden_rows_verify_and_differ(pair: tuple[Ranker, Scorer]):
    ranker, scorer = pair
    assert scorer.verify() <= scorer.bundle.golden_tolerance
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
    assert manifest.registry == (EVEN if scorer.bundle.manifest.model in EQUAL_WIDTHS else REGISTRY)


def test_the_graph_takes_any_number_of_rows(pair: tuple[Ranker, Scorer]):
    ranker, scorer = pair
    graph = onnx.load_from_string(scorer.bundle.dense_onnx).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)}
    assert list(shapes) == ["embedded", "dense", "logit"]
    assert len({shape[0].dim_param for shape in shapes.values()} - {""}) == 1
    assert shapes["embedded"][1].dim_value == ranker.embedding.layout.embedded_width
    assert shapes["dense"][1].dim_value == 2


def test_the_graph_holds_no_path_of_the_machine_that_made_it(pair: tuple[Ranker, Scorer]):
    assert b".py" not in pair[1].bundle.dense_onnx


def test_batch_norm_is_folded(pair: tuple[Ranker, Scorer]):
    ranker, scorer = pair
    operators = {node.op_type for node in onnx.load_from_string(scorer.bundle.dense_onnx).graph.node}
    assert not operators & {"Dropout", "Sqrt"}
    # FinalNet's follows a product, so that there is no Linear to multiply it into.
    assert ("BatchNormalization" in operators) == isinstance(ranker.network, MODELS["final_net"])
    # The ranker itself is as it was.
    has_batch_norm = any(isinstance(part, nn.BatchNorm1d) for part in ranker.modules())
    assert has_batch_norm == (type(ranker.network) not in {MODELS["logistic_regression"], MODELS["fm"]})


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
ONLY_NUMBERS = FeatureRegistry.of(features={"price": {"type": "numeric", "transform": "log1p"}, "age": AGE})


FAST: tuple[()] = ()
KINDS = [
    pytest.param(
        name,
        registry,
        id=f"{name}, only {kind}",
        marks=FAST if (name, kind) == ("final_mlp", "numbers") else pytest.mark.slow,
    )
    for name in MODELS
    for kind, registry in (("tokens", ONLY_TOKENS), ("numbers", ONLY_NUMBERS))
]


@pytest.mark.parametrize(("name", "registry"), KINDS)
def test_registries_of_one_kind(tmp_path: Path, name: str, registry: FeatureRegistry):
    network = {"fs1_context": [], "fs2_context": [registry.features[1].name]} if name == "final_mlp" else {}
    ranker = ranker_of(name, registry, **network)
    scorer = Scorer(export_bundle(ranker, registry, tmp_path / "bundle", model=name))
    raw = golden_frame(registry, 100, seed=8)
    assert np.abs(scorer.score(raw) - probabilities(ranker, registry, raw)).max() <= 2 * scorer.bundle.golden_tolerance
    assert scorer.verify() <= scorer.bundle.golden_tolerance


# Smaller tables


@pytest.mark.parametrize(
    ("dtype", "worst", "relative", "size"),
    [("fp16", 1e-3, 2**-11, 83 * 8), ("int8", 2e-2, 0.01, 83 * 4 + 512), ("int4", 0.2, 0.15, 83 * 2 + 1024)],
)
def test_rounding_is_small_beside_the_scores(
    pair: tuple[Ranker, Scorer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: Any,
    worst: float,
    relative: float,
    size: int,
):
    """Values move by at most 2^-11 of themselves as fp16, and little on the average as entries of a codebook."""
    ranker, scorer = pair
    # The graph does not depend on the table, and tracing takes a second.
    monkeypatch.setattr(export, "dense_graph", lambda *_: scorer.bundle.dense_onnx)
    registry = scorer.bundle.manifest.registry
    bundle = export_bundle(ranker, registry, tmp_path / dtype, model="a", table_dtype=dtype)
    assert bundle.manifest.table_dtype == dtype
    table = ranker.embedding.table.numpy()
    rounding = np.abs(bundle.table.gather(np.arange(83)) - table)
    assert np.square(rounding).mean() <= relative**2 * np.square(table).mean()
    if dtype == "fp16":
        assert np.all(rounding <= relative * np.abs(table))
    assert Scorer(bundle).verify() <= worst
    assert bundle.manifest.files["table.safetensors"].bytes <= size + 400
    if type(ranker.network) is MODELS["logistic_regression"]:
        # Its logit is the sum of the rows that it reads, so the bound is their number times the largest rounding.
        raw = golden_frame(REGISTRY, 300, seed=2)
        reads = encode(raw, REGISTRY).lengths["words"] * 2 + 2 + 3 + 1  # a mean counts as one row
        moved = logits_of(Scorer(bundle).score(raw)) - logits_of(probabilities(ranker, REGISTRY, raw))
        assert np.all(np.abs(moved) <= reads * rounding.max() + 1e-5)


def logits_of(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.log(scores / (1 - scores))


# What goes along


def test_trained_rows_and_profile(planted: Path, tmp_path: Path):
    training = training_of(
        planted, tmp_path / "run", epochs=1, model="logistic_regression", embedding={"num_rows": 1000, "width": 1}
    )
    training.fit()
    info, registry = read_dataset(planted)
    layout = training.ranker.embedding.layout
    _, usage = collision_report(layout, distinct_tokens(training.train.tokens()))
    bundle = export_bundle(
        training.ranker,
        registry,
        tmp_path / "bundle",
        model="logistic_regression",
        info=info,
        trained_rows=usage > 0,
        metrics={"valid": {"auc": 0.75}},
        run_id="abc",
    )
    # Every row that a training batch touches, and no other.
    read, records = np.zeros(1000, dtype=bool), recorded(training.ranker.embedding)
    for batch in Split(planted, "train").batches(100):
        training.ranker.train()(batch)
        read[records.pop().rows.numpy()] = True
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
    expected = probabilities(training.ranker, registry, raw)
    assert np.abs(scorer.score(raw) - expected).max() <= 2 * scorer.bundle.golden_tolerance
    assert scorer.verify() <= scorer.bundle.golden_tolerance


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ranker = ranker_of("logistic_regression")
    monkeypatch.setattr(export, "dense_graph", lambda *_: b"")
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="taken exists"):
        export_bundle(ranker, REGISTRY, tmp_path / "taken", model="lr")
    ranker.embedding.table[5] = float("nan")  # a run that diverged
    with pytest.raises(InputError, match=r"table rows must be finite"):
        export_bundle(ranker, REGISTRY, tmp_path / "bundle", model="lr")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


# Prior correction


def test_down_sampled_negatives_are_put_back_into_the_odds(tmp_path: Path):
    ranker = ranker_of("mlp")
    plain = Scorer(export_bundle(ranker, REGISTRY, tmp_path / "plain", model="mlp"))
    corrected = Scorer(export_bundle(ranker, REGISTRY, tmp_path / "corrected", model="mlp", negative_rate=0.05))
    raw = golden_frame(REGISTRY, 300, seed=9)
    before, after = plain.score(raw), corrected.score(raw)
    np.testing.assert_allclose(after / (1 - after), 0.05 * before / (1 - before), rtol=1e-9)
    golden = corrected.bundle.golden
    odds = plain.bundle.golden["probability"] / (1 - plain.bundle.golden["probability"])
    np.testing.assert_allclose(golden["probability"] / (1 - golden["probability"]), 0.05 * odds, rtol=1e-9)
    assert corrected.verify() <= corrected.bundle.golden_tolerance
    assert corrected.bundle.model_id != plain.bundle.model_id
    assert plain.bundle.manifest.prior_correction is None  # at a rate of 1 there is nothing to correct


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5, float("nan")])
def test_an_impossible_share_of_negatives_is_refused(rate: float, tmp_path: Path):
    with pytest.raises(InputError, match="negative_rate must be above 0 and at most 1; found"):
        export_bundle(ranker_of("mlp"), REGISTRY, tmp_path / "bundle", model="mlp", negative_rate=rate)
    assert list(tmp_path.iterdir()) == []
