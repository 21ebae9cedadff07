"""Lookups in torch for each kind of table: the same rows as in numpy, and the embeddings of a plain loop."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from features.addressing import addressing_of, rows_of
from features.errors import InputError
from features.hashing import MISSING_TOKEN
from recsys.embedding.optimizers import build_table
from recsys.embedding.table import EmbeddingConfig, UnifiedEmbedding
from recsys.ranker import Ranker, build_ranker, model_config
from tests.recsys.conftest import jagged, looked_up
from tests.rows import COUNTED, KINDS, REGISTRY, layout_and_vocabulary, probes_of, values_of_train

SEEN = {"user": {7, 9, 2**63 + 1}, "tags": {1, 2}, "item": {5, 2**64 - 1}, "words": {3}}
BAGS: dict[str, Any] = {
    "user": [[7], [2**63 + 1], [MISSING_TOKEN], [8]],
    "tags": [[1, 2, 1], [], [MISSING_TOKEN, 4], [2]],
    "item": [[5], [5], [2**64 - 1], [0]],
    "words": [[], [3, 3], [3, MISSING_TOKEN], [6, 2**63]],
}


@pytest.mark.parametrize("kind", KINDS)
@given(seen=values_of_train, more=st.lists(st.integers(0, 2**64 - 1), max_size=5), num_rows=st.integers(14, 2**31))
@settings(deadline=None, max_examples=40)
def test_torch_reads_the_rows_that_numpy_reads(kind: str, seen: dict[str, Any], more: list[int], num_rows: int):
    layout, vocabulary = layout_and_vocabulary(kind, seen, num_rows, probes=3)
    for name, values in seen.items():
        tokens = np.array([*values, *more, MISSING_TOKEN], dtype=np.uint64)
        addressing = addressing_of(layout, vocabulary, layout.positions_of(name))
        found = addressing.rows(torch.from_numpy(tokens.view(np.int64))[:, None], torch).T
        assert found.dtype == torch.int64
        assert np.array_equal(found.numpy(), rows_of(layout, vocabulary, name, tokens))


@pytest.mark.parametrize("fused", [None, {"learning_rate": 0.1, "eps": 1e-8, "weight_decay": 0.0}])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_a_loop(kind: str, is_training: bool, fused: dict[str, float] | None):
    """Gates' views, lists that are empty or repeat, missing and unseen values; torchrec's kernel reads the same."""
    layout, vocabulary = layout_and_vocabulary(kind, SEEN, width=4)  # the kernel takes no 3
    embedding = UnifiedEmbedding(layout, fused=fused, vocabulary=vocabulary).train(is_training)
    expected = looked_up(layout, embedding.table, BAGS, vocabulary)
    torch.testing.assert_close(embedding(jagged(BAGS)), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_on_the_device_of_the_tokens(kind: str):
    layout, vocabulary = layout_and_vocabulary(kind, SEEN)
    tokens = torch.zeros(3, 1, dtype=torch.int64, device="meta")
    assert addressing_of(layout, vocabulary, [0, 1]).rows(tokens, torch).device.type == "meta"


def test_a_collisionless_table_is_one_table_a_feature_and_view():
    """One table with offsets trains like separate tables, under dense Adam with L2."""
    layout, vocabulary = layout_and_vocabulary("collisionless", SEEN)
    config = EmbeddingConfig(kind="collisionless", width=3, probes=1, l2=0.01)
    embedding, optimizer = build_table(layout, config, 0.05, vocabulary)
    scalars = ("user", "item")
    tables = nn.ModuleDict({name: nn.Embedding(layout.ranges["main", name][1], 3) for name in scalars})
    for name in scalars:
        first, num_rows = layout.ranges["main", name]
        tables[name].weight.data.copy_(embedding.table[first : first + num_rows])
    adam = torch.optim.Adam(tables.parameters(), lr=0.05, weight_decay=0.01)
    theta = torch.linspace(-1, 1, 6)
    random = np.random.default_rng(2)
    # Position of a value in its own table: missing, unseen, then those of train in order.
    ids = {name: [MISSING_TOKEN, 77, *sorted(SEEN[name])] for name in scalars}
    columns = [k for name in scalars for k in range(3 * _slot(layout, name), 3 * _slot(layout, name) + 3)]
    for _ in range(12):
        picked = {name: random.integers(0, len(ids[name]), 24) for name in scalars}
        bags: dict[str, Any] = {name: [[ids[name][k]] for k in picked[name]] for name in scalars}
        bags |= {"tags": [[]] * 24, "words": [[]] * 24}
        embedded = embedding(jagged({name: bags[name] for name in layout.keys}))[:, columns]
        reference = torch.cat([tables[name](torch.from_numpy(picked[name])) for name in scalars], dim=1)
        torch.testing.assert_close(embedded, reference, rtol=1e-5, atol=1e-6)
        labels = torch.from_numpy(random.integers(0, 2, 24)).float()
        for output in (embedded, reference):
            F.binary_cross_entropy_with_logits(output @ theta, labels).backward()
        optimizer.step()
        adam.step()
        adam.zero_grad()


def _slot(layout: Any, feature: str) -> int:
    """Position of a feature in `main`."""
    return next(p for p, slot in enumerate(layout.slots) if (slot.view, slot.feature) == ("main", feature))


# From settings


def built(kind: str, vocabulary: Any, **settings: Any) -> Ranker:
    table = EmbeddingConfig.model_validate(
        {"kind": kind, "num_rows": 40, "width": 8, "probes": probes_of(kind, 1), **settings}
    )
    config = model_config(
        "final_mlp", {"mlp1_hidden": [6], "mlp2_hidden": [4], "num_heads": 2, "fs1_context": ["item"]}
    )
    return build_ranker(REGISTRY, "final_mlp", config, table, seed=1, learning_rate=0.1, vocabulary=vocabulary)[0]


def test_a_kind_decides_the_rows_of_a_ranker():
    vocabulary = {name: np.array(sorted(seen), dtype=np.uint64) for name, seen in SEEN.items()}
    rows = {kind: built(kind, vocabulary).embedding.table.shape[0] for kind in KINDS}
    # user 3, tags 2, item 2 and words 1 in main, item 2 for the gate; two more each.
    others = {"unified": 40, "hashed": 40, "quotient_remainder": 40, "robe": 40}
    assert rows == {**others, "collisionless": 10 + 5 * 2}
    unified = built("unified", None)
    assert all(
        torch.equal(a, b) for a, b in zip(unified.parameters(), built("hashed", vocabulary).parameters(), strict=True)
    )
    assert unified.embedding.layout.num_values == {}


def test_settings_that_a_kind_cannot_have():
    vocabulary = {name: np.array(sorted(seen), dtype=np.uint64) for name, seen in SEEN.items()}
    for kind in COUNTED:
        with pytest.raises(InputError, match=f"a {kind} table needs the vocabulary of the training data"):
            built(kind, None)
    with pytest.raises(
        InputError, match=r"one probe; found 4 of 'user'; set embedding.probes=1 and embedding.width=16"
    ):
        built("collisionless", vocabulary, probes=4)
    with pytest.raises(InputError, match=r"each feature and view; found 4; set embedding.num_rows to 5 or more"):
        built("hashed", vocabulary, num_rows=4)
