"""The layers against answers worked out by hand, plain loops, and the invariants A3 to A8 of the FinalMLP paper."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from features.errors import InputError
from recsys.models.layers import (
    MLP,
    BilinearFusion,
    Dropout,
    FeatureGate,
    ModelInputs,
    NumericEmbedding,
    fold_batch_norm,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def fill(module: nn.Module, value: float) -> None:
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)


# ModelInputs


def test_columns_follow_the_order_of_views_and_features():
    inputs = ModelInputs(
        views={"main": {"user": 6, "item": 4}, "fs2": {"item": 3}, "fs1": {"user": 5}},
        dense_features=("price", "age"),
        dense_width=7,
    )
    slices = [inputs.columns(view) for view in inputs.views]
    assert slices == [slice(0, 10), slice(10, 13), slice(13, 18)]
    assert all(left.stop == right.start for left, right in pairwise(slices))
    assert (inputs.embedded_width, inputs.input_width) == (18, 10 + 2 * 7)


def test_a_view_that_is_not_there_is_a_key_error():
    inputs = ModelInputs(views={"main": {"user": 6}})
    with pytest.raises(KeyError, match="fs1"):
        inputs.columns("fs1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": {"fs1": {"user": 1}}}, "a view named 'main'; found \\['fs1'\\]"),
        ({"views": {"main": {"user": 0}}}, "the width of main.user must be a positive integer; found 0"),
        ({"views": {"main": {"user": 1}}, "dense_width": -2}, "dense_width must be a positive integer; found -2"),
        ({"views": {"main": {"user": 1}}, "dense_features": ("user",)}, "found 'user' as both"),
        ({"views": {"main": {}}}, "at least one feature; found none"),
    ],
)
def test_impossible_inputs_are_refused_at_birth(arguments: dict, message: str):
    with pytest.raises(InputError, match=message):
        ModelInputs(**arguments)


# NumericEmbedding


def test_numeric_embedding_is_a_linear_without_bias_for_each_feature():
    embed, dense = NumericEmbedding(3, 4), torch.randn(5, 3)
    columns = []
    for f in range(3):
        linear = nn.Linear(1, 4, bias=False)
        linear.weight = nn.Parameter(embed.weight[f].unsqueeze(1))  # [D] -> [D, 1]
        columns.append(linear(dense[:, f : f + 1]))
    torch.testing.assert_close(embed(dense), torch.cat(columns, dim=1))
    assert not embed(torch.zeros(2, 3)).any()


def test_numeric_embedding_starts_xavier_for_each_feature_whatever_their_number():
    for num_features in (1, 500):
        weights = torch.cat([NumericEmbedding(num_features, 10).weight.flatten() for _ in range(5000 // num_features)])
        assert weights.std().item() == pytest.approx(math.sqrt(2 / 11), rel=0.02)


# MLP


def test_mlp_order_of_layers():
    layers = MLP(5, (4, 3), dropout=0.2, batch_norm=True).layers
    block = ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert [type(layer).__name__ for layer in layers] == block + block
    assert {layer.probability for layer in layers if isinstance(layer, Dropout)} == {0.2}


@pytest.mark.parametrize("probability", [0.1, 0.4, 0.9])
def test_dropout_keeps_the_expectation_and_treats_cells_independently(probability):
    torch.manual_seed(0)
    dropped = Dropout(probability)(torch.ones(400, 1001))  # an odd number of cells, so that the last draw is cut
    assert set(dropped.flatten().tolist()) == {0.0, torch.tensor(1 / (1 - probability)).item()}
    rates = (dropped == 0).float()
    deviation = math.sqrt(probability * (1 - probability) / 400)
    assert rates.mean().item() == pytest.approx(probability, abs=5 * deviation / math.sqrt(1001))
    assert rates.mean(0).std().item() == pytest.approx(deviation, rel=0.1)
    # Four neighbours share one draw of the generator: they must not know of each other.
    neighbours = torch.corrcoef(rates.flatten()[:400_000].view(-1, 4).t())
    assert (neighbours - torch.eye(4)).abs().max() < 5 / math.sqrt(100_000)


def test_dropout_gradient_passes_where_the_value_passed():
    x = torch.ones(50, 30, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_mlp_leaves_out_what_is_off_and_may_be_empty():
    assert [type(layer).__name__ for layer in MLP(5, (4,)).layers] == ["Linear", "ReLU"]
    identity = MLP(5, ())
    assert identity.out_width == 5
    x = torch.randn(2, 5)
    assert torch.equal(identity(x), x)


def test_mlp_by_hand():
    mlp = MLP(3, (2, 1))
    fill(mlp, 1.0)
    # Row 1: 1+2+4+1 = 8 twice, then 8+8+1 = 17. Row 2: 1-5+1+1 = -2 is cut to 0 twice, then 0+0+1 = 1.
    assert mlp(torch.tensor([[1.0, 2.0, 4.0], [1.0, -5.0, 1.0]])).tolist() == [[17.0], [1.0]]


def test_mlp_starts_xavier_normal_with_zero_bias():
    linears = [layer for layer in MLP(300, (200, 100)).layers if isinstance(layer, nn.Linear)]
    for linear in linears:
        assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / sum(linear.weight.shape)), rel=0.02)
        assert not linear.bias.any()


def test_mlp_drops_only_while_training():
    mlp, x = MLP(8, (400,), dropout=0.5), torch.ones(1, 8)
    fill(mlp, 1.0)
    training = mlp(x)
    assert set(training.unique().tolist()) == {0.0, 18.0}  # 8 + 1 = 9, scaled up by 1 / (1 - 0.5)
    assert mlp.eval()(x).unique().tolist() == [9.0]


# FeatureGate


def reference_gate(context_width: int, width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """The gate's MLP of the reference code, which it also runs, on a zero vector, without a context."""
    last = nn.Linear(hidden[-1] if hidden else context_width, width)
    nn.init.xavier_normal_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(MLP(context_width, hidden), last)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 4)])
def test_gate_is_twice_the_sigmoid_of_an_mlp(hidden: tuple[int, ...]):
    gate, reference = FeatureGate(3, 5, hidden), reference_gate(3, 5, hidden)
    assert gate.network is not None
    gate.network.load_state_dict(reference.state_dict())
    context = torch.randn(6, 3)
    torch.testing.assert_close(gate(context), 2 * torch.sigmoid(reference(context)))


def test_gate_lies_between_0_and_2():  # A4
    gate = FeatureGate(3, 5, (8,))
    values = gate(3 * torch.randn(200, 3))
    assert values.shape == (200, 5)
    assert values.min() > 0
    assert values.max() < 2


def test_gate_with_a_zero_last_layer_is_exactly_one():  # A4
    gate = FeatureGate(3, 5, (8,))
    assert gate.network is not None
    fill(gate.network[-1], 0.0)
    assert torch.equal(gate(torch.randn(4, 3)), torch.ones(4, 5))


def test_gate_without_context_learns_what_the_reference_learns():  # A5
    """The reference's context vector and all weights but the last bias stay, to the bit, where they started."""
    ours, reference = FeatureGate(0, 5, (8,)), reference_gate(4, 5, (8,))
    context = nn.Parameter(torch.zeros(1, 4))
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    optimizers = [
        torch.optim.Adam(ours.parameters(), lr=0.05),
        torch.optim.Adam([context, *reference.parameters()], lr=0.05),
    ]
    x, target = torch.randn(32, 5), torch.randn(32, 5)
    for _ in range(20):
        gates = [ours(x[:, :0]), 2 * torch.sigmoid(reference(context.expand(32, 4)))]
        for gate, optimizer in zip(gates, optimizers, strict=True):
            optimizer.zero_grad()
            ((x * gate - target) ** 2).mean().backward()
            optimizer.step()
    dead = {name: tensor for name, tensor in reference.state_dict().items() if name != "1.bias"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in dead.items())
    assert not context.any()
    assert ours.bias is not None
    torch.testing.assert_close(ours.bias, reference.state_dict()["1.bias"])
    assert (ours.bias - before["1.bias"]).abs().min() > 0.01
    # What A1 subtracts: everything of the reference's gate but its last bias.
    num_dead = context.numel() + sum(tensor.numel() for tensor in dead.values())
    assert num_dead == 4 + (4 + 1) * 8 + 8 * 5


def test_the_reference_context_is_live_only_without_a_hidden_layer():  # A5's proviso
    for hidden, is_live in [((), True), ((8,), False)]:
        reference, context = reference_gate(4, 5, hidden), nn.Parameter(torch.zeros(1, 4))
        (reference(context.expand(3, 4)) - 1).square().sum().backward()
        assert context.grad is not None
        assert bool(context.grad.any()) == is_live


# BilinearFusion


def fusion_by_loops(fusion: BilinearFusion, x1: Tensor, x2: Tensor) -> list[float]:
    """FinalMLP's fusion as the paper writes it, one head and one pair of columns at a time."""
    heads, size1, size2 = fusion.weight.shape
    logits = []
    for row1, row2 in zip(x1.tolist(), x2.tolist(), strict=True):
        logit = fusion.linear1.bias.item() + fusion.linear2.bias.item()
        logit += sum(w * value for w, value in zip(fusion.linear1.weight[0].tolist(), row1, strict=True))
        logit += sum(w * value for w, value in zip(fusion.linear2.weight[0].tolist(), row2, strict=True))
        for j in range(heads):
            for p in range(size1):
                for q in range(size2):
                    logit += row1[j * size1 + p] * fusion.weight[j, p, q].item() * row2[j * size2 + q]
        logits.append(logit)
    return logits


@pytest.mark.parametrize(("dim1", "dim2", "heads"), [(6, 4, 1), (6, 4, 2), (6, 12, 6), (12, 18, 3), (1, 1, 1)])
def test_fusion_equals_the_loops(dim1: int, dim2: int, heads: int):
    fusion = BilinearFusion(dim1, dim2, heads).double()
    nn.init.normal_(fusion.linear1.bias)
    nn.init.normal_(fusion.linear2.bias)
    x1, x2 = torch.randn(5, dim1).double(), torch.randn(5, dim2).double()
    assert fusion(x1, x2).tolist() == pytest.approx(fusion_by_loops(fusion, x1, x2), rel=1e-12)


def test_fusion_by_hand():
    fusion = BilinearFusion(2, 4, num_heads=2)
    fill(fusion, 1.0)
    x1, x2 = torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    # Biases 1 + 1, linear 5 + 1111, heads 2 * (1 + 10) + 3 * (100 + 1000).
    assert fusion(x1, x2).tolist() == [2.0 + 5.0 + 1111.0 + 22.0 + 3300.0]


def full_bilinear(fusion: BilinearFusion, x1: Tensor, x2: Tensor) -> Tensor:
    matrix = torch.block_diag(*fusion.weight)  # [k, d1/k, d2/k] -> [d1, d2]
    linear = fusion.linear1(x1) + fusion.linear2(x2)
    return torch.einsum("bi,ij,bj->b", x1, matrix, x2) + linear.squeeze(1)


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_fusion_is_a_block_diagonal_bilinear_form_at_a_kth_of_the_parameters(heads: int):  # A3
    fusion = BilinearFusion(12, 18, heads)
    x1, x2 = torch.randn(5, 12), torch.randn(5, 18)
    torch.testing.assert_close(fusion(x1, x2), full_bilinear(fusion, x1, x2))
    assert sum(p.numel() for p in fusion.parameters()) == (12 + 1) + (18 + 1) + 12 * 18 // heads


@pytest.mark.parametrize("heads", [-1, 0, 4, 5, 12])
def test_fusion_names_the_numbers_of_heads_that_fit(heads: int):  # A3
    with pytest.raises(InputError) as error:
        BilinearFusion(12, 18, heads)
    assert str(error.value) == (
        f"num_heads must divide the last widths of both streams, 12 and 18; found {heads}; choose one of 1, 2, 3, 6"
    )


def test_fusion_is_symmetric_in_the_streams():  # A6
    fusion, swapped = BilinearFusion(6, 4, 2), BilinearFusion(4, 6, 2)
    swapped.linear1, swapped.linear2 = fusion.linear2, fusion.linear1
    swapped.weight = nn.Parameter(fusion.weight.transpose(1, 2))  # [k, d1/k, d2/k] -> [k, d2/k, d1/k]
    x1, x2 = torch.randn(5, 6), torch.randn(5, 4)
    torch.testing.assert_close(fusion(x1, x2), swapped(x2, x1))


def test_fusion_is_additive_in_its_linear_parts():  # A7
    fusion = BilinearFusion(6, 4, 2).double()
    x1, x2, step1, step2 = (torch.randn(5, d).double() for d in (6, 4, 6, 4))
    before = fusion(x1, x2)
    with torch.no_grad():
        fusion.linear1.weight += step1[:1]
        fusion.linear2.weight += step2[:1]
    torch.testing.assert_close(fusion(x1, x2), before + x1 @ step1[0] + x2 @ step2[0])


def test_fusion_starts_as_the_reference_does():
    weight = BilinearFusion(400, 1000, 200).weight  # Criteo_x1
    flat = nn.init.xavier_normal_(torch.empty(weight.numel(), 1))
    assert weight.std().item() == pytest.approx(0.0316, rel=0.05)
    assert weight.std().item() == pytest.approx(flat.std().item(), rel=0.1)


def test_fusion_gradient():
    fusion = BilinearFusion(4, 6, 2).double()
    inputs = (torch.randn(3, 4).double().requires_grad_(), torch.randn(3, 6).double().requires_grad_())
    assert torch.autograd.gradcheck(fusion, inputs)


# fold_batch_norm


def worn_in(module: nn.Module, width: int) -> nn.Module:
    """The module with statistics, scales and shifts that a training could have left."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            nn.init.uniform_(part.weight, 0.2, 2.0)
            nn.init.normal_(part.bias)
    for _ in range(5):
        module.train()(3 * torch.randn(64, width) + 1)
    return module


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_folding_keeps_the_outputs_and_the_original(dropout: float):
    module = worn_in(nn.Sequential(MLP(10, (20, 15), dropout=dropout, batch_norm=True), nn.Linear(15, 1)), 10)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    folded, x = fold_batch_norm(module), torch.randn(200, 10)
    assert module.training
    assert not folded.training
    assert not any(isinstance(part, nn.BatchNorm1d) for part in folded.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert {p.dtype for p in folded.parameters()} == {torch.float32}
    torch.testing.assert_close(folded(x), module.eval()(x), rtol=1e-6, atol=1e-6)


def test_folding_an_mlp_itself_and_one_with_nothing_to_fold():
    x = torch.randn(20, 10)
    with_norm = worn_in(MLP(10, (20,), batch_norm=True), 10)
    torch.testing.assert_close(fold_batch_norm(with_norm)(x), with_norm.eval()(x), rtol=1e-6, atol=1e-6)
    without = MLP(10, (20,), dropout=0.5)
    assert torch.equal(fold_batch_norm(without)(x), without.eval()(x))
