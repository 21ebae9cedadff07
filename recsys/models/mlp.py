"""The plain deep network ("DNN" in BARS): one MLP over all embeddings.

Shapes as in ``recsys.models.layers``: B batch, W columns of ``embedded``, N numeric features.
"""

from torch import Tensor

from recsys.models.base import DropoutRate, HiddenWidths, InputVector, Model
from recsys.models.layers import MLP, ModelInputs, xavier_linear


class SingleMLP(Model):
    """logit = w . MLP(e) + b, where e is the concatenation of all embeddings.

    >>> import torch
    >>> inputs = ModelInputs(views={"main": {"user": 4}})
    >>> model = SingleMLP(SingleMLP.Config(hidden=(8,)), inputs)
    >>> model(torch.zeros(3, 4), torch.zeros(3, 0)).shape
    torch.Size([3])
    """

    class Config(Model.Config):
        """Settings of the single MLP.

        >>> SingleMLP.Config(hidden=(64, 32), dropout=0).batch_norm
        True
        """

        hidden: HiddenWidths = (400, 400, 400)
        """Width of each hidden layer."""
        dropout: DropoutRate = 0.2
        """Probability of dropping a hidden activation."""
        batch_norm: bool = True
        """True if each hidden layer is normalised over the batch."""

    def __init__(self, config: Config, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.input = InputVector(inputs)
        self.mlp = MLP(inputs.input_width, config.hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.output = xavier_linear(self.mlp.out_width, 1)

    def forward(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """[B, W], [B, N] -> logits [B]."""
        return self.output(self.mlp(self.input(embedded, dense))).squeeze(1)  # [B, 1] -> [B]
