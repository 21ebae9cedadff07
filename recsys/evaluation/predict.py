"""Probabilities of a ranker over batches.

n examples in all.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from features.hashing import MISSING_TOKEN
from recsys.batch import Batch, evaluating
from recsys.evaluation.predictions import Predictions


def predict(ranker: nn.Module, batches: Iterable[Batch]) -> Predictions:
    """Labels, probabilities (sigmoid in float64), groups and weights [n], in the order of the batches."""
    labels: list[Tensor] = []
    logits: list[Tensor] = []
    groups: list[Tensor] = []
    weights: list[Tensor] = []
    with evaluating(ranker):
        for batch in batches:
            labels.append(batch.labels)
            logits.append(ranker(batch).detach().cpu())
            if batch.groups is not None:
                groups.append(batch.groups)
            if batch.weights is not None:
                weights.append(batch.weights)
    return Predictions(
        labels=torch.cat(labels).numpy(),
        probabilities=torch.sigmoid(torch.cat(logits).double()).numpy(),
        groups=_own_groups(torch.cat(groups).numpy()) if groups else None,
        weights=torch.cat(weights).numpy() if weights else None,
    )


def _own_groups(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give each row without a group its own group, which gAUC skips: such rows belong to no user."""
    missing = groups == np.uint64(MISSING_TOKEN).astype(np.int64)
    return np.where(missing, np.arange(len(groups)), groups)
