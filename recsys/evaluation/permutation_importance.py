"""Permutation importance (Breiman, "Random forests", 2001): the AUC that a trained ranker owes to each feature.

B examples. The tokens of one feature are shuffled among a sample of examples; no raw value is read. The loss of AUC is
what the ranker gets from that feature and cannot get from the others.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.errors import InputError
from recsys.batch import Batch
from recsys.dataset import Split, jagged
from recsys.evaluation.metrics import auc, log_loss
from recsys.evaluation.predict import predict

MAX_ROWS, MIN_ROWS = 4096, 1024
"""Bounds of the sample."""
MAX_READS = 50_000
"""Rows times features that a report may read; between the bounds it sets the size of the sample."""

Order = npt.NDArray[np.int64]


class Importance(NamedTuple):
    """Loss of a ranker when a feature's values are shuffled; near zero or below, it is within noise."""

    feature: str
    auc_loss: float
    logloss_gain: float


def feature_importance(ranker: nn.Module, split: Split, *, seed: int = 0) -> list[Importance]:
    """Importance of every feature on a random sample of the split, the largest first; none if it has one class."""
    names = [feature.name for feature in split.registry.features]
    sample = next(split.batches(_num_rows(len(names)), shuffle=True, seed=seed))
    order = np.random.default_rng(seed).permutation(sample.num_examples)
    try:
        base_auc, base_loss = _figures(ranker, sample)
        found = []
        for name, batch in _shuffled(sample, [feature.name for feature in split.registry.dense_features], order):
            own_auc, own_loss = _figures(ranker, batch)
            found.append(Importance(name, base_auc - own_auc, own_loss - base_loss))
    except InputError:  # of one class
        return []
    return sorted(found, key=lambda one: (-one.auc_loss, one.feature))


def _num_rows(num_features: int) -> int:
    """Rows of the sample.

    >>> _num_rows(10), _num_rows(39), _num_rows(400)
    (4096, 1282, 1024)
    """
    return min(max(MAX_READS // max(num_features, 1), MIN_ROWS), MAX_ROWS)


def _figures(ranker: nn.Module, batch: Batch) -> tuple[float, float]:
    predictions = predict(ranker, [batch])
    return auc(predictions), log_loss(predictions)


def _shuffled(sample: Batch, dense: list[str], order: Order) -> Iterator[tuple[str, Batch]]:
    """Each feature, and the sample [B] with its values, and no others, in the given order."""
    tokens = sample.sparse_features
    for key in tokens.keys():  # noqa: SIM118  a KeyedJaggedTensor is no mapping
        yield key, replace(sample, sparse_features=with_shuffled(tokens, key, order))
    for column, name in enumerate(dense):
        floats = sample.dense_features.clone()
        floats[:, column] = floats[torch.from_numpy(order), column]
        yield name, replace(sample, dense_features=floats)


def with_shuffled(tokens: KeyedJaggedTensor, feature: str, order: Order) -> KeyedJaggedTensor:
    """The tokens of B examples with the bags of one feature in another order [B].

    >>> bags = jagged(["a", "b"], [(np.array([1, 2, 3]), np.array([2, 1])), (np.array([7, 8]), np.array([1, 1]))], 2)
    >>> shuffled = with_shuffled(bags, "a", np.array([1, 0]))
    >>> shuffled.values().tolist(), shuffled.lengths().tolist()
    ([3, 1, 2, 7, 8], [1, 2, 1, 1])
    """
    bags = {key: (bag.values().numpy(), bag.lengths().numpy()) for key, bag in tokens.to_dict().items()}
    values, lengths = bags[feature]
    starts, taken = lengths.cumsum() - lengths, lengths[order]
    shifts = np.repeat(starts[order] - (taken.cumsum() - taken), taken)
    bags[feature] = values[np.arange(len(shifts)) + shifts], taken
    return jagged(list(bags), list(bags.values()), len(order))
