"""Logistic regression, factorisation machine and DeepFM: each is the one before with something more."""

from itertools import combinations

import pytest
import torch
from torch import nn

from recsys.models import DeepFM, FactorizationMachine, LogisticRegression
from recsys.models.fm import pair_products
from recsys.models.layers import ModelInputs
from tests.recsys.networks import DENSE_WIDTH, LAYOUTS, batch_for, build, count

every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def test_logistic_regression_by_hand():
    inputs = ModelInputs(views={"main": {"user": 2, "item": 1}}, dense_features=("price", "age"), dense_width=5)
    model = LogisticRegression(LogisticRegression.Config(), inputs)
    assert count(model) == 1 + 2  # one weight per number, for any width at which networks embed it
    assert model.numeric is not None
    with torch.no_grad():
        model.bias.fill_(0.5)
        model.numeric.weight.copy_(torch.tensor([[10.0], [100.0]]))
    assert model(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[3.0, 5.0]])).tolist() == [0.5 + 7 + 30 + 500]


def test_factorisation_machine_by_hand():
    views = {"main": {"user": 2, "item": 2}, "linear": {"user": 2, "item": 2}}
    inputs = ModelInputs(views=views, dense_features=("price",), dense_width=2)
    model = FactorizationMachine(FactorizationMachine.Config(), inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    # Vectors user (1, 2), item (3, 4) and price 5 * (1, 1); weights 0.25 + 0.25, 0.5 + 0.5 and 5 * 1.
    embedded = torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.25, 0.25, 0.5, 0.5]])
    assert model(embedded, torch.tensor([[5.0]])).tolist() == [1 + (0.5 + 1 + 5) + (3 + 8) + (5 + 10) + (15 + 20)]


@pytest.mark.parametrize("num_fields", [1, 2, 7])
def test_pair_products_are_those_of_the_loop(num_fields: int):
    fields = torch.randn(5, num_fields, 4, generator=torch.Generator().manual_seed(1)).double()
    expected = [
        sum(float(row[f] @ row[g]) for f, g in combinations(range(num_fields), 2)) for row in fields
    ]  # nothing for one field
    torch.testing.assert_close(pair_products(fields), torch.tensor(expected, dtype=torch.float64))


@every_layout
def test_without_vectors_a_factorisation_machine_is_a_logistic_regression(layout: str):
    model = build("fm", layout=layout)
    tokens = dict.fromkeys(LAYOUTS[layout].tokens, DENSE_WIDTH)
    inputs = ModelInputs(views={"main": tokens}, dense_features=LAYOUTS[layout].dense)
    linear = LogisticRegression(LogisticRegression.Config(), inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    linear.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("input.")})
    if model.input.numeric is not None:
        nn.init.zeros_(model.input.numeric.weight)
    embedded, dense = batch_for(model, 6)
    width = model.inputs.width("main")
    embedded[:, :width] = 0
    torch.testing.assert_close(model(embedded, dense), linear(embedded[:, width:], dense))


@every_layout
def test_deep_fm_is_a_factorisation_machine_and_an_mlp(layout: str):
    deep, shallow = build("deep_fm", {"hidden": (8, 4)}, layout).eval(), build("fm", layout=layout, seed=4).eval()
    own = {key: value for key, value in deep.state_dict().items() if not key.startswith(("mlp.", "output."))}
    shallow.load_state_dict(own)
    inputs = batch_for(deep, 6)
    expected = shallow(*inputs) + deep.mlp(deep.input(*inputs)) @ deep.output.weight[0]
    torch.testing.assert_close(deep(*inputs), expected)


def test_the_weights_are_a_view_of_their_own():
    for cls in (FactorizationMachine, DeepFM):
        assert cls.views(cls.Config(), ("user", "item")) == {"main": ("user", "item"), "linear": ("user", "item")}
        assert cls.views(cls.Config(), ()) == {"main": ()}
