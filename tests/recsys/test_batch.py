"""Batch on another device, and evaluation mode inside a block."""

from typing import Any

import pytest
import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.batch import Batch, evaluating


def batch_with(**columns: Any) -> Batch:
    tokens = KeyedJaggedTensor(keys=["a"], values=torch.tensor([7, 8, 9]), lengths=torch.tensor([1, 0, 2]), stride=3)
    return Batch(sparse_features=tokens, dense_features=torch.ones(3, 2), labels=torch.zeros(3), **columns)


def test_another_device_holds_every_tensor():
    batch = batch_with(weights=torch.ones(3), groups=torch.arange(3))
    assert batch.num_examples == 3
    moved = batch.to(torch.device("meta"))
    tensors = [moved.sparse_features.values(), moved.sparse_features.lengths(), moved.dense_features, moved.labels]
    for tensor in (*tensors, moved.weights, moved.groups):
        assert tensor is not None
        assert tensor.device.type == "meta"
    assert moved.num_examples == 3


def test_what_is_absent_stays_absent():
    moved = batch_with().to(torch.device("meta"))
    assert moved.weights is None
    assert moved.groups is None


def test_the_same_device_copies_nothing():
    batch = batch_with()
    assert batch.to(torch.device("cpu")) is batch


@pytest.mark.parametrize("is_training", [True, False])
def test_the_mode_comes_back(is_training: bool):
    module = nn.Linear(2, 1).train(is_training)

    def fails() -> None:
        with evaluating(module):
            assert not module.training
            assert not module(torch.ones(1, 2)).requires_grad
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert module.training == is_training
    assert torch.is_grad_enabled()
