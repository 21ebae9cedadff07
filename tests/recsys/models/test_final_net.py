"""FinalNet against plain loops and answers by hand, its loss for two blocks, and invariant A9."""

import math

import pytest
import torch
from torch import nn

from features.errors import InputError
from recsys.models.final_net import FieldGate, FinalLayer, FinalNet, Interaction, final_block
from tests.recsys.networks import DENSE_WIDTH, batch_for, build, degree_along_a_ray

every_interaction = pytest.mark.parametrize("interaction", ["concat", "sum"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def layer_by_loops(layer: FinalLayer, row: list[float], interaction: Interaction) -> list[float]:
    """z = W x + b one number at a time; its first half is h, its second m."""
    weight, bias = layer.linear.weight.tolist(), layer.linear.bias.tolist()
    z = [b + sum(w * x for w, x in zip(ws, row, strict=True)) for ws, b in zip(weight, bias, strict=True)]
    half, multiplier = z[: len(z) // 2], z[len(z) // 2 :]
    product = [h * m for h, m in zip(half, multiplier, strict=True)]
    return half + product if interaction == "concat" else [h + p for h, p in zip(half, product, strict=True)]


@every_interaction
def test_a_layer_equals_the_loops(interaction: Interaction):
    layer = FinalLayer(5, 6, interaction).double()
    nn.init.normal_(layer.linear.bias)
    x = torch.randn(4, 5).double()
    expected = [layer_by_loops(layer, row, interaction) for row in x.tolist()]
    torch.testing.assert_close(layer(x), torch.tensor(expected, dtype=torch.float64))


def test_a_layer_by_hand():
    x = torch.tensor([[2.0, 3.0]])
    concat, joined = FinalLayer(2, 2, "concat"), FinalLayer(2, 1, "sum")
    for layer in (concat, joined):
        layer.linear.weight.data = torch.tensor([[1.0, 1.0], [10.0, 0.0]])
        layer.linear.bias.data = torch.tensor([0.5, 1.0])
    # h = 2 + 3 + 0.5, m = 20 + 1.
    assert concat(x).tolist() == [[5.5, 5.5 * 21]]
    assert joined(x).tolist() == [[5.5 + 5.5 * 21]]


def test_concat_ends_in_its_first_half_times_the_multiplier():  # A9
    layer, x = FinalLayer(5, 6, "concat"), torch.randn(4, 5)
    first, second = layer(x).chunk(2, dim=1)
    multiplier = x @ layer.linear.weight[3:].t() + layer.linear.bias[3:]
    torch.testing.assert_close(first, x @ layer.linear.weight[:3].t() + layer.linear.bias[:3])
    torch.testing.assert_close(second, first * multiplier)


def test_sum_without_a_multiplier_is_a_linear_layer():  # A9
    layer, x = FinalLayer(5, 6, "sum"), torch.randn(4, 5)
    nn.init.zeros_(layer.linear.weight[6:])
    torch.testing.assert_close(layer(x), x @ layer.linear.weight[:6].t())


@every_interaction
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_every_layer_doubles_the_degree(interaction: Interaction, num_layers: int):
    layers = nn.Sequential(*[FinalLayer(6, 6, interaction) for _ in range(num_layers)]).double()
    assert degree_along_a_ray(lambda x: layers(x)[:, -1], 6) == 2**num_layers


def test_order_of_a_block():  # FINAL -> BN -> activation -> dropout
    block = [type(layer).__name__ for layer in final_block(5, (4, 6), "concat", dropout=0.2, batch_norm=True)]
    assert block == ["FinalLayer", "BatchNorm1d", "ReLU", "Dropout"] * 2
    without = final_block(5, (4,), "sum", dropout=0.0, batch_norm=False)
    assert [type(layer).__name__ for layer in without] == ["FinalLayer", "ReLU"]


def test_an_odd_width_needs_the_sum():
    message = 'interaction "concat" needs even widths; found 7; use 8, or set model.interaction=sum'
    with pytest.raises(InputError) as error:
        build("final_net", {"block2_hidden": (8, 7)})
    assert str(error.value) == message
    assert build("final_net", {"block2_hidden": (8, 7), "interaction": "sum"}).blocks[1][1].in_features == 7


# The field gate


def test_the_gate_starts_at_one_and_doubles_the_first_blocks_input():  # A9
    model = build("final_net").eval()
    embedded, dense = batch_for(model, 4)
    vector = model.input(embedded, dense)
    assert torch.equal(model.gate(vector), torch.ones_like(vector))
    expected = model.blocks[0](torch.cat([vector, vector], dim=1)) + model.blocks[1](vector)
    torch.testing.assert_close(model(embedded, dense), expected.squeeze(1) / 2)


def test_the_gate_mixes_fields_and_never_columns():
    gate = FieldGate(3, 2)
    nn.init.normal_(gate.linear.weight)
    x = torch.randn(4, 6)
    for row, gated in zip(x.tolist(), gate(x).tolist(), strict=True):
        for field in range(3):
            for column in range(2):
                mixed = sum(gate.linear.weight[field, g].item() * row[2 * g + column] for g in range(3))
                assert gated[2 * field + column] == pytest.approx(mixed + gate.linear.bias[field].item(), abs=1e-5)


def test_numbers_are_fields_of_the_gate():
    model = build("final_net", layout="both")
    assert model.gate.shape == (3 + 3, DENSE_WIDTH)


# The loss of two blocks


def cross_entropy(logit: float, label: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -label * math.log(probability) - (1 - label) * math.log(1 - probability)


def test_the_blocks_learn_from_the_label_and_from_their_mean(monkeypatch: pytest.MonkeyPatch):
    """Value and gradient against the formula; the mean's probability is a constant where it is a label."""
    model: FinalNet = build("final_net")
    logits = torch.tensor([[0.3, -1.2], [2.0, 0.5], [-0.7, 0.1]], requires_grad=True)
    monkeypatch.setattr(model, "block_logits", lambda *_: logits)
    labels, weights = [1.0, 0.0, 1.0], [1.0, 0.5, 2.0]
    loss = model.loss(torch.zeros(3, 0), torch.zeros(3, 0), torch.tensor(labels), torch.tensor(weights))
    loss.backward()
    total, gradient = 0.0, []
    for row, label, weight in zip(logits.tolist(), labels, weights, strict=True):
        mean = sum(row) / 2
        taught = 1 / (1 + math.exp(-mean))
        total += weight / 3 * (cross_entropy(mean, label) + sum(cross_entropy(logit, taught) for logit in row))
        of_mean = (taught - label) / 2
        gradient.append([weight / 3 * (of_mean + 1 / (1 + math.exp(-logit)) - taught) for logit in row])
    assert loss.item() == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(logits.grad, torch.tensor(gradient))


def test_one_block_is_the_first_one_alone():
    one, two = build("final_net", {"num_blocks": 1}).eval(), build("final_net", seed=4).eval()
    one.load_state_dict({key: value for key, value in two.state_dict().items() if not key.startswith("blocks.1.")})
    inputs = batch_for(one, 5)
    torch.testing.assert_close(one(*inputs), two.block_logits(*inputs)[:, 0])
    assert not torch.allclose(one(*inputs), two(*inputs))
