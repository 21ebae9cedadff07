"""DCN V2: the cross layer against plain loops and by hand, its degree, its low-rank form, and both structures."""

import pytest
import torch
from torch import Tensor, nn

from recsys.models.dcn_v2 import CrossLayer, DCNv2
from recsys.models.layers import ModelInputs
from tests.recsys.networks import batch_for, build, count, degree_along_a_ray


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


def cross_by_loops(layer: CrossLayer, start: list[float], row: list[float]) -> list[float]:
    assert isinstance(layer.linear, nn.Linear)
    weight, bias = layer.linear.weight.tolist(), layer.linear.bias.tolist()
    mixed = [b + sum(w * x for w, x in zip(ws, row, strict=True)) for ws, b in zip(weight, bias, strict=True)]
    return [x0 * m + x for x0, m, x in zip(start, mixed, row, strict=True)]


def test_a_layer_equals_the_loops():
    layer = CrossLayer(4, None).double()
    assert isinstance(layer.linear, nn.Linear)
    nn.init.normal_(layer.linear.bias)
    start, x = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    expected = [cross_by_loops(layer, *rows) for rows in zip(start.tolist(), x.tolist(), strict=True)]
    torch.testing.assert_close(layer(start, x), torch.tensor(expected, dtype=torch.float64))


def test_two_layers_by_hand():
    """All weights and biases 1 on e = (1, 2): x_1 = e * (3 + 1) + e = (5, 10), x_2 = e * (15 + 1) + x_1 = (21, 42)."""
    config = DCNv2.Config(num_cross_layers=2, hidden=(1,), batch_norm=False, dropout=0)
    model = DCNv2(config, ModelInputs(views={"main": {"user": 2}}))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    # The MLP gives 1 + 2 + 1, and the output adds its bias.
    assert model(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 0)).tolist() == [21 + 42 + 4 + 1]


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_every_layer_adds_one_degree(num_layers: int, rank: int | None):
    layers = [CrossLayer(3, rank).double() for _ in range(num_layers)]

    def crossed(start: Tensor) -> Tensor:
        x = start
        for layer in layers:
            x = layer(start, x)
        return x[:, 0]

    assert degree_along_a_ray(crossed, 3) == num_layers + 1


def test_low_rank_is_a_matrix_that_is_a_product():
    low, full = CrossLayer(6, 2), CrossLayer(6, None)
    assert isinstance(low.linear, nn.Sequential)
    assert isinstance(full.linear, nn.Linear)
    down, up = low.linear
    assert isinstance(down, nn.Linear)
    assert isinstance(up, nn.Linear)
    full.linear.load_state_dict({"weight": up.weight @ down.weight, "bias": up.bias})
    assert torch.linalg.matrix_rank(full.linear.weight) == 2
    start, x = torch.randn(5, 6), torch.randn(5, 6)
    torch.testing.assert_close(low(start, x), full(start, x))
    assert count(low) == 2 * (6 + 6) + 6


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_where_the_mlp_reads(structure: str):
    """With cross layers of zeros x_L = e, so that both structures are a linear form of what their output reads."""
    model = build("dcn_v2", {"structure": structure}).eval()
    for parameter in model.cross.parameters():
        nn.init.zeros_(parameter)
    inputs = batch_for(model, 5)
    vector = model.input(*inputs)
    read = [model.mlp(vector)] if structure == "stacked" else [vector, model.mlp(vector)]
    torch.testing.assert_close(model(*inputs), model.output(torch.cat(read, dim=1)).squeeze(1))
    # And with cross layers that are not, a stacked MLP hears of them, a parallel one does not.
    heard = []
    model.mlp.register_forward_hook(lambda _module, arguments, _output: heard.append(arguments[0]))
    nn.init.ones_(model.cross[0].linear.bias)
    model(*inputs)
    torch.testing.assert_close(heard[0], 2 * vector if structure == "stacked" else vector)
