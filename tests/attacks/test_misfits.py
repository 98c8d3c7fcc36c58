"""Misfits from inner products against those of formed gradients, and the law that forgives rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.bayes.formed_misfit import FormedMisfit
from attacks.bayes.layer_derivatives import LayerDerivatives
from attacks.bayes.misfit_choice import misfit_to
from attacks.bayes.misfits import GramMisfit, Received, StudentMisfit
from attacks.gradients.linear_layers import LinearLayer

GROUPS, SIZE, WIDTH, INPUTS, OUTPUTS = 4, 3, 5, 7, 6


def layer() -> LayerDerivatives:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(GROUPS, SIZE, *shape, generator=generator, dtype=torch.float64)

    return LayerDerivatives(
        LinearLayer(nn.Linear(INPUTS, OUTPUTS), "weight", "bias"),
        draw(INPUTS),
        draw(WIDTH, INPUTS),
        draw(OUTPUTS),
        draw(WIDTH, OUTPUTS),
    )


def received(std: float, *, laplace: bool = False) -> Received:
    """Two targets, each of two of the groups."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"weight": (2, OUTPUTS, INPUTS), "bias": (2, OUTPUTS)}
    return Received(
        {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()},
        {n: torch.tensor([1.0, 2.0], dtype=torch.float64) / std**2 for n in shapes},
        laplace=laplace,
    )


def test_inner_products_give_the_misfit_of_formed_gradients() -> None:
    ours, formed = GramMisfit(received(0.1)), FormedMisfit(received(0.1))
    torch.testing.assert_close(ours.value(layer()), formed.value(layer()))
    for a, b in zip(ours.equations(layer()), formed.equations(layer()), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("std", "laplace", "kind"),
    [(1e-3, False, GramMisfit), (1e-9, False, FormedMisfit), (1e-3, True, FormedMisfit)],
)
def test_gradients_are_formed_where_rounding_or_the_law_asks_for_it(
    std: float, laplace: bool, kind: type
) -> None:
    assert isinstance(misfit_to(received(std, laplace=laplace)), kind)


def test_the_student_law_has_its_slope_and_lies_under_its_quadratic() -> None:
    misfit, at = StudentMisfit(received(0.3)), layer()
    value, (slope, hessian) = misfit.value(at), misfit.equations(at)
    generator = torch.Generator().manual_seed(2)
    step = torch.randn(GROUPS, SIZE, WIDTH, generator=generator, dtype=torch.float64)

    def moved(length: float) -> Tensor:
        x = at.x + length * torch.einsum("gik,gikn->gin", step, at.dx)
        d = at.d + length * torch.einsum("gik,gikm->gim", step, at.dd)
        return misfit.value(LayerDerivatives(at.layer, x, at.dx, d, at.dd))

    flat = step.flatten(1)
    along = (slope * flat).sum(dim=1)
    torch.testing.assert_close((moved(1e-6) - moved(-1e-6)) / 2e-6, along, rtol=1e-5, atol=1e-5)
    bend = torch.einsum("gi,gij,gj->g", flat, hessian, flat)
    # Changes of the gradient beyond first order are the layer's, not the law's: take a short step.
    length = 1e-2
    assert (moved(length) <= value + length * along + 0.55 * length**2 * bend).all()


def test_a_wrong_row_costs_the_student_law_little() -> None:
    at, law = layer(), received(0.1)
    wrong = {name: value.clone() for name, value in law.gradient.items()}
    wrong["weight"][:, 2] += 100.0
    spoilt = Received(wrong, law.precision)
    plain = GramMisfit(spoilt).value(at) - GramMisfit(law).value(at)
    forgiving = StudentMisfit(spoilt).value(at) - StudentMisfit(law).value(at)
    assert (forgiving < 1e-3 * plain).all()
