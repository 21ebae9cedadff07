"""DualMLP: two plain MLPs side by side, the paper's own strong baseline.

Shapes as in ``recsys.models.layers``: B batch, W columns of ``embedded``, N numeric features, E width of the input
vector e.
"""

from torch import Tensor

from recsys.models.base import DropoutRate, HiddenWidths, InputVector, Model
from recsys.models.layers import MLP, ModelInputs, xavier_linear


class DualMLP(Model):
    """logit = w1 . MLP1(e) + b1 + w2 . MLP2(e) + b2: FinalMLP without gates and with W = 0, for any number of heads.

    "DualMLP" of Mao et al., "FinalMLP", AAAI 2023, arXiv 2304.00902.

    >>> import torch
    >>> inputs = ModelInputs(views={"main": {"user": 4}})
    >>> model = DualMLP(DualMLP.Config(mlp1_hidden=(8, 8), mlp2_hidden=(6,)), inputs)
    >>> model(torch.zeros(3, 4), torch.zeros(3, 0)).shape
    torch.Size([3])
    """

    class Config(Model.Config):
        """Settings of the two streams; every tuned run of BARS makes them differ in depth or width.

        >>> DualMLP.Config(mlp2_hidden=(800,)).mlp1_hidden
        (400, 400, 400)
        """

        mlp1_hidden: HiddenWidths = (400, 400, 400)
        """Width of each hidden layer of the first stream."""
        mlp2_hidden: HiddenWidths = (400,)
        """Width of each hidden layer of the second stream."""
        mlp1_dropout: DropoutRate = 0.2
        """Probability of dropping a hidden activation of the first stream."""
        mlp2_dropout: DropoutRate = 0.2
        """Probability of dropping a hidden activation of the second stream."""
        mlp1_batch_norm: bool = True
        """True if each hidden layer of the first stream is normalised over the batch."""
        mlp2_batch_norm: bool = True
        """True if each hidden layer of the second stream is normalised over the batch."""

    def __init__(self, config: Config, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.input = InputVector(inputs)
        self.mlp1, self.mlp2 = two_streams(config, inputs.input_width)
        self.output1 = xavier_linear(self.mlp1.out_width, 1)
        self.output2 = xavier_linear(self.mlp2.out_width, 1)

    def forward(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """[B, W], [B, N] -> logits [B]."""
        vector = self.input(embedded, dense)
        return (self.output1(self.mlp1(vector)) + self.output2(self.mlp2(vector))).squeeze(1)  # [B, 1] -> [B]


def two_streams(config: DualMLP.Config, width: int) -> tuple[MLP, MLP]:
    """The two MLPs that DualMLP and FinalMLP share.

    Args:
        config: their settings.
        width: E, columns that each stream reads.

    >>> [stream.out_width for stream in two_streams(DualMLP.Config(mlp1_hidden=(8,), mlp2_hidden=(6,)), 4)]
    [8, 6]
    """
    mlp1 = MLP(width, config.mlp1_hidden, dropout=config.mlp1_dropout, batch_norm=config.mlp1_batch_norm)
    mlp2 = MLP(width, config.mlp2_hidden, dropout=config.mlp2_dropout, batch_norm=config.mlp2_batch_norm)
    return mlp1, mlp2
