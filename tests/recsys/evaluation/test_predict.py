"""Predictions: the columns of a split, in the order of its rows."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from features.hashing import hash_text
from features.registry import FeatureRegistry
from recsys.batch import Batch
from recsys.dataset import Split
from recsys.evaluation.predict import predict
from tests.planted import write_dataset


class Copy(nn.Module):
    """A ranker whose logit is the first float column."""

    def forward(self, batch: Batch) -> torch.Tensor:
        assert not self.training
        return batch.dense_features[:, 0]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_column_keeps_the_order_of_the_rows(tmp_path: Path, batch_size: int):
    columns = {"x": [0.5, -1.0, 0.0, 2.0, 7.0], "user": ["a", None, "b", "a", None]}
    frame = pl.DataFrame({"click": [0, 1, 1, 0, 1], "importance": [1.0, 0.5, 0.0, 2.0, 3.0], **columns})
    features = {"x": {"type": "numeric", "transform": "none"}}
    registry = FeatureRegistry.of(label="click", weight="importance", group="user", features=features)
    data = write_dataset(tmp_path, registry, {"train": frame, "valid": frame})
    labels, probabilities, groups, weights = predict(Copy(), Split(data, "valid").batches(batch_size))
    assert labels.tolist() == [0, 1, 1, 0, 1]
    np.testing.assert_allclose(probabilities, [1 / (1 + np.exp(-x)) for x in columns["x"]], rtol=1e-15)
    assert weights is not None
    assert weights.tolist() == [1.0, 0.5, 0.0, 2.0, 3.0]
    assert groups is not None
    assert groups[[0, 2, 3]].view(np.uint64).tolist() == [hash_text("a"), hash_text("b"), hash_text("a")]
    assert len(set(groups.tolist())) == 4  # each row without a user is its own group
