"""Building blocks of the models: tensor in, tensor out, without a table or a loss.

Shapes: B batch, W columns of the embedded tensor, N numeric features, D width of one numeric embedding,
E = width of the main view + N * D (all that a model reads of an example), C width of a gate's context,
d1, d2 widths of the two streams, k heads.

"FinalMLP" is Mao et al., "FinalMLP: An Enhanced Two-Stream MLP Model for CTR Prediction", AAAI 2023, arXiv 2304.00902;
its sections are cited by title. Unless a class says otherwise, every weight starts Xavier-normal and every bias at
zero, as in the reference code (FuxiCTR v2.0.1).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from features.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """Input of a model for each example: the columns of the embedded tensor and the numeric features.

    ``embedded`` [B, W] holds the views one after another, and each view its features one after another.

    Raises:
        InputError: there is no main view, a width is not positive, a name is both a token and a numeric feature,
            or there is no feature at all.

    >>> inputs = ModelInputs(
    ...     views={"main": {"user": 8, "item": 4}, "fs1": {"user": 8}}, dense_features=("price",), dense_width=8
    ... )
    >>> inputs.embedded_width, inputs.width("main"), inputs.columns("fs1")
    (20, 12, slice(12, 20, None))
    """

    views: Mapping[str, Mapping[str, int]]
    """View name -> {feature: columns it takes}, in column order; "main" is the input, the others feed gates."""
    dense_features: tuple[str, ...] = ()
    """Names of the numeric features, in column order of the dense tensor [B, N]."""
    dense_width: int = 1
    """D: the number of columns that one numeric feature is embedded in."""
    num_statistics: int = 0
    """How many of the numeric features, the last ones, are target statistics (`recsys.target_statistics`)."""

    def __post_init__(self) -> None:
        if "main" not in self.views:
            raise InputError("views must hold a view named 'main'", found=repr(list(self.views)))
        named = [("dense_width", self.dense_width)]
        named += [(f"{view}.{feature}", n) for view, widths in self.views.items() for feature, n in widths.items()]
        for name, width in named:
            if width < 1:
                raise InputError(f"the width of {name} must be a positive integer", found=repr(width))
        if both := sorted(self.views["main"].keys() & set(self.dense_features)):
            raise InputError("a feature is either a token or a number", found=f"{both[0]!r} as both")
        if not self.views["main"] and not self.dense_features:
            raise InputError(
                "a model needs at least one feature", found="none", remedy="add one to `features:` in the registry"
            )

    @property
    def embedded_width(self) -> int:
        """W: the number of columns of ``embedded``, all views together."""
        return sum(self.width(view) for view in self.views)

    @property
    def input_width(self) -> int:
        """E: the main view's columns and every numeric feature's D, side by side."""
        return self.width("main") + len(self.dense_features) * self.dense_width

    def without_statistics(self) -> "ModelInputs":
        """The same without the target statistics."""
        kept = self.dense_features[: len(self.dense_features) - self.num_statistics]
        return replace(self, dense_features=kept, num_statistics=0)

    def width(self, view: str) -> int:
        """The number of columns of one view; ``KeyError`` when there is no such view."""
        return sum(self.views[view].values())

    def columns(self, view: str) -> slice:
        """The columns of ``embedded`` that one view takes; ``KeyError`` when there is no such view."""
        names = list(self.views)
        stop = sum(self.width(name) for name in names[: names.index(view)]) if view in self.views else 0
        return slice(stop, stop + self.width(view))


def xavier_linear(in_width: int, out_width: int) -> nn.Linear:
    """A Linear that starts Xavier-normal, std sqrt(2 / (in + out)), with zero bias.

    >>> xavier_linear(3, 1).bias.tolist()
    [0.0]
    """
    linear = nn.Linear(in_width, out_width)
    nn.init.xavier_normal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class NumericEmbedding(nn.Module):
    """Numeric feature f becomes x_f * w_f, with its own vector w_f and no bias (as in FuxiCTR).

    Its weight counts as part of the embedding: it takes the embedding's L2, not the network's.

    Args:
        num_features: N, at least 1.
        width: D, columns per feature.

    >>> embed = NumericEmbedding(num_features=2, width=3)
    >>> _ = nn.init.ones_(embed.weight)
    >>> embed(torch.tensor([[5.0, 7.0]])).tolist()
    [[5.0, 5.0, 5.0, 7.0, 7.0, 7.0]]
    """

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_features, width))
        # Xavier of each feature's own Linear(1 -> D), not of the [N, D] matrix that they happen to be stored in.
        nn.init.normal_(self.weight, std=math.sqrt(2 / (1 + width)))

    def forward(self, dense: Tensor) -> Tensor:
        """[B, N] -> [B, N * D], feature by feature."""
        return (dense.unsqueeze(-1) * self.weight).flatten(1)  # [B, N, 1] * [N, D] -> [B, N * D]


def hidden_layers(
    linear: Callable[[int, int], nn.Module], in_width: int, hidden: Sequence[int], *, dropout: float, batch_norm: bool
) -> nn.Sequential:
    """The layers `linear(in_width, width)` -> BatchNorm1d -> ReLU -> Dropout for each hidden width.

    >>> [type(layer).__name__ for layer in hidden_layers(nn.Linear, 3, (4,), dropout=0.1, batch_norm=True)]
    ['Linear', 'BatchNorm1d', 'ReLU', 'Dropout']
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(linear(in_width, width))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU())
        if dropout > 0:
            layers.append(Dropout(dropout))
        in_width = width
    return nn.Sequential(*layers)


class MLP(nn.Module):
    """Linear -> BatchNorm1d -> ReLU -> Dropout for each hidden width; no output layer: a stream of FinalMLP.

    Args:
        in_width: columns of the input.
        hidden: width of each layer; empty makes this the identity.
        dropout: probability of dropping an activation, in [0, 1); the layer is absent at 0.
        batch_norm: whether to normalise. Training then needs batches of two rows or more.

    >>> mlp = MLP(6, (4, 2), dropout=0.1, batch_norm=True)
    >>> mlp.out_width, mlp(torch.zeros(5, 6)).shape
    (2, torch.Size([5, 2]))
    """

    def __init__(self, in_width: int, hidden: Sequence[int], *, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        self.out_width = hidden[-1] if hidden else in_width
        self.layers = hidden_layers(xavier_linear, in_width, hidden, dropout=dropout, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_width] -> [B, out_width]."""
        return self.layers(x)

    def fold_batch_norm(self) -> None:
        """Multiply each BatchNorm1d into the Linear before it, in place; after that the MLP is for inference only."""
        folded: list[nn.Module] = []
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm1d):
                linear = folded.pop()
                assert isinstance(linear, nn.Linear)
                # In float64, so that the only rounding is the last one.
                layer = fuse_linear_bn_eval(linear.double(), layer.double().eval()).float()
            folded.append(layer)
        self.layers = nn.Sequential(*folded)


class Dropout(nn.Module):
    """Inverted dropout that draws 16 random bits per activation, four from each number of the generator.

    On a CPU `nn.Dropout` spends its time in the generator, which draws one number per activation. The probability is
    exact to 1 part in 65,536 (Srivastava et al. 2014).

    Args:
        probability: of a zero, in (0, 1).

    >>> dropout = Dropout(0.5)
    >>> sorted(set(dropout(torch.ones(100, 100)).flatten().tolist()))
    [0.0, 2.0]
    >>> dropout.eval()(torch.ones(2)).tolist()
    [1.0, 1.0]
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Any shape in, the same shape out; the identity in evaluation mode."""
        if not self.training:
            return x
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.probability * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.probability))

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.probability}"


class FeatureGate(nn.Module):
    """One gate of FinalMLP, 2 * sigmoid(g) in (0, 2) with g = MLP(context): the weight of each column in a stream.

    It multiplies a stream's input, h = 2 * sigmoid(g) * e (FinalMLP, "Stream-Specific Feature Selection").

    Without a context the gate is a free vector, 2 * sigmoid(b), which starts at exactly 1. The reference code feeds a
    zero vector through the MLP there; as all biases start at zero, ReLU passes neither a value nor a gradient, only
    the last bias ever learns, and the rest is dead weight: 369,620 of 370,060 parameters in its Avazu_x1 run.
    Here is the same function with the same gradient, without the dead weight.

    Args:
        context_width: C, columns of the context; 0 for none.
        width: E, columns that the gate multiplies.
        hidden: widths of the MLP (Linear -> ReLU each, then Linear -> E); unused without a context.

    >>> gate = FeatureGate(context_width=0, width=3, hidden=(4,))
    >>> gate(torch.zeros(5, 0)).tolist(), sum(p.numel() for p in gate.parameters())
    ([[1.0, 1.0, 1.0]], 3)
    """

    def __init__(self, context_width: int, width: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.network: nn.Sequential | None = None
        self.bias: nn.Parameter | None = None
        if context_width:
            mlp = MLP(context_width, hidden)
            self.network = nn.Sequential(mlp, xavier_linear(mlp.out_width, width))
        else:
            self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, context: Tensor) -> Tensor:
        """[B, C] -> [B, E]; without a context [1, E], which broadcasts over the batch."""
        if self.network is not None:
            return 2 * torch.sigmoid(self.network(context))
        assert self.bias is not None
        return 2 * torch.sigmoid(self.bias).unsqueeze(0)


class BilinearFusion(nn.Module):
    """The k-head bilinear fusion of two streams (FinalMLP, "Stream-Level Interaction Aggregation").

    logit = b1 + b2 + w1 . o1 + w2 . o2 + sum over heads j of o1_j^T W_j o2_j,
    where o1_j and o2_j are the j-th of k equal, contiguous parts: a full bilinear form whose matrix is block-diagonal,
    at 1/k of its parameters. The linear parts of the paper's heads add up to one vector per stream.

    Args:
        dim1: d1, columns of the first stream.
        dim2: d2, columns of the second stream.
        num_heads: k, which divides both.

    Raises:
        InputError: ``num_heads`` does not divide both widths.

    >>> fusion = BilinearFusion(4, 6, num_heads=2)
    >>> fusion.weight.shape, fusion(torch.zeros(3, 4), torch.zeros(3, 6)).tolist()
    (torch.Size([2, 2, 3]), [0.0, 0.0, 0.0])
    """

    def __init__(self, dim1: int, dim2: int, num_heads: int) -> None:
        super().__init__()
        common = math.gcd(dim1, dim2)
        if num_heads < 1 or common % num_heads:
            valid = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            raise InputError(
                f"num_heads must divide the last widths of both streams, {dim1} and {dim2}",
                found=repr(num_heads),
                remedy=f"choose one of {valid}",
            )
        self.linear1 = xavier_linear(dim1, 1)
        self.linear2 = xavier_linear(dim2, 1)
        self.weight = nn.Parameter(torch.empty(num_heads, dim1 // num_heads, dim2 // num_heads))
        # Xavier on the reference's storage, one flat column: fan-in 1, fan-out k * d1/k * d2/k.
        nn.init.normal_(self.weight, std=math.sqrt(2 / (1 + self.weight.numel())))

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """[B, d1], [B, d2] -> logits [B]."""
        heads1 = x1.unflatten(1, self.weight.shape[:2]).transpose(0, 1)  # [B, d1] -> [k, B, d1/k]
        # One matrix product per head: 2 to 50 times as fast at 4,096 rows as the reference's one per row and head.
        projected = torch.bmm(heads1, self.weight).transpose(0, 1).flatten(1)  # [k, B, d2/k] -> [B, d2]
        bilinear = (projected * x2).sum(1)
        return bilinear + (self.linear1(x1) + self.linear2(x2)).squeeze(1)


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """A copy for inference in which every MLP's BatchNorm1d is multiplied into the Linear before it.

    Args:
        module: any module; the MLPs of this file inside it are folded. It is left as it was.

    Returns:
        A deep copy in eval mode, equal to ``module.eval()`` within 1e-6 and not to be trained.

    >>> mlp = MLP(6, (4,), batch_norm=True)
    >>> [type(layer).__name__ for layer in fold_batch_norm(mlp).layers]
    ['Linear', 'ReLU']
    """
    folded = copy.deepcopy(module).eval()
    for part in folded.modules():
        if isinstance(part, MLP):
            part.fold_batch_norm()
    return folded
