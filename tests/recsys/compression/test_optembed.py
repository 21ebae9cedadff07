"""OptEmbed as a whole: what it is without its masks, which rows it may remove, and that a search leaves no trace."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from features.layout import TableLayout
from features.registry import FeatureRegistry
from recsys.batch import Batch, evaluating
from recsys.compression.base import Budget, PruningContext, SlotLookups
from recsys.compression.fitness import Fitness, masked_by, recalibrated
from recsys.compression.importance import least_error_mask
from recsys.compression.optembed import OptEmbed, row_margins
from recsys.compression.supernet import OptEmbedSupernet
from recsys.dataset import jagged
from recsys.embedding.mask import Mask
from recsys.embedding.optimizers import TableOptimizer
from recsys.embedding.table import EmbeddingConfig
from recsys.ranker import Ranker, build_ranker, model_config

REGISTRY = FeatureRegistry.of(features={"a": "categorical", "b": "categorical"})
CONFIG = model_config("final_mlp", {"mlp1_hidden": [8], "mlp2_hidden": [4], "num_heads": 2})


def ranker(num_rows: int = 60, probes: int = 1) -> tuple[Ranker, TableOptimizer]:
    embedding = EmbeddingConfig(num_rows=num_rows, width=4, probes=probes)
    return build_ranker(REGISTRY, "final_mlp", CONFIG, embedding, seed=1, learning_rate=0.01)


def batch(num_examples: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(40, (2, num_examples), generator=generator)
    ones = torch.ones(num_examples, dtype=torch.int64).numpy()
    sparse = jagged(["a", "b"], [(tokens[0].numpy(), ones), (tokens[1].numpy() + 100, ones)], num_examples)
    labels = torch.randint(2, (num_examples,), generator=generator).float()
    return Batch(sparse_features=sparse, dense_features=torch.zeros(num_examples, 0), labels=labels)


def test_o7_j1_without_masks_the_supernet_is_the_plain_model_bit_for_bit():
    plain, _ = ranker()
    supernet, optimizer = ranker()
    OptEmbed(OptEmbed.Config(alpha=0.0, supernet=True), Budget(1000, "fp32")).install_supernet(supernet, optimizer)
    gate = supernet.embedding.gate
    assert isinstance(gate, OptEmbedSupernet)
    gate.thresholds.data.fill_(-torch.inf)
    with evaluating(plain), evaluating(supernet):
        assert torch.equal(plain(batch()), supernet(batch()))
    full = Mask.full(plain.embedding.layout)
    with evaluating(plain):
        before = plain(batch())
        with masked_by(plain, full):
            assert torch.equal(plain(batch()), before)


@pytest.mark.parametrize("threshold", [0.0, 0.8, 1.2, 9.0])
def test_j3_a_row_goes_where_all_its_readers_mask_it(threshold):
    layout = TableLayout.of(REGISTRY, num_rows=30, width=4, probes=1, views={"main": ("a", "b")})
    gate = OptEmbedSupernet(layout, alpha=0.0, norm="l1", scale=2.0).eval()
    gate.thresholds.data.copy_(torch.tensor([threshold, 0.5]))
    table = torch.rand(30, 4, generator=torch.Generator().manual_seed(1)) * 1.5
    reads = [SlotLookups(torch.arange(0, 20), torch.ones(20)), SlotLookups(torch.arange(10, 25), torch.ones(15))]
    kept = row_margins(table, reads, gate) > 0
    for row in range(30):
        norm = float(table[row].sum()) / 2
        thresholds = ([threshold] if row < 20 else []) + ([0.5] if 10 <= row < 25 else [])
        assert bool(kept[row]) == any(norm > one for one in thresholds)


def test_j2_removable_rows_grow_with_every_threshold():
    layout = TableLayout.of(REGISTRY, num_rows=30, width=4, probes=1, views={"main": ("a", "b")})
    gate = OptEmbedSupernet(layout, alpha=0.0, norm="l1", scale=1.0)
    table = torch.rand(30, 4, generator=torch.Generator().manual_seed(1))
    reads = [SlotLookups(torch.arange(0, 20), torch.ones(20)), SlotLookups(torch.arange(10, 30), torch.ones(20))]
    before = torch.ones(30, dtype=torch.bool)
    for thresholds in ([0.0, 0.0], [1.0, 0.0], [1.0, 1.5], [2.5, 1.5], [9.0, 9.0]):
        gate.thresholds.data.copy_(torch.tensor(thresholds))
        kept = row_margins(table, reads, gate) > 0
        assert bool((kept <= before).all())
        before = kept
    assert not before.any()


def test_j5_where_no_row_is_shared_each_reader_decides_alone():
    layout = TableLayout.of(REGISTRY, num_rows=20, width=4, probes=1, views={"main": ("a", "b")})
    gate = OptEmbedSupernet(layout, alpha=0.0, norm="l1", scale=1.0)
    gate.thresholds.data.copy_(torch.tensor([2.0, 1.0]))
    table = torch.rand(20, 4, generator=torch.Generator().manual_seed(1))
    reads = [SlotLookups(torch.arange(0, 10), torch.ones(10)), SlotLookups(torch.arange(10, 20), torch.ones(10))]
    kept = row_margins(table, reads, gate) > 0
    norms = table.abs().sum(dim=1)
    assert kept.tolist() == [*(norms[:10] > 2.0).tolist(), *(norms[10:] > 1.0).tolist()]


def test_b9_batch_norm_is_taken_anew_and_put_back():
    one, _ = ranker()
    one.eval()
    before = copy.deepcopy(one.state_dict())
    batches = [batch(64), batch(32)]
    norm = next(part for part in one.modules() if isinstance(part, torch.nn.BatchNorm1d))
    seen: list[torch.Tensor] = []
    handle = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    with recalibrated(one, batches):
        assert norm.running_mean is not None
        expected = torch.stack([values.mean(dim=0) for values in seen]).mean(dim=0)
        assert torch.allclose(norm.running_mean, expected, atol=1e-6)
        assert not norm.training or norm.momentum is None
    handle.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.state_dict().items())


class Repeated:
    """The same batches in every epoch."""

    num_rows = 64 * 3

    def num_batches(self, batch_size: int, *, seed: int = 0, epoch: int = 0, shuffle: bool = False) -> int:
        return 3

    def batches(
        self, batch_size: int, *, shuffle: bool = False, seed: int = 0, epoch: int = 0, start: int = 0
    ) -> Iterator[Batch]:
        return iter([batch(64), batch(63), batch(62)][start:])


def test_a_candidate_is_trained_before_it_is_judged_and_leaves_no_trace(tmp_path):
    one, _ = ranker()
    one.eval()
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    gather_fn = one.embedding.gather_fn
    budget = Budget(10**6, "fp32")
    context = PruningContext(one, [], Repeated(), Repeated(), lambda mask: 0, budget, 1, tmp_path)
    full = Mask.full(one.embedding.layout)
    none = Mask(full.row_widths * 0, full.slot_widths)
    fitness = {num_steps: Fitness(context, num_steps) for num_steps in (0, 3)}
    assert fitness[3](full) == fitness[3](full) != fitness[0](full)
    assert fitness[3](none) == fitness[0](none) == 0.5  # nothing to tell examples apart by
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.state_dict().items())
    assert one.embedding.gate is None
    assert one.embedding.gather_fn == gather_fn


def test_a_candidate_is_judged_by_the_better_of_before_and_after(tmp_path, monkeypatch):
    """The steps are taken in between: the second score is that of other weights, which are gone afterwards."""
    one, _ = ranker()
    context = PruningContext(one.eval(), [], Repeated(), Repeated(), lambda mask: 0, Budget(10**6, "fp32"), 1, tmp_path)
    fitness, full = Fitness(context, 3), Mask.full(one.embedding.layout)
    for scores in ([0.8, 0.7], [0.6, 0.7]):
        script, tables = iter(scores), list[Tensor]()

        def scored(script: Iterator[float] = script, tables: list[Tensor] = tables) -> float:
            tables.append(one.embedding.table.detach().clone())
            return next(script)

        monkeypatch.setattr(fitness, "_auc", scored)
        assert fitness(full) == max(scores)
        assert next(script, None) is None
        assert not torch.equal(*tables)
        assert torch.equal(one.embedding.table, tables[0])


def test_the_mask_of_least_error_prefers_what_is_read_often():
    one, _ = ranker(num_rows=4)
    table = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1], [3, 0, 0, 0], [2, 2, 2, 2]])
    counts = torch.tensor([100, 1, 2, 0])
    reads = [SlotLookups(torch.arange(3), counts[:3]), SlotLookups(torch.arange(3), torch.zeros(3, dtype=torch.int64))]

    def context(num_bytes: int) -> PruningContext:
        def size(mask: Mask) -> int:
            return 4 * mask.num_cells + mask.num_rows_kept

        return PruningContext(one, reads, None, None, size, Budget(num_bytes, "fp32"), 1, None)  # pyright: ignore[reportArgumentType]

    slot_widths = torch.tensor([4, 4])
    kept = {size: least_error_mask(table, slot_widths, 2, context(size)).row_widths.tolist() for size in (17, 26, 60)}
    assert kept[17] == [4, 0, 0, 0]  # 200 in the error, for 17 bytes
    assert kept[26] == [4, 0, 2, 0]  # and 18 for 9 bytes more
    assert kept[60] == [4, 4, 2, 0]  # what row 2 holds beyond is zero, and row 3 is never read
