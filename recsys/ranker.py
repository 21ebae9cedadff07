"""Ranker: the table and the network together, from a batch to one logit per example.

B examples, W embedding columns, N float columns.
"""

from itertools import chain
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from features.addressing import Vocabulary
from features.errors import InputError
from features.layout import TableLayout
from features.registry import FeatureRegistry, describe_validation_error
from features.table_kinds import TABLE_KINDS
from recsys.batch import Batch
from recsys.embedding.optimizers import TableOptimizer, build_table
from recsys.embedding.table import EmbeddingConfig, UnifiedEmbedding
from recsys.models import MODELS
from recsys.models.base import Model
from recsys.models.layers import ModelInputs
from recsys.target_statistics import FittedStatistics, column_names


class Ranker(nn.Module):
    """logit = network(embedding(tokens), floats): the model that is trained, evaluated and exported.

    With `statistics` the floats of an example are followed by the target statistics of its tokens.
    """

    def __init__(self, embedding: UnifiedEmbedding, network: Model, statistics: FittedStatistics | None = None) -> None:
        super().__init__()
        self.embedding = embedding
        self.network = network
        self.statistics = statistics

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B] of a batch."""
        return self.network(self.embedding(batch.sparse_features), self.dense(batch))

    def dense(self, batch: Batch) -> Tensor:
        """Float columns [B, N] of the network; a row's target statistics are without its own fold in training mode."""
        if self.statistics is None:
            return batch.dense_features
        encoded = batch.encoded(self.embedding.layout.pooling)
        added = torch.from_numpy(self.statistics.columns(encoded, is_training=self.training))
        return torch.cat([batch.dense_features, added.to(batch.dense_features.device)], dim=1)

    def loss(self, batch: Batch) -> Tensor:
        """The network's training loss on a batch plus the penalty of the embedding's gate, a scalar."""
        embedded = self.embedding(batch.sparse_features)
        loss = self.network.loss(embedded, self.dense(batch), batch.labels, batch.weights)
        penalty = None if self.embedding.gate is None else self.embedding.gate.penalty()
        return loss if penalty is None else loss + penalty

    def parameter_groups(self, l2: float) -> list[dict[str, Any]]:
        """Parameter groups of the network's optimiser: numeric embeddings take the table's L2, as in BARS."""
        decayed = self.network.embedding_parameters()
        ids = {id(parameter) for parameter in decayed}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in ids]
        groups = [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": l2}]
        return [group for group in groups if group["params"]]

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters, the table's included."""
        return self.embedding.table.numel() + sum(parameter.numel() for parameter in self.network.parameters())


def model_config(name: str, settings: dict[str, Any]) -> Model.Config:
    """The validated settings of a model; raises `InputError` for an unknown model or key.

    >>> model_config("mlp", {"hidden": [8]}).model_dump()["hidden"]
    (8,)
    """
    if name not in MODELS:
        raise InputError("unknown model", found=repr(name), remedy=f"use one of {', '.join(MODELS)}")
    config = MODELS[name].Config
    try:
        return config.model_validate(settings)
    except ValidationError as error:
        raise InputError(f"model {name}: {describe_validation_error(error, config)}") from None


def layout_of(
    registry: FeatureRegistry,
    name: str,
    config: Model.Config,
    embedding: EmbeddingConfig,
    vocabulary: Vocabulary | None = None,
) -> TableLayout:
    """The rows and columns of the table that a model reads; raises `InputError` if its kind cannot have them."""
    if TABLE_KINDS[embedding.kind].has_own_ranges and vocabulary is None:
        raise InputError(f"a {embedding.kind} table needs the vocabulary of the training data", found="none")
    tokens = tuple(feature.name for feature in registry.token_features)
    return TableLayout.of(
        registry,
        num_rows=embedding.num_rows,
        width=embedding.width,
        probes=embedding.probes,
        views=MODELS[name].views(config, tokens),
        kind=embedding.kind,
        num_values={feature: len(ordered) for feature, ordered in (vocabulary or {}).items()},
        block=embedding.block,
    )


def build_ranker(
    registry: FeatureRegistry,
    name: str,
    config: Model.Config,
    embedding: EmbeddingConfig,
    *,
    seed: int,
    learning_rate: float,
    vocabulary: Vocabulary | None = None,
    statistics: FittedStatistics | None = None,
) -> tuple[Ranker, TableOptimizer]:
    """An untrained ranker and its table's optimiser; the same seed gives the same weights, bit for bit.

    `vocabulary` is that of the training data, which every `embedding.kind` but `unified` needs; `statistics` are the
    target statistics of that data, if the network is to see them.
    """
    torch.manual_seed(seed)
    layout = layout_of(registry, name, config, embedding, vocabulary)
    added = registry.token_features if statistics is not None else ()
    inputs = ModelInputs(
        views=layout.view_widths,
        dense_features=(
            *(feature.name for feature in registry.dense_features),
            *chain.from_iterable(column_names(feature.name) for feature in added),
        ),
        dense_width=embedding.width * embedding.probes,
        num_statistics=2 * len(added),
    )
    table, optimizer = build_table(layout, embedding, learning_rate, vocabulary)
    return Ranker(table, MODELS[name](config, inputs), statistics), optimizer
