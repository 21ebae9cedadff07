"""DCN V2: cross layers, each of which multiplies by the input once more, parallel to an MLP or below it.

Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems",
WWW 2021, arXiv 2008.13535.

Shapes as in ``recsys.models.layers``: B batch, W columns of ``embedded``, N numeric features, E width of the
input vector e, r rank of a cross layer.
"""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from recsys.models.base import InputVector, Model
from recsys.models.layers import MLP, ModelInputs, xavier_linear
from recsys.models.mlp import SingleMLP


class DCNv2(Model):
    """logit = w . [x_L, MLP(e)] + b ("parallel") or w . MLP(x_L) + b ("stacked"), with x_0 = e and L cross layers.

    >>> inputs = ModelInputs(views={"main": {"user": 4}})
    >>> model = DCNv2(DCNv2.Config(num_cross_layers=2, hidden=(8,)), inputs)
    >>> model(torch.zeros(3, 4), torch.zeros(3, 0)).shape
    torch.Size([3])
    """

    class Config(SingleMLP.Config):
        """Settings of DCN V2: those of its MLP, and its cross layers.

        >>> DCNv2.Config(low_rank=32).structure
        'parallel'
        """

        num_cross_layers: PositiveInt = 3
        """L: products of up to L + 1 columns of the input are formed."""
        low_rank: PositiveInt | None = None
        """r: the matrix of a cross layer is a product of [E, r] and [r, E]; None: [E, E]."""
        structure: Literal["parallel", "stacked"] = "parallel"
        """`parallel`: the MLP reads the input, like the cross layers; `stacked`: it reads the last cross layer."""

    def __init__(self, config: Config, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        width = inputs.input_width
        self.input = InputVector(inputs)
        self.cross = nn.ModuleList(CrossLayer(width, config.low_rank) for _ in range(config.num_cross_layers))
        self.mlp = MLP(width, config.hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.is_parallel = config.structure == "parallel"
        self.output = xavier_linear(self.mlp.out_width + (width if self.is_parallel else 0), 1)

    def forward(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """[B, W], [B, N] -> logits [B]."""
        vector = self.input(embedded, dense)
        crossed = vector
        for layer in self.cross:
            crossed = layer(vector, crossed)  # [B, E]
        last = torch.cat([crossed, self.mlp(vector)], dim=1) if self.is_parallel else self.mlp(crossed)
        return self.output(last).squeeze(1)  # [B, 1] -> [B]


class CrossLayer(nn.Module):
    """x' = x_0 * (W x + b) + x: every column of x_0 meets a learned mixture of the columns of x ("Cross Network").

    With a rank W = U V^T, at 2 E r numbers instead of E^2: one expert without a gate of "Cost-Effective Mixture of
    Low-Rank DCN".

    Args:
        width: E.
        rank: r, or None for a full W.

    >>> [sum(p.numel() for p in CrossLayer(10, rank).parameters()) for rank in (None, 2)]
    [110, 50]
    """

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        self.linear: nn.Module = xavier_linear(width, width)
        if rank is not None:
            down = nn.Linear(width, rank, bias=False)
            nn.init.xavier_normal_(down.weight)
            self.linear = nn.Sequential(down, xavier_linear(rank, width))

    def forward(self, start: Tensor, x: Tensor) -> Tensor:
        """x_0 [B, E], x [B, E] -> [B, E]."""
        return start * self.linear(x) + x
