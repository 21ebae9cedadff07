"""DeepFM: a factorisation machine and an MLP that read the same embeddings.

Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI 2017, arXiv 1703.04247.

Shapes as in ``recsys.models.layers``: B batch, W columns of ``embedded``, N numeric features, E width of the input
vector e.
"""

from torch import Tensor, nn

from recsys.models.fm import FactorizationMachine
from recsys.models.layers import MLP, ModelInputs
from recsys.models.mlp import SingleMLP


class DeepFM(FactorizationMachine):
    """logit = FM(e) + w . MLP(e) (Eq. 1 and 2); the one bias is the machine's.

    Raises:
        InputError: the features have different widths.

    >>> import torch
    >>> inputs = ModelInputs(views={"main": {"user": 4}, "linear": {"user": 4}})
    >>> model = DeepFM(DeepFM.Config(hidden=(8,)), inputs)
    >>> model(torch.zeros(3, 8), torch.zeros(3, 0)).shape
    torch.Size([3])
    """

    class Config(SingleMLP.Config):
        """Settings of the MLP; the factorisation machine has none."""

    def __init__(self, config: Config, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        self.mlp = MLP(inputs.input_width, config.hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.output = nn.Linear(self.mlp.out_width, 1, bias=False)
        nn.init.xavier_normal_(self.output.weight)

    def forward(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """[B, W], [B, N] -> logits [B]."""
        vector = self.input(embedded, dense)
        return self.first_two_orders(embedded, dense, vector) + self.output(self.mlp(vector)).squeeze(1)
