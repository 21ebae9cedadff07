"""Both table optimisers behind their one interface: row-sparse Adam, and torchrec's fused row-wise Adagrad by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from features.errors import InputError
from features.layout import TableLayout
from features.registry import FeatureRegistry
from recsys.embedding.optimizers import FusedRowWiseAdagrad, TableOptimizer, build_table
from recsys.embedding.table import EmbeddingConfig, UnifiedEmbedding
from tests.recsys.conftest import FEATURES, REGISTRY, jagged, looked_up, random_bags, recorded

OPTIMIZERS = ("adam", "rowwise_adagrad")
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
LAYOUT = TableLayout.of(
    REGISTRY,
    num_rows=31,
    width=4,
    probes=2,
    views={"main": tuple(FEATURES), "fs1": ("words", "item"), "fs2": ("tags",)},
)
WEIGHTS = torch.linspace(-1, 1.5, LAYOUT.embedded_width)


def build(optimizer: str, layout: TableLayout = LAYOUT, **settings: Any) -> tuple[UnifiedEmbedding, TableOptimizer]:
    torch.manual_seed(3)
    config = EmbeddingConfig.model_validate({"optimizer": optimizer, **settings})
    return build_table(layout, config, settings.get("learning_rate", 0.1))


def take_step(embedding: UnifiedEmbedding, optimizer: TableOptimizer, seed: int) -> None:
    loss_of(embedding(jagged(random_bags(LAYOUT, 6, seed)))).backward()
    optimizer.step()


def loss_of(embedded: Tensor) -> Tensor:
    return (embedded.tanh() @ WEIGHTS).sum()


def dense_gradient(table: Tensor, seed: int) -> Tensor:
    leaf = table.detach().clone().requires_grad_()
    loss_of(looked_up(LAYOUT, leaf, random_bags(LAYOUT, 6, seed))).backward()
    assert leaf.grad is not None
    return leaf.grad


def test_one_state_format():
    """A run's weights load under either optimiser."""
    own, fused = build("adam")[0], build("rowwise_adagrad")[0]
    assert own.state_dict().keys() == fused.state_dict().keys() == {"collection.embedding_bags.unified.weight"}
    assert [name for name, parameter in fused.named_parameters() if parameter.requires_grad] == []
    fused.load_state_dict(own.state_dict())
    assert torch.equal(fused.table, own.table)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_fused_kernel_reads_what_the_own_code_reads(is_training: bool):
    own, fused = build("adam")[0], build("rowwise_adagrad")[0]
    fused.load_state_dict(own.state_dict())
    for seed in range(3):
        tokens = jagged(random_bags(LAYOUT, 9, seed))
        expected = own.train(is_training)(tokens)
        torch.testing.assert_close(fused.train(is_training)(tokens), expected, rtol=1e-6, atol=1e-7)


def test_fused_steps_are_row_wise_adagrad():
    """h_m += mean_j (g_mj + l2 w_mj)^2; w_m -= rate (g_m + l2 w_m) / (sqrt(h_m) + eps), on rows read alone."""
    embedding, optimizer = build("rowwise_adagrad", l2=0.3, learning_rate=0.05)
    table, sums = embedding.table.detach().clone(), torch.zeros(LAYOUT.num_rows)
    for seed in range(4):
        take_step(embedding, optimizer, seed)
        gradient = dense_gradient(table, seed)
        read = gradient.any(dim=1)
        gradient = torch.where(read[:, None], gradient + 0.3 * table, 0.0)
        sums += gradient.square().mean(dim=1)
        table -= 0.05 * gradient / (sums.sqrt() + 1e-8)[:, None]
        torch.testing.assert_close(embedding.table, table, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimizer.state_dict()["momentum"], sums, rtol=1e-5, atol=1e-6)


def test_adam_steps_are_dense_adam():
    embedding, optimizer = build("adam", l2=0.3, learning_rate=0.05)
    table = embedding.table.detach().clone().requires_grad_()
    reference = torch.optim.Adam([table], lr=0.05, weight_decay=0.3)
    for seed in range(4):  # too few steps for any row to miss more than are replayed exactly
        take_step(embedding, optimizer, seed)
        table.grad = dense_gradient(table, seed)
        reference.step()
    optimizer.flush()
    torch.testing.assert_close(embedding.table, table.detach(), rtol=1e-5, atol=1e-6)


def test_rows_that_lag_catch_up_before_they_are_read():
    embedding, optimizer = build("adam", l2=0.3, learning_rate=0.01)
    for seed in range(1, 30):
        take_step(embedding, optimizer, seed)
    records = recorded(embedding)
    embedding(jagged(random_bags(LAYOUT, 6)))
    ((rows, w),) = records
    optimizer.flush()
    assert torch.equal(embedding.table[rows], w)


def test_gradients_may_be_scaled_in_place():
    embedding, optimizer = build("adam", l2=0)
    loss_of(embedding(jagged(random_bags(LAYOUT, 6)))).backward()
    (gradient,) = optimizer.gradients()
    expected = dense_gradient(embedding.table, 0)
    gradient.mul_(0.5)
    optimizer.step()
    # Adam's first moment after one step: (1 - beta1) times the gradient.
    torch.testing.assert_close(optimizer.state_dict()["m"], 0.1 * 0.5 * expected)
    assert optimizer.gradients() == []
    assert build("rowwise_adagrad")[1].gradients() == []


@every_optimizer
def test_the_learning_rate_counts_from_the_next_step_on(optimizer: str):
    (slow, slow_optimizer), (fast, fast_optimizer) = build(optimizer, l2=0), build(optimizer, l2=0)
    before = slow.table.detach().clone()
    assert slow_optimizer.learning_rate == pytest.approx(0.1)
    slow_optimizer.learning_rate = 0.01
    assert slow_optimizer.learning_rate == pytest.approx(0.01)
    for embedding, table_optimizer in ((slow, slow_optimizer), (fast, fast_optimizer)):
        take_step(embedding, table_optimizer, 0)
    torch.testing.assert_close(slow.table - before, (fast.table - before) / 10, rtol=1e-3, atol=1e-7)


@every_optimizer
def test_a_restored_optimizer_continues_bit_for_bit(optimizer: str):
    embedding, table_optimizer = build(optimizer, l2=0.2)
    for seed in range(3):
        take_step(embedding, table_optimizer, seed)
    table_optimizer.learning_rate = 0.02
    take_step(embedding, table_optimizer, 3)
    again, other_optimizer = build(optimizer, l2=0.2)
    again.load_state_dict({name: tensor.clone() for name, tensor in embedding.state_dict().items()})
    other_optimizer.learning_rate = table_optimizer.learning_rate
    other_optimizer.load_state_dict({name: tensor.clone() for name, tensor in table_optimizer.state_dict().items()})
    for seed in range(4, 8):
        for one, one_optimizer in ((embedding, table_optimizer), (again, other_optimizer)):
            take_step(one, one_optimizer, seed)
    table_optimizer.flush()
    other_optimizer.flush()
    assert torch.equal(embedding.table, again.table)
    found = other_optimizer.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in table_optimizer.state_dict().items())


@every_optimizer
def test_the_tables_own_rate_wins(optimizer: str):
    assert build(optimizer)[1].learning_rate == pytest.approx(0.1)
    config = EmbeddingConfig.model_validate({"optimizer": optimizer, "learning_rate": 0.25})
    assert build_table(LAYOUT, config, 0.1)[1].learning_rate == pytest.approx(0.25)


def test_widths_of_the_fused_kernel():
    registry = FeatureRegistry.of(features={"a": "categorical"})
    layout = TableLayout.of(registry, num_rows=5, width=6, probes=1, views={"main": ("a",)})
    with pytest.raises(InputError, match="divisible by 4; found 6; set"):
        build("rowwise_adagrad", layout)
    assert isinstance(build("rowwise_adagrad")[1], FusedRowWiseAdagrad)
