"""One contract for every entry of MODELS, then FinalMLP's published parameter counts and invariants A1, A2, A4, A8.

A new model is tested here by its line in MODELS alone.
"""

import math
from typing import Any, NamedTuple

import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from features.errors import InputError
from recsys.layers import ModelInputs, fold_batch_norm
from recsys.models import MODELS, DualMLP, FinalMLP, LogisticRegression, Model, SingleMLP


class Layout(NamedTuple):
    """Features of an example; the widths differ, as the probes of a feature may."""

    tokens: dict[str, int]
    dense: tuple[str, ...]


LAYOUTS = {
    "both": Layout({"user": 6, "item": 4, "genres": 2}, ("price", "age", "hour")),
    "only tokens": Layout({"user": 6, "item": 4}, ()),
    "only numbers": Layout({}, ("price", "age")),
}
CASES = [(name, {}, layout) for name in MODELS for layout in LAYOUTS] + [
    ("final_mlp", {"use_gates": False}, "both"),
    ("final_mlp", {"fs1_context": ("age", "item", "price"), "fs2_context": ("user",)}, "both"),
    ("final_mlp", {"fs2_context": ("age",), "gate_hidden": ()}, "only numbers"),
]
LINEAR = {"logistic_regression"}
"""Models of which a feature's part in the logit does not depend on any other feature."""
every_case = pytest.mark.parametrize(("name", "settings", "layout"), CASES)
every_model = pytest.mark.parametrize("name", MODELS)


def lay_out(cls: type[Model], config: Any, layout: Layout) -> ModelInputs:
    """What the trainer does between `views` and the constructor."""
    views = cls.views(config, tuple(layout.tokens))
    widths = {view: {feature: layout.tokens[feature] for feature in names} for view, names in views.items()}
    return ModelInputs(views=widths, dense_features=layout.dense, dense_width=3)


def build(name: str, settings: dict[str, Any] | None = None, layout: str = "both", seed: int = 3) -> Model:
    cls = MODELS[name]
    config = cls.Config.model_validate(settings or {})
    torch.manual_seed(seed)
    return cls(config, lay_out(cls, config, LAYOUTS[layout]))


def batch_for(model: Model, rows: int, seed: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embedded = torch.randn(rows, model.inputs.embedded_width, generator=generator)
    return embedded, torch.randn(rows, len(model.inputs.dense_features), generator=generator)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


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
    model(*batch_for(model, 50, seed=1))  # so that batch norm has statistics of its own
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
    # A linear model starts at zero, whatever the seed.
    assert all(torch.equal(t, start[key]) for key, t in other.state_dict().items()) == (name in LINEAR)
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
    main = [p for p in found if p.shape[0] == len(model.inputs.dense_features)]
    assert len(main) == (1 if model.inputs.dense_features else 0)


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
        assert cls.views(cls.Config(), features) == {"main": features}


@every_model
def test_columns_laid_out_for_another_config_are_refused(name: str):
    cls = MODELS[name]
    inputs = ModelInputs(views={"main": {"user": 2}, "fs1": {"user": 2}})
    with pytest.raises(InputError, match=r"must hold the views \{'main': \('user',\)\}; found .*fs1"):
        cls(cls.Config(), inputs)
    model = build(name).eval()
    embedded, dense = batch_for(model, 4)
    with pytest.raises(AssertionError):
        model(embedded[:, :-1], dense)


@every_model
def test_who_can_learn_an_exclusive_or(name: str):
    """Four examples, two features: no linear model does better than chance, ln 2; every other model must."""
    cls = MODELS[name]
    torch.manual_seed(5)
    model = cls(cls.Config(), ModelInputs(views={"main": {"left": 4, "right": 4}}))
    signs = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]).repeat(16, 1)
    embedded, dense = signs.repeat_interleave(4, dim=1), torch.zeros(64, 0)  # [64, 2] -> [64, 2 * 4]
    labels = (signs.prod(1) < 0).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    for _ in range(40):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model.train()(embedded, dense), labels).backward()
        optimizer.step()
    loss = F.binary_cross_entropy_with_logits(model.eval()(embedded, dense), labels).item()
    if name in LINEAR:
        assert loss >= math.log(2) - 1e-6
    else:
        assert loss < 0.1


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


# Answers by hand


def test_logistic_regression_by_hand():
    inputs = ModelInputs(views={"main": {"user": 2, "item": 1}}, dense_features=("price", "age"), dense_width=5)
    model = LogisticRegression(LogisticRegression.Config(), inputs)
    assert count(model) == 1 + 2  # a weight a number, whatever the width at which networks embed one
    assert model.numeric is not None
    with torch.no_grad():
        model.bias.fill_(0.5)
        model.numeric.weight.copy_(torch.tensor([[10.0], [100.0]]))
    assert model(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[3.0, 5.0]])).tolist() == [0.5 + 7 + 30 + 500]


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


# FinalMLP


class Published(NamedTuple):
    """A FinalMLP log of reczoo/BARS: settings, field sizes with PAD and OOV, total of parameters."""

    settings: dict[str, Any]
    width: int
    num_tokens: int
    num_dense: int
    vocabulary: int
    context_vocabulary: int
    """Rows of the context features' own tables, both gates together."""
    parameters: int


def streams(mlp1: list[int], mlp2: list[int], heads: int, **more: Any) -> dict[str, Any]:
    return {"mlp1_hidden": mlp1, "mlp2_hidden": mlp2, "num_heads": heads, **more}


DENSE = tuple(f"dense_{i}" for i in range(13))
PUBLISHED = {
    "Criteo_x1": Published(
        streams([400] * 3, [1000], 200, gate_hidden=[800], fs1_context=DENSE, fs2_context=["token_5"]),
        10, 26, 13, 2_086_329, 23, 22_478_162,
    ),
    "Avazu_x1": Published(streams([400] * 3, [800], 10, gate_hidden=[800]), 10, 22, 0, 1_298_621, 0, 13_979_472),
    "MovielensLatest_x1": Published(streams([400], [800], 10, gate_hidden=[800]), 10, 3, 0, 90_242, 0, 1_040_902),
    "Frappe_x1": Published(
        streams([400], [100], 5, gate_hidden=[400], fs1_context=["token_0"], fs2_context=["token_1"]),
        10, 10, 0, 5_399, 956 + 4_084, 253_392,
    ),
    "Criteo_x4_001": Published(
        streams([1000] * 5, [500], 50, use_gates=False, mlp1_batch_norm=False, mlp2_batch_norm=False),
        16, 39, 0, 910_747, 0, 19_524_954,
    ),
    "Avazu_x4_001": Published(
        streams([2000] * 3, [500], 20, use_gates=False, mlp2_batch_norm=False),
        16, 24, 0, 3_750_999, 0, 69_046_986,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_of_the_six_published_runs(name: str):  # A1
    run = PUBLISHED[name]
    config = FinalMLP.Config.model_validate(run.settings)
    tokens = tuple(f"token_{i}" for i in range(run.num_tokens))
    views = {view: dict.fromkeys(names, run.width) for view, names in FinalMLP.views(config, tokens).items()}
    inputs = ModelInputs(views=views, dense_features=DENSE[: run.num_dense], dense_width=run.width)
    with torch.device("meta"):  # counted, never allocated
        network = count(FinalMLP(config, inputs))
    # What our gate without a context leaves out (A5): the context vector and the MLP, but for its last bias.
    no_context = sum(not context for context in config.contexts().values())
    dead = sum((run.width + 1) * hidden + hidden * inputs.input_width for hidden in config.gate_hidden) + run.width
    tables = run.width * (run.vocabulary + run.context_vocabulary)
    assert tables + network + no_context * dead == run.parameters


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
    # Numbers of the input and numbers of the gate have vectors of their own, and both are the embedding's.
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
