"""Clipping by the global norm, compared with torch's."""

import math

import pytest
import torch

from features.errors import InputError
from recsys.trainer import clip_global_norm


@pytest.mark.parametrize("max_norm", [0.5, 7.0, 1e3])
def test_clipping_agrees_with_torch(max_norm):
    generator = torch.Generator().manual_seed(3)
    grads = [torch.randn(*shape, generator=generator) for shape in ((5, 4), (7,), (1, 2, 3))]
    parameters = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    expected = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    assert clip_global_norm(grads, max_norm) == pytest.approx(expected, rel=1e-5)
    for parameter, grad in zip(parameters, grads, strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-5, atol=0)


def test_clipping_leaves_small_gradients_alone():
    grad = torch.tensor([0.3, -0.4])
    assert clip_global_norm([grad], 0.50001) == pytest.approx(0.5)
    assert grad.tolist() == torch.tensor([0.3, -0.4]).tolist()
    assert clip_global_norm([], 1.0) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clipping_reports_a_norm_that_is_not_finite_and_scales_nothing(bad):
    grads = [torch.tensor([3.0, bad]), torch.tensor([4.0])]
    assert not math.isfinite(clip_global_norm(grads, 1.0))
    assert (grads[0][0], grads[1][0]) == (3.0, 4.0)


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_clipping_refuses_no_norm(max_norm):
    with pytest.raises(InputError, match="max_norm must be above 0; found"):
        clip_global_norm([torch.ones(2)], max_norm)
