"""Batch: the examples of a training step, in torchrec's form.

B examples, F token features, N float columns. Tokens are 64-bit patterns; torch has no arithmetic on uint64, so they
are int64 with the same bits.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.encode import EncodedBatch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples as columns; all tensors are on one device.

    >>> tokens = KeyedJaggedTensor(keys=["user"], values=torch.tensor([7, 8]), lengths=torch.tensor([1, 1]))
    >>> Batch(sparse_features=tokens, dense_features=torch.zeros(2, 0), labels=torch.tensor([0.0, 1.0])).num_examples
    2
    """

    sparse_features: KeyedJaggedTensor
    """Tokens: keys are the F token features in registry order, values int64."""
    dense_features: Tensor
    """Float columns [B, N], float32."""
    labels: Tensor
    """0 or 1, [B], float32."""
    weights: Tensor | None = None
    """Example weights [B], float32; None if the registry names no weight."""
    groups: Tensor | None = None
    """Tokens of the gAUC groups [B], int64; None if the registry names no group."""

    @property
    def num_examples(self) -> int:
        """B."""
        return len(self.labels)

    def encoded(self, lists: Collection[str]) -> EncodedBatch:
        """The tokens and floats in numpy, given which features are lists."""
        parts = self.sparse_features.to_dict()
        return EncodedBatch(
            num_examples=self.num_examples,
            tokens={name: part.values().cpu().numpy().view(np.uint64) for name, part in parts.items()},
            lengths={name: parts[name].lengths().cpu().numpy() for name in lists},
            dense=self.dense_features.cpu().numpy(),
        )

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        if self.labels.device == device:
            return self
        return replace(
            self,
            sparse_features=self.sparse_features.to(device),
            dense_features=self.dense_features.to(device),
            labels=self.labels.to(device),
            weights=None if self.weights is None else self.weights.to(device),
            groups=None if self.groups is None else self.groups.to(device),
        )


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside the block; the previous mode is restored after it."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)
