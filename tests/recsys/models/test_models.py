"""One contract for every entry of MODELS: a new model is tested here by its line in that dict alone."""

import math

import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from features.errors import InputError
from recsys.models import MODELS
from recsys.models.layers import ModelInputs, fold_batch_norm
from tests.recsys.networks import EQUAL_WIDTHS, LAYOUTS, Layout, batch_for, build, lay_out

CASES = [(name, {}, layout) for name in MODELS for layout in LAYOUTS] + [
    ("final_mlp", {"use_gates": False}, "both"),
    ("final_mlp", {"fs1_context": ("age", "item", "price"), "fs2_context": ("user",)}, "both"),
    ("final_mlp", {"fs2_context": ("age",), "gate_hidden": ()}, "only numbers"),
    ("final_net", {"num_blocks": 1}, "both"),
    ("final_net", {"use_field_gate": False, "interaction": "sum", "block1_hidden": (7,)}, "both"),
    ("dcn_v2", {"low_rank": 2}, "both"),
    ("dcn_v2", {"structure": "stacked"}, "only tokens"),
]
LINEAR = {"logistic_regression"}
"""Models of which a feature's part in the logit does not depend on any other feature."""
every_case = pytest.mark.parametrize(("name", "settings", "layout"), CASES)
every_model = pytest.mark.parametrize("name", MODELS)


# The contract


@every_case
def test_one_logit_a_row(name: str, settings: dict, layout: str):
    model = build(name, settings, layout)
    for rows in (2, 7):
        logits = model(*batch_for(model, rows))
        assert logits.shape == (rows,)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
    assert model.eval()(*batch_for(model, 0)).shape == (0,)


@every_case
def test_eval_is_deterministic_and_a_batch_is_its_rows(name: str, settings: dict, layout: str):  # A8
    model = build(name, settings, layout)
    model(*batch_for(model, 50, seed=1))  # so that batch norm has statistics
    model.eval()
    embedded, dense = batch_for(model, 9)
    logits = model(embedded, dense)
    assert torch.equal(logits, model(embedded, dense))
    one_by_one = torch.cat([model(embedded[i : i + 1], dense[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(one_by_one, logits, rtol=1e-5, atol=1e-6)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(embedded[order], dense[order]), logits[order], rtol=1e-5, atol=1e-6)


@every_case
def test_gradient_reaches_every_parameter_and_column(name: str, settings: dict, layout: str):
    # In eval mode: while training, batch norm subtracts the bias before it, whose gradient is then rightly zero.
    model = build(name, settings, layout).eval()
    with torch.no_grad():  # away from a start at zero, where a linear model passes nothing down
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    embedded, dense = (tensor.requires_grad_() for tensor in batch_for(model, 64))
    F.binary_cross_entropy_with_logits(model(embedded, dense), (torch.arange(64) % 3 == 0).float()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent
    for tensor in (embedded, dense):
        assert tensor.shape[1] == 0 or (tensor.grad is not None and tensor.grad.any(0).all())


@every_case
def test_the_seed_decides_the_start_and_a_state_dict_carries_the_rest(name: str, settings: dict, layout: str):
    model, again, other = (build(name, settings, layout, seed) for seed in (3, 3, 4))
    start = model.state_dict()
    assert all(torch.equal(tensor, start[key]) for key, tensor in again.state_dict().items())
    for key, tensor in other.state_dict().items():
        is_drawn = len(start[key].unique()) > 1  # a bias, a gate or a linear model starts at one value throughout
        assert torch.equal(tensor, start[key]) != is_drawn, key
    inputs = batch_for(model, 50)
    model(*inputs)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(*inputs), other.eval()(*inputs))


@every_case
def test_embedding_parameters_are_those_of_numeric_features(name: str, settings: dict, layout: str):
    model = build(name, settings, layout)
    found = model.embedding_parameters()
    assert len({id(p) for p in found}) == len(found)
    assert {id(p) for p in found} <= {id(p) for p in model.parameters()}
    assert {p.shape[0] for p in found} <= set(range(1, len(model.inputs.dense_features) + 1))
    # All of them: without them, no number is heard.
    with torch.no_grad():
        for parameter in found:
            parameter.zero_()
    embedded, dense = batch_for(model.eval(), 5)
    assert torch.equal(model(embedded, dense), model(embedded, 1 - dense))


@every_model
def test_settings_are_closed_frozen_documented_and_survive_json(name: str):
    config_class = MODELS[name].Config
    config = config_class()
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        config_class.model_validate({"hidden_size": [400]})
    with pytest.raises(ValidationError, match="frozen"):
        config.hidden = (1,)  # pyright: ignore[reportAttributeAccessIssue]
    assert all(field.description for field in config_class.model_fields.values())
    assert config_class.model_validate_json(config.model_dump_json()) == config


@every_model
def test_the_main_view_holds_every_token_feature_in_order(name: str):
    cls = MODELS[name]
    for features in [("user", "item"), ("item", "user"), ()]:
        views = cls.views(cls.Config(), features)
        assert next(iter(views)) == "main"
        assert views["main"] == features
        assert all(names and set(names) <= set(features) for view, names in views.items() if view != "main")


@every_model
def test_columns_laid_out_for_another_config_are_refused(name: str):
    cls = MODELS[name]
    inputs = ModelInputs(views={"main": {"user": 2}, "fs1": {"user": 2}})
    with pytest.raises(InputError, match=r"must hold the views \{'main': \('user',\).*\}; found .*fs1"):
        cls(cls.Config(), inputs)
    model = build(name).eval()
    embedded, dense = batch_for(model, 4)
    with pytest.raises(AssertionError):
        model(embedded[:, :-1], dense)


def test_these_models_need_fields():
    assert {"final_net", "deep_fm", "fm"} <= set(EQUAL_WIDTHS)


@pytest.mark.parametrize("name", EQUAL_WIDTHS)
def test_features_of_unequal_width_are_refused_where_a_model_needs_fields(name: str):
    cls = MODELS[name]
    config = cls.Config()
    with pytest.raises(
        InputError, match=r"needs features of equal width; found 'item' of 4 columns, next to others of 3; .*probes"
    ):
        cls(config, lay_out(cls, config, LAYOUTS["both"]._replace(tokens={"user": 3, "item": 4})))


@every_case
def test_the_loss_is_the_mean_of_the_weighted_log_losses(name: str, settings: dict, layout: str):
    model = build(name, {**settings, "num_blocks": 1} if name == "final_net" else settings, layout).eval()
    inputs, labels, weights = batch_for(model, 5), [1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 0.5, 0.0, 3.0, 2.0]
    terms = []
    for logit, label in zip(model(*inputs).tolist(), labels, strict=True):
        probability = 1 / (1 + math.exp(-logit))
        terms.append(-math.log(probability if label else 1 - probability))
    weighted = [weight * term for weight, term in zip(weights, terms, strict=True)]
    assert model.loss(*inputs, torch.tensor(labels)).item() == pytest.approx(sum(terms) / 5, rel=1e-4)
    loss = model.loss(*inputs, torch.tensor(labels), torch.tensor(weights))
    assert loss.item() == pytest.approx(sum(weighted) / 5, rel=1e-4)


@every_model
def test_who_can_learn_an_exclusive_or(name: str):
    """Two features of two values each: no linear model does better than chance, ln 2; every other model must."""
    cls = MODELS[name]
    torch.manual_seed(5)
    inputs = lay_out(cls, cls.Config(), Layout({"left": 3, "right": 3}, ()))
    model, table = cls(cls.Config(), inputs), nn.Embedding(2, inputs.embedded_width)
    is_right = torch.arange(inputs.embedded_width) // 3 % 2  # views one after another, each "left" then "right"
    values = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).repeat(16, 1)  # [64, 2]
    labels, dense = (values[:, 0] != values[:, 1]).float(), torch.zeros(64, 0)

    def loss() -> torch.Tensor:
        embedded = table.weight[values[:, is_right], torch.arange(inputs.embedded_width)]  # [64, W]
        return model.loss(embedded, dense, labels)

    optimizer = torch.optim.Adam([*model.parameters(), *table.parameters()], lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    model.eval()
    if name in LINEAR:
        assert loss().item() >= math.log(2) - 1e-5
    else:
        assert loss().item() < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings(
    # Raised inside torch.export of torch 2.13, about a class that this project does not touch.
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning"
)
@pytest.mark.parametrize("is_folded", [False, True])
@every_case
def test_onnx_scores_as_torch_does(name: str, settings: dict, layout: str, is_folded: bool):
    model = build(name, settings, layout)
    for seed in range(3):
        model(*batch_for(model, 50, seed=seed))
    model.eval()
    program = torch.onnx.export(
        fold_batch_norm(model) if is_folded else model,
        batch_for(model, 4),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")}, {0: torch.export.Dim.AUTO}),
        input_names=["embedded", "dense"],
        output_names=["logit"],
        verbose=False,
    )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    assert [node.name for node in session.get_inputs()] == ["embedded", "dense"]
    for rows in (1, 4, 33):
        embedded, dense = batch_for(model, rows, seed=rows)
        (logits,) = session.run(["logit"], {"embedded": embedded.numpy(), "dense": dense.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(embedded, dense), rtol=1e-5, atol=1e-5)
