"""The one table against a plain loop: invariants C1 to C10 of feature multiplexing, lists, and the row gradient.

C1..C10 are those of Coleman et al., "Unified Embedding", NeurIPS 2023, as numbered in the project's notes.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from features.encode import encode
from features.hashing import MISSING_TOKEN, rows_of_tokens
from features.layout import TableLayout
from features.registry import FeatureRegistry
from recsys.dataset import batch_of
from recsys.embedding.active_rows import ActiveRows
from recsys.embedding.optimizers import AdamTable, build_table
from recsys.embedding.table import EmbeddingConfig, UnifiedEmbedding, initialise
from tests.recsys.conftest import (
    FEATURES,
    LAYOUT,
    REGISTRY,
    embedding_of,
    jagged,
    looked_up,
    random_bags,
    recorded,
    row,
)

tokens_64 = st.integers(0, 2**64 - 1)


def columns_of(layout: TableLayout, embedded: Tensor) -> dict[tuple[str, str], Tensor]:
    """Output columns by (view, feature)."""
    names = [(view, feature) for view, widths in layout.view_widths.items() for feature in widths]
    widths = [width for widths in layout.view_widths.values() for width in widths.values()]
    return dict(zip(names, embedded.split(widths, dim=1), strict=True))


# Rows: two implementations and the contract


@given(st.lists(tokens_64, min_size=1, max_size=20), st.lists(tokens_64, min_size=1, max_size=3), st.data())
@settings(deadline=None)
def test_torch_and_numpy_read_the_same_rows(tokens: list[int], salts: list[int], data: st.DataObject):
    num_rows = data.draw(st.one_of(st.integers(1, 2**31), st.sampled_from([1, 2, 3, 2**31 - 1, 2**31])))
    tokens_array, salts_array = np.array(tokens, dtype=np.uint64), np.array(salts, dtype=np.uint64)
    expected = rows_of_tokens(tokens_array, salts_array[:, None], num_rows)
    found = rows_of_tokens(
        torch.from_numpy(tokens_array.view(np.int64)), torch.from_numpy(salts_array.view(np.int64))[:, None], num_rows
    )
    assert np.array_equal(found.numpy(), expected)
    assert 0 <= found.min() <= found.max() < num_rows


@given(tokens_64, st.sampled_from(LAYOUT.slots))
@settings(deadline=None, max_examples=50)
def test_a_slot_reads_the_row_of_the_contract(token: int, slot: Any):
    tokens, salts = np.array([token], dtype=np.uint64), np.array([slot.salt], dtype=np.uint64)
    found = rows_of_tokens(torch.from_numpy(tokens.view(np.int64)), torch.from_numpy(salts.view(np.int64)), 37).item()
    assert found == row(LAYOUT, slot.view, slot.feature, slot.probe, token)


# The output


@pytest.mark.parametrize("is_training", [True, False])
def test_output_is_that_of_plain_loops(is_training: bool):
    embedding = embedding_of(LAYOUT).train(is_training)
    bags = random_bags(LAYOUT, 23)
    assert any(not bag for bag in bags["tags"])
    assert any(len(bag) > 1 for bag in bags["tags"])
    embedded = embedding(jagged(bags))
    # C1: probes times width a feature, views one after another, registry order inside a view.
    assert embedded.shape == (23, 3 * ((3 + 2 + 12 + 1) + (12 + 1) + 2))
    assert list(columns_of(LAYOUT, embedded)) == [
        ("main", "user"),
        ("main", "tags"),
        ("main", "item"),
        ("main", "words"),
        ("fs1", "item"),
        ("fs1", "words"),
        ("fs2", "tags"),
    ]
    torch.testing.assert_close(embedded, looked_up(LAYOUT, embedding.table, bags), rtol=1e-6, atol=1e-7)
    assert embedded.requires_grad == is_training


def test_the_order_of_the_batch_does_not_matter():
    embedding, bags = embedding_of(LAYOUT), random_bags(LAYOUT, 5)
    turned = {feature: bags[feature] for feature in reversed(bags)}
    assert torch.equal(embedding(jagged(bags)), embedding(jagged(turned)))


def test_scalars_alone():
    registry = FeatureRegistry.of(features={"b": "categorical", "a": {"type": "categorical", "probes": 1}})
    layout = TableLayout.of(registry, num_rows=11, width=2, probes=3, views={"main": ("a", "b"), "fs1": ("a",)})
    embedding, bags = embedding_of(layout), random_bags(layout, 7)
    torch.testing.assert_close(embedding(jagged(bags)), looked_up(layout, embedding.table, bags), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["categorical", "categorical_list"])
@pytest.mark.parametrize("num_examples", [1, 4])
def test_one_feature(kind: str, num_examples: int):
    registry = FeatureRegistry.of(features={"a": kind})
    layout = TableLayout.of(registry, num_rows=5, width=1, probes=1, views={"main": ("a",)})
    embedding, bags = embedding_of(layout), random_bags(layout, num_examples, seed=3)
    torch.testing.assert_close(embedding(jagged(bags)), looked_up(layout, embedding.table, bags))


def test_no_token_feature():
    registry = FeatureRegistry.of(features={"price": {"type": "numeric", "transform": "none"}})
    layout = TableLayout.of(registry, num_rows=5, width=2, probes=1, views={"main": ()})
    embedding, table_optimizer = build_table(layout, EmbeddingConfig(num_rows=5, width=2, probes=1), 0.1)
    batch = batch_of(encode(pl.DataFrame({"price": [1.0, 2.0]}), registry), registry)
    assert embedding(batch.sparse_features).shape == (2, 0)
    table_optimizer.step()
    assert table_optimizer.gradients() == []


@pytest.mark.parametrize("is_training", [True, False])
def test_a_batch_without_any_token_is_zeros(is_training: bool):
    registry = FeatureRegistry.of(features={"tags": "categorical_list"})
    layout = TableLayout.of(registry, num_rows=5, width=2, probes=2, views={"main": ("tags",)})
    embedding, table_optimizer = build_table(layout, EmbeddingConfig(num_rows=5, width=2, probes=2), 0.1)
    embedded = embedding.train(is_training)(jagged({"tags": [[], [], []]}))
    assert torch.equal(embedded, torch.zeros(3, 4))
    if is_training:
        embedded.sum().backward()
        table_optimizer.step()
        # The step counts all the same: dense Adam would have moved every row.
        assert isinstance(table_optimizer, AdamTable)
        assert table_optimizer.num_steps == 1


def test_null_and_empty_lists_differ_as_the_encoding_says():
    registry = FeatureRegistry.of(features={"tags": {"type": "categorical_list", "pooling": "sum"}})
    layout = TableLayout.of(registry, num_rows=97, width=2, probes=1, views={"main": ("tags",)})
    raw = pl.DataFrame({"tags": [None, [], [None], ["a", None]]}, schema={"tags": pl.List(pl.String)})
    embedding = embedding_of(layout).eval()
    null, empty, missing, both = embedding(batch_of(encode(raw, registry), registry).sparse_features)
    row_of_missing = embedding.table[row(layout, "main", "tags", 0, MISSING_TOKEN)]
    row_of_a = embedding.table[row(layout, "main", "tags", 0, xxhash.xxh3_64_intdigest(b"a"))]
    assert torch.equal(null, row_of_missing)
    assert torch.equal(missing, row_of_missing)
    assert torch.equal(empty, torch.zeros(2))
    torch.testing.assert_close(both, row_of_a + row_of_missing)


# Invariants of sharing


@given(st.permutations(list(FEATURES)), st.lists(st.sampled_from(["x", "y", "z"]), unique=True), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_other_features_leave_a_features_columns_as_they_were(order: list[str], more: list[str], seed: int):
    """C2, in the output: the scheme of TFRS, whose salts are positions, fails this."""
    features = {**dict.fromkeys(more, "categorical"), **{name: FEATURES[name] for name in order}}
    registry = FeatureRegistry.of(seed=5, features=features)
    views = {"main": tuple(features), "fs1": ("words", "item", *more), "fs2": ("tags",)}
    layout = TableLayout.of(registry, num_rows=37, width=3, probes=3, views=views)
    before, after = embedding_of(LAYOUT), embedding_of(layout)
    bags = random_bags(LAYOUT, 6, seed)
    expected = columns_of(LAYOUT, before(jagged(bags)))
    bags |= {name: bags["user"] for name in more}
    found = columns_of(layout, after(jagged({name: bags[name] for name in features})))
    for name, columns in expected.items():
        assert torch.equal(found[name], columns)


def test_the_same_value_reads_unrelated_rows_in_each_slot():
    """C3: two slots agree on a value's row with probability 1/M, not by construction."""
    registry = FeatureRegistry.of(features={"a": "categorical", "b": "categorical"})
    layout = TableLayout.of(registry, num_rows=50, width=1, probes=2, views={"main": ("a", "b"), "fs1": ("a",)})
    tokens = torch.arange(20_000)
    salts = torch.from_numpy(np.array([slot.salt for slot in layout.slots], dtype=np.uint64).view(np.int64))
    rows = rows_of_tokens(tokens, salts[:, None], 50)
    for one, other in itertools.combinations(rows, 2):
        assert abs((one == other).double().mean().item() - 1 / 50) < 5 * (0.02 * 0.98 / 20_000) ** 0.5


def test_rows_of_a_slot_are_uniform_and_of_two_slots_independent():
    """C11, by chi-square: five standard deviations over the expectation of M - 1 (or M^2 - 1)."""
    salts = torch.from_numpy(np.array([slot.salt for slot in LAYOUT.slots[:4]], dtype=np.uint64).view(np.int64))
    rows = rows_of_tokens(torch.arange(40_000), salts[:, None], 20)
    pairs = [one * 20 + other for one, other in itertools.combinations(rows, 2)]
    for cells, buckets in [(one, 20) for one in rows] + [(pair, 400) for pair in pairs]:
        counts = torch.bincount(cells, minlength=buckets).double()
        expected = 40_000 / buckets
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert abs(chi_square - (buckets - 1)) < 5 * (2 * (buckets - 1)) ** 0.5


def injective_layout() -> tuple[TableLayout, list[str]]:
    """A seed under which 3 x 8 values of 24 slots share no row."""
    for seed in range(1000):
        registry = FeatureRegistry.of(seed=seed, features=dict.fromkeys("abc", "categorical"))
        layout = TableLayout.of(registry, num_rows=199, width=2, probes=1, views={"main": ("a", "b", "c")})
        rows = {row(layout, "main", name, 0, token) for name in "abc" for token in range(8)}
        if len(rows) == 24:
            return layout, list("abc")
    raise AssertionError("no seed is injective")


def test_without_collisions_it_is_one_table_a_feature():
    """C7: with an injective code multiplexing is the collisionless model, trained alike, up to a row permutation."""
    layout, names = injective_layout()
    embedding, table_optimizer = build_table(layout, EmbeddingConfig(num_rows=199, width=2, probes=1, l2=0.01), 0.05)
    tables = nn.ParameterDict({name: torch.empty(8, 2) for name in names})
    for name in names:
        rows = [row(layout, "main", name, 0, token) for token in range(8)]
        tables[name].data.copy_(embedding.table[rows])
    optimizer = torch.optim.Adam(tables.parameters(), lr=0.05, weight_decay=0.01)
    theta = torch.linspace(-1, 1, 6)
    random = np.random.default_rng(2)
    for _ in range(12):
        # 24 examples read nearly every value, so that no row lags long enough for an approximate catch-up.
        values = torch.from_numpy(random.integers(0, 8, (3, 24)))
        labels = torch.from_numpy(random.integers(0, 2, 24)).float()
        bags = {name: [[int(v)] for v in values[k]] for k, name in enumerate(names)}
        embedded = embedding(jagged(bags))
        reference = torch.cat([tables[name][values[k]] for k, name in enumerate(names)], dim=1)
        torch.testing.assert_close(embedded, reference, rtol=1e-5, atol=1e-6)
        for output in (embedded, reference):
            F.binary_cross_entropy_with_logits(output @ theta, labels).backward()
        table_optimizer.step()
        optimizer.step()
        optimizer.zero_grad()


def test_memory_is_the_tables_alone():
    """C8: 4 M w bytes, for any features."""
    for registry in (REGISTRY, FeatureRegistry.of(features={"a": "categorical"})):
        names = tuple(feature.name for feature in registry.token_features)
        layout = TableLayout.of(registry, num_rows=1000, width=4, probes=2, views={"main": names})
        state = UnifiedEmbedding(layout).state_dict()
        assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
            "collection.embedding_bags.unified.weight": (1000, 4)
        }
        assert sum(tensor.nbytes for tensor in state.values()) == 4 * 1000 * 4


# Gradients


def dense_gradient(table: Tensor, active_rows: ActiveRows) -> Tensor:
    """The gradient of the whole table, which is zero but for the active rows."""
    assert active_rows.w.grad is not None
    gradient = torch.zeros_like(table)
    gradient[active_rows.rows] = active_rows.w.grad
    return gradient


def test_active_rows_are_distinct_and_hold_the_dense_gradient():
    embedding, bags = embedding_of(LAYOUT), random_bags(LAYOUT, 6)
    records = recorded(embedding)
    weights = torch.randn(LAYOUT.embedded_width, generator=torch.Generator().manual_seed(1))
    (embedding(jagged(bags)).tanh() @ weights).sum().backward()
    (active_rows,) = records
    rows = active_rows.rows
    assert torch.equal(rows, rows.unique())
    table = embedding.table.detach().clone().requires_grad_()
    (looked_up(LAYOUT, table, bags).tanh() @ weights).sum().backward()
    assert table.grad is not None
    torch.testing.assert_close(dense_gradient(embedding.table, active_rows), table.grad, rtol=1e-5, atol=1e-6)
    unread = torch.ones(LAYOUT.num_rows, dtype=torch.bool).index_fill(0, rows, False)
    assert not table.grad[unread].any()


def test_evaluation_leaves_no_trace():
    embedding, bags = embedding_of(LAYOUT), random_bags(LAYOUT, 4)
    records = recorded(embedding)
    embedding.eval()(jagged(bags))
    with torch.no_grad():
        embedding.train()(jagged(bags))
    assert records == []


@pytest.fixture
def single_layer() -> Callable[[int], tuple[UnifiedEmbedding, dict[str, Any], Tensor]]:
    """A single-layer model of three features on a crowded table: embedding, a batch, theta [T, w]."""

    def make(seed: int) -> tuple[UnifiedEmbedding, dict[str, Any], Tensor]:
        registry = FeatureRegistry.of(features=dict.fromkeys("abc", "categorical"))
        layout = TableLayout.of(registry, num_rows=6, width=5, probes=1, views={"main": ("a", "b", "c")})
        theta = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))
        return embedding_of(layout, seed), random_bags(layout, 40, seed, num_values=12), theta

    return make


@pytest.mark.parametrize("seed", range(3))
def test_row_gradient_is_the_closed_form(seed: int, single_layer: Callable[..., Any]):
    """C9: grad E_m = sum_t theta_t (sum_i r_i [h_t(x_it) = m]), so it lies in the span of the theta_t."""
    embedding, bags, theta = single_layer(seed)
    records = recorded(embedding)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, 40)).double()
    logits = (embedding(jagged(bags)).double() @ theta.double().flatten()) + 0.3
    F.binary_cross_entropy_with_logits(logits, labels, reduction="sum").backward()
    residuals = torch.sigmoid(logits.detach()) - labels
    expected = torch.zeros(6, 5, dtype=torch.float64)
    for t, name in enumerate("abc"):
        for example, (token,) in enumerate(bags[name]):
            expected[row(embedding.layout, "main", name, 0, token)] += theta[t].double() * residuals[example]
    gradient = dense_gradient(embedding.table, *records).double()
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    outside = torch.linalg.svd(theta.double()).Vh[3:]  # a basis of what is orthogonal to all theta_t
    assert (gradient @ outside.T).abs().max() < 1e-5


def test_readers_with_orthogonal_weights_do_not_affect_each_other(single_layer: Callable[..., Any]):
    """C10: with orthogonal theta an inter-feature collision does not move feature a's part of the logit."""
    embedding, bags, theta = single_layer(7)
    records = recorded(embedding)
    theta = torch.linalg.qr(theta.T).Q.T
    columns = columns_of(embedding.layout, embedding(jagged(bags)))
    (columns["main", "b"] @ theta[1] + columns["main", "c"] @ theta[2]).square().sum().backward()
    gradient = dense_gradient(embedding.table, *records)
    rows_of_a = {row(embedding.layout, "main", "a", 0, token) for (token,) in bags["a"]}
    assert all(gradient[m].norm() > 1e-3 for m in rows_of_a), "every row of a must be shared for this to say anything"
    before = embedding.table @ theta[0]
    embedding.table.sub_(0.1 * gradient)
    torch.testing.assert_close(embedding.table @ theta[0], before, rtol=0, atol=1e-6)


# How it starts


@pytest.mark.parametrize(("init", "std", "largest"), [("uniform", 0.1 / 12**0.5, 0.05), ("normal", 1e-4, 5e-4)])
def test_initial_rows(init: str, std: float, largest: float):
    torch.manual_seed(0)
    table = torch.empty(2000, 8)
    initialise(table, init)
    assert table.std().item() == pytest.approx(std, rel=0.03)
    assert 0.7 * largest < table.abs().max() <= largest
    assert abs(table.mean().item()) < 4 * std / 16_000**0.5
