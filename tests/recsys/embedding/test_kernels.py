"""The compiled loops against numpy and torch, and on any number of threads."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.embedding import catch_up_kernel, kernels
from recsys.embedding.active_rows import gather
from recsys.embedding.catch_up import Settings, catch_up

QUICK = settings(max_examples=40, deadline=None, database=None)


@QUICK
@given(st.data())
def test_sorting_agrees_with_numpy(data: st.DataObject):
    num_rows = data.draw(st.sampled_from([1, 2, 3, 2**11, 2**11 + 1, 10**6, 2**31]))
    rows = np.array(data.draw(st.lists(st.integers(0, num_rows - 1), max_size=40)), dtype=np.int64)
    found = kernels.sort_rows(rows, num_rows)
    distinct, inverse, counts = np.unique(rows, return_inverse=True, return_counts=True)
    assert found.rows.tolist() == distinct.tolist()
    assert found.inverse.tolist() == inverse.tolist()
    assert found.order.tolist() == np.argsort(rows, kind="stable").tolist()
    assert np.diff(found.starts).tolist() == counts.tolist()


@pytest.mark.parametrize("width", [1, 3, 4, 16])
def test_gathered_rows_and_their_gradient_are_those_of_an_embedding(width: int):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, width, generator=generator)
    rows = torch.randint(0, 50, (400,), generator=generator)
    weights = torch.randn(400, width, generator=generator)
    leaves: list[tuple[torch.Tensor, torch.Tensor]] = []

    def leaf(distinct: torch.Tensor) -> torch.Tensor:
        leaves.append((distinct, table[distinct].requires_grad_()))
        return leaves[-1][1]

    values = gather(rows, 50, leaf)
    (values * weights).sum().backward()
    reference = table.clone().requires_grad_()
    expected = F.embedding(rows, reference)
    (expected * weights).sum().backward()
    assert torch.equal(values, expected)
    assert reference.grad is not None
    ((distinct, w),) = leaves
    torch.testing.assert_close(w.grad, reference.grad[distinct], rtol=1e-5, atol=1e-5)


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _caught_up(num_rows: int, width: int, decay: float, *, is_torch: bool = False) -> list[torch.Tensor]:
    """w, m and v of rows that lagged by 0 to 2,000 steps, caught up by the kernel or in torch."""
    generator = torch.Generator().manual_seed(1)
    now = 5_000
    table = torch.randn(num_rows, width, generator=generator) * 0.1
    m = torch.randn(num_rows, width, generator=generator) * 1e-3
    v = torch.rand(num_rows, width, generator=generator) * 1e-5
    missed = (2_000 ** torch.rand(num_rows, generator=generator)).int() - 1
    last_step = now - missed
    last_step[::7], m[::7], v[::7] = 0, 0, 0  # never read
    adam = Settings(1e-3, decay, 0.9, 0.999, 1e-8)
    if is_torch:
        block = [table, m, v]
        catch_up((table, m, v), (now - last_step).int(), now, adam)
        return block
    block = [torch.empty(num_rows, width) for _ in range(3)]
    rows, number = np.arange(num_rows), np.float32
    arrays = [tensor.numpy() for tensor in (table, m, v, last_step)]
    settings = (number(adam.learning_rate), number(decay), tuple(map(number, (0.9, 0.1, 0.001))), number(adam.eps))
    corrections = catch_up_kernel.bias_corrections(0.9, 0.999)
    kernel = catch_up_kernel.gather_rows(width)
    kernels.in_pieces(kernel, num_rows, rows, *arrays, now, *(part.numpy() for part in block), corrections, *settings)
    return block


@pytest.mark.parametrize("decay", [0.0, 1e-5, 0.05])
@pytest.mark.parametrize(("num_rows", "width"), [(5_000, 4), (300, 16), (40, 70), (100, 1)])
def test_the_kernel_catches_up_as_torch_does(num_rows: int, width: int, decay: float):
    compiled, plain = (_caught_up(num_rows, width, decay, is_torch=is_torch) for is_torch in (False, True))
    torch.testing.assert_close(compiled[0], plain[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(compiled[1], plain[1], rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(compiled[2], plain[2], rtol=1e-3, atol=1e-9)


@pytest.mark.usefixtures("_threads")
def test_the_number_of_threads_changes_nothing():
    results = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        results.append(_caught_up(5_000, 4, 0.05))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_tables_of_bias_corrections():
    corrections = catch_up_kernel.bias_corrections(0.9, 0.999)
    for steps in (0.5, 1.0, 7.5, 400.0):
        entry = int(2 * steps)
        assert corrections.first[entry] == pytest.approx(1 - 0.9**steps, rel=1e-6)
        assert corrections.second[entry] == pytest.approx(1 - 0.999**steps, rel=1e-6)
        assert corrections.ratio[entry] == pytest.approx((1 - 0.999**steps) ** 0.5 / (1 - 0.9**steps), rel=1e-6)
    assert corrections.second[-1] == corrections.root[-1] == corrections.ratio[-1] == 1.0


def test_an_exception_in_a_piece_is_not_lost():
    def kernel(start: int, stop: int) -> None:
        raise ValueError(f"{start} to {stop}")

    with pytest.raises(ValueError, match="0 to"):
        kernels.in_pieces(kernel, 10_000)
