"""FinalNet: layers that multiply their own halves, in one block or in two that teach each other.

Zhu et al., "FINAL: Factorized Interaction Layer for CTR Prediction", SIGIR 2023. "Reference" is the authors' code in
FuxiCTR.

Shapes as in ``recsys.models.layers``: B batch, W columns of ``embedded``, N numeric features, E width of the
input vector e, F fields (token and numeric features together) of D columns each, if a field gate
needs equal widths.
"""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features.errors import InputError
from recsys.models.base import DropoutRate, HiddenWidths, InputVector, Model, field_shape
from recsys.models.layers import ModelInputs, hidden_layers, xavier_linear

Interaction = Literal["concat", "sum"]


class FinalNet(Model):
    """logit = mean over the blocks of w_i . block_i(e) + b_i; the first block may also see a gated copy of e.

    Raises:
        InputError: the field gate is on and features have different widths, or "concat" has an odd width.

    >>> inputs = ModelInputs(views={"main": {"user": 4, "item": 4}})
    >>> model = FinalNet(FinalNet.Config(block1_hidden=(8,), block2_hidden=(6,)), inputs)
    >>> model(torch.zeros(3, 8), torch.zeros(3, 0)).shape
    torch.Size([3])
    """

    class Config(Model.Config):
        """Settings of FinalNet; the defaults are those that BARS tuned for two blocks on Frappe.

        >>> FinalNet.Config(num_blocks=1).block1_hidden
        (400, 400)
        """

        num_blocks: Literal[1, 2] = 2
        """1, or 2 for a second block that reads the same input; "1B" and "2B" of the paper."""
        interaction: Interaction = "concat"
        """Combination of the halves h and m of a layer: [h, h * m], or h + h * m from a matrix of twice the rows."""
        use_field_gate: bool = True
        """True if the first block also reads its input times a gate across the fields; needs fields of equal width."""
        block1_hidden: HiddenWidths = (400, 400)
        """Width of each layer of the first block; even under "concat"."""
        block2_hidden: HiddenWidths = (400,)
        """Width of each layer of the second block, where there is one."""
        block1_dropout: DropoutRate = 0.1
        """Probability of dropping an activation of the first block."""
        block2_dropout: DropoutRate = 0.1
        """Probability of dropping an activation of the second block."""
        batch_norm: bool = True
        """True if each layer is normalised over the batch."""

    def __init__(self, config: Config, inputs: ModelInputs) -> None:
        super().__init__(config, inputs)
        width = inputs.input_width
        self.input = InputVector(inputs)
        self.gate = FieldGate(*field_shape(inputs, "model.use_field_gate=true")) if config.use_field_gate else None
        settings = [
            (width if self.gate is None else 2 * width, config.block1_hidden, config.block1_dropout),
            (width, config.block2_hidden, config.block2_dropout),
        ][: config.num_blocks]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                final_block(in_width, hidden, config.interaction, dropout=dropout, batch_norm=config.batch_norm),
                xavier_linear(hidden[-1], 1),
            )
            for in_width, hidden, dropout in settings
        )

    def block_logits(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """[B, W], [B, N] -> the logits of each block, [B, number of blocks]."""
        vector = self.input(embedded, dense)
        gated = vector if self.gate is None else torch.cat([vector, vector * self.gate(vector)], dim=1)  # [B, 2 * E]
        pairs = zip(self.blocks, (gated, vector), strict=False)  # one block leaves the second input
        return torch.cat([block(x) for block, x in pairs], dim=1)

    def forward(self, embedded: Tensor, dense: Tensor) -> Tensor:
        """[B, W], [B, N] -> logits [B]."""
        return self.block_logits(embedded, dense).mean(1)

    def loss(self, embedded: Tensor, dense: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """The log loss of the mean logit; with two blocks, also of each block with the mean's probability as its label.

        Arguments and result as in ``Model.loss``. No gradient flows through the probability that serves as a label.

        >>> inputs = ModelInputs(views={"main": {"user": 2}})
        >>> model = FinalNet(FinalNet.Config(), inputs).eval()  # all logits 0: three times ln 2
        >>> round(model.loss(torch.zeros(2, 2), torch.zeros(2, 0), torch.tensor([0.0, 1.0])).item(), 4)
        2.0794
        """
        logits = self.block_logits(embedded, dense)
        mean = logits.mean(1)
        loss = F.binary_cross_entropy_with_logits(mean, labels, weight=weights)
        if logits.shape[1] == 1:
            return loss
        taught = mean.detach().sigmoid()
        for block in logits.unbind(1):
            loss = loss + F.binary_cross_entropy_with_logits(block, taught, weight=weights)
        return loss


class FieldGate(nn.Module):
    """g = A e + a across the fields, the same A [F, F] for each of the D columns; it starts at exactly 1.

    Args:
        num_fields: F.
        width: D.

    >>> FieldGate(2, 3)(torch.zeros(1, 6)).tolist()
    [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, num_fields: int, width: int) -> None:
        super().__init__()
        self.shape = (num_fields, width)
        self.linear = nn.Linear(num_fields, num_fields)
        nn.init.zeros_(self.linear.weight)
        nn.init.ones_(self.linear.bias)

    def forward(self, vector: Tensor) -> Tensor:
        """[B, F * D] -> [B, F * D]."""
        fields = vector.unflatten(1, self.shape).transpose(1, 2)  # [B, F * D] -> [B, D, F]
        return self.linear(fields).transpose(1, 2).flatten(1)


class FinalLayer(nn.Module):
    """The factorised interaction layer: z = W x + b in two halves h and m, joined as [h, h * m] or as h + h * m.

    A layer doubles the degree of the polynomial, so that L layers reach degree 2^L.

    Args:
        in_width: columns of the input.
        out_width: columns of the output.
        interaction: how the halves are joined.

    Raises:
        InputError: an odd ``out_width`` under "concat".

    >>> [FinalLayer(3, 4, kind).linear.weight.shape[0] for kind in ("concat", "sum")]
    [4, 8]
    """

    def __init__(self, in_width: int, out_width: int, interaction: Interaction) -> None:
        super().__init__()
        if interaction == "concat" and out_width % 2:
            raise InputError(
                'interaction "concat" needs even widths',
                found=str(out_width),
                remedy=f"use {out_width + 1}, or set model.interaction=sum",
            )
        self.is_sum = interaction == "sum"
        self.linear = xavier_linear(in_width, 2 * out_width if self.is_sum else out_width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_width] -> [B, out_width]."""
        half, multiplier = self.linear(x).chunk(2, dim=1)
        product = half * multiplier
        return half + product if self.is_sum else torch.cat([half, product], dim=1)


def final_block(
    in_width: int, hidden: tuple[int, ...], interaction: Interaction, *, dropout: float, batch_norm: bool
) -> nn.Sequential:
    """FinalLayer -> BatchNorm1d -> ReLU -> Dropout for each hidden width.

    The norm follows a product, not a Linear, so it cannot be folded and remains a node of the exported graph.

    >>> [type(layer).__name__ for layer in final_block(3, (4,), "sum", dropout=0.1, batch_norm=True)]
    ['FinalLayer', 'BatchNorm1d', 'ReLU', 'Dropout']
    """
    layer = partial(FinalLayer, interaction=interaction)
    return hidden_layers(layer, in_width, hidden, dropout=dropout, batch_norm=batch_norm)
