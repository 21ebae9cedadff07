"""Probabilities of a ranker over batches, and nothing else; metrics are in `recsys.metrics`.

n examples in all.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from features.hashing import MISSING_TOKEN
from recsys.batch import Batch, evaluating

Floats = npt.NDArray[np.float64]


def predict(
    ranker: nn.Module, batches: Iterable[Batch]
) -> tuple[npt.NDArray[np.float32], Floats, npt.NDArray[np.int64] | None]:
    """Labels [n], probabilities [n] (sigmoid in float64) and groups [n] or None, in the order of the batches."""
    labels: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    groups: list[torch.Tensor] = []
    with evaluating(ranker):
        for batch in batches:
            labels.append(batch.labels)
            logits.append(ranker(batch).detach().cpu())
            if batch.groups is not None:
                groups.append(batch.groups)
    probabilities = torch.sigmoid(torch.cat(logits).double()).numpy()
    return torch.cat(labels).numpy(), probabilities, _own_groups(torch.cat(groups).numpy()) if groups else None


def _own_groups(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Each row without a group becomes a group of its own: together they are nobody's ranking, and gAUC skips them."""
    missing = groups == np.uint64(MISSING_TOKEN).astype(np.int64)
    return np.where(missing, np.arange(len(groups)), groups)
