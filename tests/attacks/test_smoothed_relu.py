"""Smoothed networks: the right average, wherever a ReLU is called, only inside the context."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.bayes.smoothed_relu import SmoothedReLU


def test_it_is_the_mean_over_logistic_noise_on_the_input() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    uniform = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    noise = uniform.logit()
    mean = (x + 0.3 * noise / noise.std()).clamp_min(0).mean(dim=0)
    with SmoothedReLU(0.3):
        assert torch.allclose(torch.relu(x), mean, atol=3e-3)
    assert torch.equal(torch.relu(x), x.clamp_min(0))


def test_modules_functions_and_methods_are_all_smoothed() -> None:
    x = torch.tensor([-0.1, 0.0, 0.1])
    calls = [nn.ReLU(), nn.functional.relu, torch.relu, lambda y: y.relu()]
    with SmoothedReLU(0.1):
        answers = [call(x) for call in calls]
    assert all(torch.equal(answers[0], answer) for answer in answers[1:])
    assert float(answers[0][1]) > 0.03


def test_a_narrow_width_is_a_relu_and_second_derivatives_are_finite() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with SmoothedReLU(1e-6):
        assert torch.allclose(torch.relu(x), x.clamp_min(0), atol=1e-6)
    with SmoothedReLU(0.2):
        assert torch.autograd.gradgradcheck(torch.relu, (x.clone().requires_grad_(),))


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_a_width_that_smooths_nothing_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="width"):
        SmoothedReLU(width)
