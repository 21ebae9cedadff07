"""From settings to a ranker: names and keys that are checked, columns that fit, and the same weights for a seed."""

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from features.encode import encode
from features.errors import InputError
from features.registry import FeatureRegistry
from recsys.dataset import batch_of
from recsys.embedding.table import EmbeddingConfig
from recsys.models import MODELS, FinalMLP
from recsys.ranker import Ranker, build_ranker, layout_of, model_config
from recsys.target_statistics import FittedStatistics
from serving.bundle.target_statistics import TargetStatistics, ValueColumns
from tests.recsys.conftest import recorded

REGISTRY = FeatureRegistry.of(
    features={
        "price": {"type": "numeric", "transform": "none"},
        "user": "categorical",
        "tags": {"type": "categorical_list", "separator": "|", "probes": 3},
        "age": {"type": "numeric", "transform": "none"},
        "item": "categorical",
    }
)
RAW = pl.DataFrame(
    {
        "price": [1.0, None, 3.0],
        "user": ["a", "b", None],
        "tags": ["x|y", "", "x"],
        "age": [1, 2, 3],
        "item": [1, 2, 3],
    }
)
FINAL_MLP: dict[str, Any] = {
    "mlp1_hidden": [6],
    "mlp2_hidden": [4],
    "num_heads": 2,
    "gate_hidden": [5],
    "fs1_context": ["item", "price"],
    "fs2_context": ["tags"],
}


def build(name: str = "final_mlp", registry: FeatureRegistry = REGISTRY, seed: int = 1, **embedding: Any) -> Ranker:
    config = model_config(name, FINAL_MLP if name == "final_mlp" else {})
    table = EmbeddingConfig.model_validate({"num_rows": 50, "width": 4, "probes": 2, **embedding})
    return build_ranker(registry, name, config, table, seed=seed, learning_rate=0.1)[0]


def weights_of(ranker: Ranker) -> dict[str, Tensor]:
    return dict(ranker.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_a_logit_a_row(name: str):
    ranker = build(name, probes=3)  # those of `tags`: some models need features of equal width
    records = recorded(ranker.embedding)
    logits = ranker(batch_of(encode(RAW, REGISTRY), REGISTRY))
    assert logits.shape == (3,)
    assert logits.isfinite().all()
    logits.sum().backward()
    ((_, w),) = records
    assert w.grad is not None
    assert w.grad.any()


@pytest.mark.parametrize("name", MODELS)
def test_every_model_sees_target_statistics(name: str):
    """In training those of the other folds, else those of all rows; two columns per token feature."""
    batch = batch_of(encode(RAW, REGISTRY), REGISTRY)
    columns = [ValueColumns(np.zeros(0, np.uint64), np.full((2, 2), number, np.float32)) for number in (0, 1)]
    both = [TargetStatistics(dict.fromkeys(("user", "tags", "item"), own)) for own in columns]
    config = model_config(name, FINAL_MLP if name == "final_mlp" else {})
    table = EmbeddingConfig(num_rows=50, width=4, probes=3)
    statistics = FittedStatistics(*both)
    ranker, _ = build_ranker(REGISTRY, name, config, table, seed=1, learning_rate=0.1, statistics=statistics)
    for is_training, value in ((True, 1), (False, 0)):
        dense = ranker.train(is_training).dense(batch)
        assert torch.equal(dense[:, :2], batch.dense_features)
        assert torch.equal(dense[:, 2:], torch.full((3, 6), float(value)))
    ranker.train().loss(batch).backward()
    if isinstance(ranker.network, FinalMLP):
        assert ranker.network.statistics is not None
        readers = [(parameter.grad, slice(None)) for parameter in ranker.network.statistics.parameters()]
    else:
        own = [parameter for parameter in ranker.network.embedding_parameters() if len(parameter) == 8]
        readers = [(parameter.grad, slice(2, None)) for parameter in own]
    assert all(gradient is not None and gradient[part].any() for gradient, part in readers)
    assert readers


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad"])
def test_a_seed_repeats_the_weights(optimizer: str):
    first = weights_of(build(optimizer=optimizer))
    torch.rand(5)
    again, other = weights_of(build(optimizer=optimizer)), weights_of(build(optimizer=optimizer, seed=2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["embedding.collection.embedding_bags.unified.weight"], other[next(iter(other))])


def test_the_optimizer_of_the_table_does_not_change_the_start():
    """The same run under either optimiser starts from the same weights, and its weights load into the other."""
    own, fused = weights_of(build()), weights_of(build(optimizer="rowwise_adagrad"))
    assert own.keys() == fused.keys()
    assert all(torch.equal(tensor, fused[name]) for name, tensor in own.items())


def test_layout_of_a_model_with_gates():
    config = model_config("final_mlp", FINAL_MLP)
    layout = layout_of(REGISTRY, "final_mlp", config, EmbeddingConfig(num_rows=50, width=4, probes=2))
    assert layout.views == {"main": {"user": 2, "tags": 3, "item": 2}, "fs1": {"item": 2}, "fs2": {"tags": 3}}
    assert layout.embedded_width == 4 * 12
    assert layout.pooling == {"tags": "mean"}


def test_number_of_parameters():
    ranker = build("mlp")
    # e: 7 slots of 4, and two numbers of width 4 * 2; three layers of 400 with batch norm; the output.
    width = 7 * 4 + 2 * 8
    network = (width + 1) * 400 + 2 * (400 + 1) * 400 + 3 * 2 * 400 + 400 + 1 + 2 * 8
    assert ranker.num_parameters == 50 * 4 + network
    assert build("mlp", optimizer="rowwise_adagrad").num_parameters == ranker.num_parameters


def test_numbers_alone():
    registry = FeatureRegistry.of(features={"price": {"type": "numeric", "transform": "none"}})
    for name in ("mlp", "logistic_regression"):
        ranker = build(name, registry)
        assert ranker(batch_of(encode(RAW, registry), registry)).shape == (3,)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.0, 4.0])])
def test_the_loss_is_the_networks(weights: Tensor | None):
    ranker = build("final_net", probes=3).eval()
    batch = replace(batch_of(encode(RAW, REGISTRY), REGISTRY), labels=torch.tensor([0.0, 1.0, 1.0]), weights=weights)
    embedded = ranker.embedding(batch.sparse_features)
    expected = ranker.network.loss(embedded, batch.dense_features, batch.labels, weights)
    assert torch.equal(ranker.loss(batch), expected)
    # Two blocks: three terms, of which other models have the first.
    assert expected > F.binary_cross_entropy_with_logits(ranker(batch), batch.labels, weights)


def test_names_and_keys_are_checked():
    with pytest.raises(InputError, match=r"unknown model; found 'final_mpl'; use one of final_mlp, .*, mlp"):
        model_config("final_mpl", {})
    with pytest.raises(InputError, match="model mlp: unknown key 'hiden'; did you mean 'hidden'"):
        model_config("mlp", {"hiden": [4]})
    with pytest.raises(InputError, match=r"model mlp: dropout: .* less than 1; found 1"):
        model_config("mlp", {"dropout": 1})
    config = model_config("final_mlp", {**FINAL_MLP, "fs1_context": ["itme"]})
    with pytest.raises(InputError, match="fs1_context must name features of the registry; found 'itme'"):
        build_ranker(REGISTRY, "final_mlp", config, EmbeddingConfig(), seed=1, learning_rate=0.1)
    with pytest.raises(InputError, match="width divisible by 4; found 3"):
        build("mlp", width=3, optimizer="rowwise_adagrad")
