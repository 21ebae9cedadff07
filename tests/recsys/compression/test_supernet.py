"""OptEmbed's gate against the definitions of the paper, by hand-computed numbers and a plain loop.

The names O1 to O6 are those of the design's list of invariants.
"""

import math

import pytest
import torch

from features.layout import TableLayout
from recsys.compression.supernet import OptEmbedSupernet, Step, ThresholdSGD, WidthChoices, row_norms
from recsys.embedding.mask import Reads


def layout(probes: int = 1, width: int = 4, num_rows: int = 20) -> TableLayout:
    """Two features in one view, and the first once more in a second view."""
    views = {"main": {"a": probes, "b": probes}, "fs1": {"a": probes}}
    return TableLayout(num_rows=num_rows, width=width, seed=1, views=views, keys={"a": "a", "b": "b"}, pooling={})


def gate(one: TableLayout, alpha: float = 0.0, scale: float = 1.0, norm: str = "l1") -> OptEmbedSupernet:
    return OptEmbedSupernet(one, alpha=alpha, norm=norm, scale=scale)  # pyright: ignore[reportArgumentType]


def reads(num_examples: int, num_slots: int, num_rows: int = 20) -> Reads:
    """Every slot reads a row of every example, in reading order."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(num_rows, (num_examples * num_slots,), generator=generator)
    examples = torch.arange(num_examples).repeat_interleave(num_slots)
    return Reads(rows, torch.arange(num_slots).repeat(num_examples), examples)


def test_o1_nothing_is_masked_at_the_start():
    one = gate(layout()).eval()
    values = torch.randn(9, 4)
    assert torch.equal(one(values, reads(3, 3)), values)


def test_o2_masks_shrink_as_thresholds_rise_and_equality_is_masked():
    one, values, read = gate(layout()).eval(), torch.randn(60, 4), reads(20, 3)
    before = torch.ones(60, dtype=torch.bool)
    for threshold in (0.0, 0.5, 1.0, 3.0, 10.0):
        one.thresholds.data.fill_(threshold)
        kept = one(values, read).abs().sum(dim=1) > 0
        assert bool((kept <= before).all())
        before = kept
    assert not before.all()
    one.thresholds.data.fill_(2.0)
    assert one(torch.full((3, 4), 0.5), reads(1, 3)).abs().sum() == 0  # a norm of exactly 2


def test_o3_the_estimator_has_a_long_tail():
    points = [0.0, 0.1, 0.4, 0.7, 1.0, 1.01, -0.1, -0.4, -1.0, -1.01]
    x = torch.tensor(points, requires_grad=True)
    Step.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([2, 1.6, 0.4, 0.4, 0.4, 0, 1.6, 0.4, 0.4, 0])
    grid = torch.linspace(-1.5, 1.5, 300_001, dtype=torch.float64, requires_grad=True)
    Step.apply(grid).sum().backward()
    assert grid.grad is not None
    assert float(torch.trapezoid(grid.grad, grid.detach())) == pytest.approx(1.44, abs=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_o4_gradients_are_those_of_the_paper(scale):
    torch.manual_seed(1)
    one, read, alpha = gate(layout(), alpha=0.3, scale=scale).train(), reads(5, 3), 0.3
    one.thresholds.data.copy_(torch.tensor([0.8, 1.4, 0.2]))
    values = (torch.randn(15, 4) * 0.3).requires_grad_()
    upstream = torch.randn(15, 4)
    torch.manual_seed(2)
    loss = (one(values, read) * upstream).sum() + one.penalty()
    loss.backward()
    torch.manual_seed(2)
    prefix = one.prefix(read)
    expected_values, expected_thresholds = torch.zeros(15, 4), torch.zeros(3)
    for n in range(15):
        pair = [0, 1, 2][int(read.slots[n])]
        e, kept, g = values.detach()[n], prefix[n].float(), upstream[n]
        x = float(e.abs().sum() / scale - one.thresholds.detach()[pair])
        is_kept = 1.0 if x > 0 else 0.0
        slope = 0.0 if abs(x) > 1 else 0.4 if abs(x) > 0.4 else 2 - 4 * abs(x)
        through = float((g * kept * e).sum())
        expected_values[n] = is_kept * kept * g + slope * torch.sign(e) / scale * through
        expected_thresholds[pair] -= slope * through
    expected_thresholds -= alpha * torch.exp(-one.thresholds.detach())
    assert values.grad is not None
    assert one.thresholds.grad is not None
    assert torch.allclose(values.grad, expected_values, atol=1e-6)
    assert torch.allclose(one.thresholds.grad, expected_thresholds, atol=1e-6)


def test_o5_the_penalty_alone_raises_thresholds_logarithmically():
    class Nothing:
        learning_rate = 1.0

        def step(self) -> None:
            """No table."""

    one = gate(layout(), alpha=0.01)
    optimizer = ThresholdSGD(Nothing(), one, 0.01)  # pyright: ignore[reportArgumentType]
    for _ in range(2000):
        one.penalty().backward()
        optimizer.step()
    assert one.thresholds.tolist() == pytest.approx([math.log(1 + 1e-4 * 2000)] * 3, abs=1e-4)


@pytest.mark.parametrize("probes", [1, 2])
def test_o6_prefixes_are_uniform_over_a_readers_columns(probes):
    one, num_examples = layout(probes=probes), 8000
    drawn = WidthChoices(one, columns=1, may_drop=False).draw(num_examples)  # [B, S]
    columns = drawn.view(num_examples, 3, probes).sum(dim=2)
    largest = 4 * probes
    assert columns.min() == 1
    assert columns.max() == largest
    assert columns.double().mean(dim=0).tolist() == pytest.approx([(largest + 1) / 2] * 3, abs=0.15)
    for probe in range(1, probes):  # a probe is only begun when the one before is full
        first, second = drawn.view(num_examples, 3, probes)[..., probe - 1 : probe + 1].unbind(dim=2)
        assert bool((first[second > 0] == 4).all())
    assert abs(float(torch.corrcoef(columns.T.double())[0, 1])) < 0.05  # readers draw on their own


def test_o6_prefixes_are_nested_and_the_same_for_all_tokens_of_an_example():
    steps = WidthChoices(layout(probes=2), columns=3, may_drop=True)
    widths = torch.stack([steps.slot_widths(torch.tensor([choice] * 3)) for choice in range(int(steps.num_choices[0]))])
    assert bool((widths[1:] >= widths[:-1]).all())
    assert widths[0].tolist() == [0] * 6
    assert widths[-1].tolist() == [4] * 6
    one = gate(layout()).train()
    tokens = Reads(torch.arange(6), torch.zeros(6, dtype=torch.int64), torch.zeros(6, dtype=torch.int64))
    assert len(one.prefix(tokens).unique(dim=0)) == 1


def test_readers_have_thresholds_of_their_own():
    one = gate(layout()).eval()
    one.thresholds.data.copy_(torch.tensor([0.0, 5.0, 0.0]))
    kept = one(torch.ones(3, 4), reads(1, 3)).sum(dim=1)
    assert kept.tolist() == [4, 0, 4]


def test_the_gradient_of_an_empty_row_is_finite_under_both_norms():
    for norm in ("l1", "l2"):
        values = torch.zeros(2, 3, requires_grad=True)
        row_norms(values, norm).sum().backward()  # pyright: ignore[reportArgumentType]
        assert values.grad is not None
        assert values.grad.abs().sum() == 0
    assert row_norms(torch.tensor([[3.0, -4.0]]), "l1").item() == 7
    assert row_norms(torch.tensor([[3.0, -4.0]]), "l2").item() == 5
