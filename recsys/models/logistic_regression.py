"""Logistic regression: the baseline that every other model has to beat.

Shapes as in ``recsys.models.layers``: B batch, W columns of ``embedded``, N numeric features.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from recsys.models.base import Model, view_columns
from recsys.models.layers import ModelInputs, NumericEmbedding


class LogisticRegression(Model):
    """logit = bias + every column of the main view + a weight for each numeric feature.

    A value's weight is the sum of its rows' columns: a table of width 1 is the textbook model, a wider one the same
    function with more parameters. No product of two features can be learned.

    >>> inputs = ModelInputs(views={"main": {"user": 2}}, dense_features=("price",))
    >>> model = LogisticRegression(LogisticRegression.Config(), inputs)
    >>> model(torch.tensor([[0.5, 0.25]]), torch.tensor([[3.0]])).tolist()
    [0.75]
    """

    weight_view: ClassVar[str] = "main"
    """The view whose columns are the weights."""

    def __init__(self, config: Model.Config, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.bias = nn.Parameter(torch.zeros(1))
        self.numeric: NumericEmbedding | None = None
        if inputs.dense_features:
            # A numeric embedding of width 1, because a linear model's weights are its embedding and take its L2.
            self.numeric = NumericEmbedding(len(inputs.dense_features), width=1)
            # The loss is convex: there is no symmetry to break, and initial noise would have to be unlearned.
            nn.init.zeros_(self.numeric.weight)

    def forward(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """[B, W], [B, N] -> logits [B]."""
        logit = view_columns(self.inputs, self.weight_view, embedded).sum(1) + self.bias
        return logit if self.numeric is None else logit + self.numeric(dense).sum(1)
