"""FinalMLP and DualMLP: an answer by hand, the invariants A2 and A4, and settings that cannot be.

A1 is in test_parameter_counts.py, A3 and A5 to A7 in test_layers.py, A8 in test_models.py.
"""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from features.errors import InputError
from recsys.models import DualMLP, FinalMLP, SingleMLP
from recsys.models.layers import ModelInputs
from tests.recsys.networks import LAYOUTS, batch_for, build


def test_networks_by_hand():
    """All weights 1, all biases 0: e = (1, 2, 4), so that a stream's activations are 7, and a gate is 2 sigmoid(7)."""
    inputs = ModelInputs(views={"main": {"user": 2}}, dense_features=("price",), dense_width=1)
    embedded, dense = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0]])
    dual = {"mlp1_hidden": (2,), "mlp2_hidden": (4,), "mlp1_batch_norm": False, "mlp2_batch_norm": False}
    single = SingleMLP(SingleMLP.Config(hidden=(2, 3), batch_norm=False), inputs)
    double = DualMLP(DualMLP.Config.model_validate(dual), inputs)
    final = FinalMLP(FinalMLP.Config(num_heads=2, fs1_context=("price",), gate_hidden=(1,), **dual), inputs)
    for model in (single, double, final):
        for name, parameter in model.named_parameters():
            nn.init.constant_(parameter, 0.0 if "bias" in name else 1.0)
        model.eval()
    assert single(embedded, dense).tolist() == [3 * (2 * 7.0)]
    assert double(embedded, dense).tolist() == [2 * 7.0 + 4 * 7.0]
    # The first gate's context is the price, 4; the second has none and is 1. Each W_j is [1, 2] of ones.
    stream1 = 7 * 2 / (1 + math.exp(-4))
    assert final(embedded, dense).item() == pytest.approx(2 * stream1 + 4 * 7 + 2 * (stream1 * 2 * 7), rel=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dual_mlp_is_final_mlp_without_gates_and_with_w_zero(heads: int, layout: str):  # A2
    dual = build("dual_mlp", {"mlp1_hidden": (16, 8), "mlp2_hidden": (24,)}, layout)
    settings = {"mlp1_hidden": (16, 8), "mlp2_hidden": (24,), "use_gates": False, "num_heads": heads}
    final = build("final_mlp", settings, layout, seed=4)
    assert isinstance(final, FinalMLP)
    renamed = {
        key.replace("output1", "fusion.linear1").replace("output2", "fusion.linear2"): tensor
        for key, tensor in dual.state_dict().items()
    }
    final.load_state_dict({**renamed, "fusion.weight": torch.zeros_like(final.fusion.weight)})
    inputs = batch_for(dual, 20)
    torch.testing.assert_close(final.eval()(*inputs), dual.eval()(*inputs))


def test_statistics_add_to_the_logit_and_stay_out_of_the_streams():
    views, names = {"main": {"user": 4}}, ("price", "user rate", "user count")
    config = FinalMLP.Config(mlp1_hidden=(4,), mlp2_hidden=(4,), num_heads=2)
    model = FinalMLP(config, ModelInputs(views=views, dense_features=names, dense_width=4, num_statistics=2)).eval()
    plain = FinalMLP(config, ModelInputs(views=views, dense_features=names[:1], dense_width=4)).eval()
    own = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("statistics.")}
    plain.load_state_dict(own)
    embedded, dense = torch.randn(5, 4), torch.randn(5, 3)
    assert model.statistics is not None
    expected = plain(embedded, dense[:, :1]) + model.statistics(dense[:, 1:])
    torch.testing.assert_close(model(embedded, dense), expected)
    assert model.statistics(dense[:, 1:]).std() > 0


CONTEXTS = {"fs1_context": ("user", "age"), "fs2_context": ()}


def test_gates_of_one_change_nothing():  # A4
    gated, plain = build("final_mlp", CONTEXTS).eval(), build("final_mlp", {"use_gates": False}, seed=4).eval()
    assert isinstance(gated, FinalMLP)
    assert gated.gate1 is not None
    assert gated.gate1.gate.network is not None
    for parameter in gated.gate1.gate.network[-1].parameters():
        nn.init.zeros_(parameter)
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if not k.startswith("gate")})
    embedded, dense = batch_for(gated, 20)
    assert torch.equal(gated(embedded, dense), plain(embedded[:, gated.inputs.columns("main")], dense))


def test_gates_lie_between_0_and_2_and_listen_to_their_context_alone():  # A4
    model = build("final_mlp", CONTEXTS).eval()
    assert isinstance(model, FinalMLP)
    assert model.gate1 is not None
    assert model.gate2 is not None
    embedded, dense = (tensor.requires_grad_() for tensor in batch_for(model, 20))
    gate = model.gate1(embedded, dense)
    assert gate.shape == (20, model.inputs.input_width)
    assert gate.min() > 0
    assert gate.max() < 2
    assert torch.equal(model.gate2(embedded, dense), torch.ones(1, model.inputs.input_width))
    gate.sum().backward()
    assert embedded.grad is not None
    assert dense.grad is not None
    heard = torch.zeros(embedded.shape[1], dtype=torch.bool)
    heard[model.inputs.columns("fs1")] = True
    assert torch.equal(embedded.grad.any(0), heard)
    assert dense.grad.any(0).tolist() == [False, True, False]  # price, age, hour
    # Numbers of the input and numbers of the gate have separate vectors, and both are the embedding's.
    assert [tuple(p.shape) for p in model.embedding_parameters()] == [(3, 3), (1, 3)]


def test_a_context_becomes_a_view_in_registry_order():
    config = FinalMLP.Config(fs1_context=("item", "age", "user"), fs2_context=("age",))
    views = FinalMLP.views(config, ("user", "item", "genres"))
    assert views == {"main": ("user", "item", "genres"), "fs1": ("user", "item")}
    without = config.model_copy(update={"use_gates": False})
    assert FinalMLP.views(without, ("user", "item")) == {"main": ("user", "item")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"fs2_context": ("user", "items")},
            "fs2_context must name features of the registry; found 'items'; the closest one is 'item'",
        ),
        (
            {"fs1_context": ("prices",)},
            "fs1_context must name features of the registry; found 'prices'; the closest one is 'price'",
        ),
        (
            {"mlp1_hidden": (16,), "mlp2_hidden": (24,), "num_heads": 5},
            "num_heads must divide the last widths of both streams, 16 and 24; found 5; choose one of 1, 2, 4, 8",
        ),
    ],
)
def test_a_mistake_in_the_settings_is_one_clear_line(settings: dict, message: str):
    with pytest.raises(InputError) as error:
        build("final_mlp", settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "settings",
    [{"mlp1_hidden": ()}, {"mlp2_hidden": (0,)}, {"mlp1_dropout": 1.0}, {"mlp2_dropout": -0.1}, {"num_heads": 0}],
)
def test_settings_out_of_range_are_refused(settings: dict):
    with pytest.raises(ValidationError):
        FinalMLP.Config.model_validate(settings)
