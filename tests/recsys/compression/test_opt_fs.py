"""OptFS against its definition: the gates, their temperature, their gradients, and what is kept of a planted table."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from features.addressing import rows_of
from features.layout import TableLayout
from features.registry import FeatureRegistry
from recsys.compression import COMPRESSORS, Budget
from recsys.compression.opt_fs import GatedTable, OptFS, RowGate
from recsys.embedding.mask import Reads
from recsys.embedding.optimizers import build_table
from recsys.embedding.table import EmbeddingConfig, UnifiedEmbedding
from tests.recsys.compression.pruning_context import context_of
from tests.recsys.conftest import jagged

CONFIG = OptFS.Config(epochs=3, gamma=100.0, penalty=0.5, start=0.25, learning_rate=0.1)


def reads_of(rows: list[int]) -> Reads:
    """Reads of one slot."""
    return Reads(torch.tensor(rows), torch.zeros(len(rows), dtype=torch.int64), torch.arange(len(rows)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_and_gradients_are_those_of_the_formula():
    """v * sigmoid(t m) / sigmoid(m0), and penalty * sum sigmoid(t m) over all rows, read or not."""
    gate = RowGate(4, CONFIG)
    openness = [0.1, -0.02, 0.03, 0.0]
    gate.openness.data.copy_(torch.tensor(openness))
    gate.epoch.fill_(1)
    t = 10.0  # 100^(1 / 2)
    rows, values = [2, 0, 2], torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])
    gated = gate(values, reads_of(rows))
    for row, before, after in zip(rows, values.tolist(), gated.tolist(), strict=True):
        assert after == pytest.approx([v * sigmoid(t * openness[row]) / sigmoid(0.25) for v in before], rel=1e-5)
    upstream = torch.tensor([[1.0, -1.0], [0.3, 0.2], [2.0, 5.0]])
    ((gated * upstream).sum() + gate.penalty()).backward()
    assert gate.openness.grad is not None
    for row, found in enumerate(gate.openness.grad.tolist()):
        slope = t * sigmoid(t * openness[row]) * (1 - sigmoid(t * openness[row]))
        data = sum(float((values[k] * upstream[k]).sum()) / sigmoid(0.25) for k, read in enumerate(rows) if read == row)
        assert found == pytest.approx(slope * (data + 0.5), rel=1e-4)


def test_the_temperature_rises_by_powers_epoch_by_epoch_and_then_stays():
    gate = RowGate(1, CONFIG)
    temperatures = []
    for epoch in range(5):
        gate.epoch.fill_(epoch)
        temperatures.append(gate.temperature)
    assert temperatures == pytest.approx([1, 10, 100, 100, 100])
    assert RowGate(1, OptFS.Config(epochs=1, gamma=7.0)).temperature == 7.0


def test_gates_start_as_if_there_were_none():
    values = torch.randn(5, 3)
    for start in (-0.3, 0.0, 0.4):
        gate = RowGate(2, CONFIG.model_copy(update={"start": start}))
        torch.testing.assert_close(gate(values, reads_of([0, 1, 1, 0, 0])), values)


def table_and_gate() -> tuple[UnifiedEmbedding, GatedTable, RowGate]:
    """A small table with gates, as `install_supernet` leaves it."""
    registry = FeatureRegistry.of(features={"a": "categorical"})
    layout = TableLayout.of(registry, num_rows=6, width=2, probes=1, views={"main": ("a",)})
    torch.manual_seed(1)
    embedding, optimizer = build_table(layout, EmbeddingConfig(num_rows=6, width=2, probes=1, l2=0.0), 0.05)
    ranker: Any = SimpleNamespace(embedding=embedding)
    optimizer = COMPRESSORS["opt_fs"](CONFIG, Budget(1, "fp32")).install_supernet(ranker, optimizer)
    assert isinstance(optimizer, GatedTable)
    assert isinstance(embedding.gate, RowGate)
    return embedding.train(), optimizer, embedding.gate


TOKENS = (5, 9)


def rows_that_are_read(embedding: UnifiedEmbedding) -> list[int]:
    """Rows of the two tokens that the steps below show."""
    rows = rows_of(embedding.layout, None, "a", np.array(TOKENS, dtype=np.uint64)).ravel().tolist()
    assert len(set(rows)) == 2
    return rows


def take_steps(embedding: UnifiedEmbedding, optimizer: GatedTable, gate: RowGate, count: int) -> None:
    """Steps that ask what is read to be large, and nothing of the other rows but the penalty."""
    for _ in range(count):
        output = embedding(jagged({"a": [[token] for token in TOKENS]}))
        loss = (output - 3 * output.detach().sign()).square().sum() + gate.penalty()
        loss.backward()
        optimizer.step()


def test_a_flush_ends_an_epoch_and_a_state_goes_on_bit_for_bit():
    embedding, optimizer, gate = table_and_gate()
    take_steps(embedding, optimizer, gate, 3)
    optimizer.flush()
    assert int(gate.epoch) == 1
    other_embedding, other, other_gate = table_and_gate()
    other_embedding.load_state_dict(embedding.state_dict())
    other.load_state_dict({name: tensor.clone() for name, tensor in optimizer.state_dict().items()})
    assert int(other_gate.epoch) == 1
    take_steps(embedding, optimizer, gate, 3)
    take_steps(other_embedding, other, other_gate, 3)
    assert torch.equal(gate.openness, other_gate.openness)
    assert torch.equal(embedding.table, other_embedding.table)


def test_gates_that_bring_nothing_close():
    embedding, optimizer, gate = table_and_gate()
    before = gate.openness.detach().clone()
    take_steps(embedding, optimizer, gate, 20)
    read = rows_that_are_read(embedding)
    unread = [row for row in range(6) if row not in read]
    assert (gate.openness[unread] < before[unread]).all()
    assert gate.openness[read].min() > gate.openness[unread].max()


def test_the_networks_adam_does_not_see_the_gates():
    _, _, gate = table_and_gate()
    assert list(gate.parameters()) == []
    assert set(gate.state_dict()) == {"openness", "epoch"}
    assert COMPRESSORS["opt_fs"].has_supernet


def test_the_last_gates_decide_unless_told():
    keeps = [
        COMPRESSORS["opt_fs"](OptFS.Config.model_validate(settings), Budget(1, "fp32")).supernet_keeps
        for settings in ({}, {"rank_by": "best"})
    ]
    assert keeps == ["last", "best"]
    assert COMPRESSORS["optembed"].supernet_keeps == "best"


def test_what_is_kept_are_the_most_open_rows():
    gate = RowGate(50, CONFIG)
    gate.openness.data.copy_(torch.randn(50, generator=torch.Generator().manual_seed(2)))
    context = context_of([[(row, 1) for row in range(40)]], 50, 2_000)
    context.ranker.embedding.gate = gate
    mask = COMPRESSORS["opt_fs"](CONFIG, context.budget).build_mask(context)
    kept = torch.nonzero(mask.row_widths).flatten().tolist()
    ranked = sorted(range(40), key=lambda row: -float(gate.openness.detach()[row]))  # rows from 40 on are never read
    assert 0 < len(kept) < 40
    assert sorted(ranked[: len(kept)]) == kept
