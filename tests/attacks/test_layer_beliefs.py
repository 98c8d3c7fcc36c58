"""A convolution's inputs and active units under noise: Gaussian solutions, odds and rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attacks.pixels.active_rows import settle_rows
from attacks.pixels.conv_chains import ConvLayer
from attacks.pixels.layer_beliefs import InputSystem, LayerBelief, Usual
from attacks.pixels.received_layers import ReceivedLayer

NOISE = 0.02


class Case:
    """A convolution, what it saw, and its gradient as received under noise."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.layer = ConvLayer(
            name="weight",
            inputs=(3, 10, 10),
            outputs=(12, 8, 8),
            weight=0.3 * normal(12, 27),
            bias=0.1 * normal(12),
            kernel=(3, 3),
            stride=(1, 1),
            padding=(0, 0),
            dilation=(1, 1),
        )
        self.samples = 1.0 + 0.5 * normal(40, 3, 10, 10)
        self.inputs = 1.0 + 0.5 * normal(1, 3, 10, 10)
        self.formed = self.layer.linear(self.inputs)
        self.deltas = normal(1, 12, 8, 8)
        sent = (self.deltas * (self.formed > 0)).flatten(2)[0]
        gradient = sent @ self.layer.patches(self.inputs)[0].T + NOISE * normal(12, 27)
        bias = sent.sum(dim=1) + NOISE * normal(12)
        self.received = ReceivedLayer(self.layer, gradient, bias, NOISE, NOISE)
        self.heard = self.formed.relu() + NOISE * normal(1, 12, 8, 8)

    def belief(self) -> LayerBelief:
        before = Usual.of(self.layer.linear(self.samples))
        return LayerBelief.of(self.heard, torch.full_like(self.heard, NOISE), self.deltas, before)


def test_inputs_are_as_near_to_the_true_ones_as_their_standard_deviation_says() -> None:
    case, generator = Case(), torch.Generator().manual_seed(1)
    belief = case.belief()
    usual = Usual.of(case.samples)
    equations = case.received.equations(belief, usual.mean, torch.zeros(12, dtype=torch.float64))
    system = InputSystem.of(case.layer, equations, belief, usual)
    mean = system.likeliest(usual.mean)
    std = system.std(mean, generator)
    errors = (mean - case.inputs) / std
    assert 0.5 < float(errors.square().mean().sqrt()) < 1.5
    assert float(std.mean()) < 0.15 * float(usual.spread.mean())


def test_equations_without_noise_hold_for_the_true_inputs() -> None:
    case = Case()
    belief = case.belief()
    sure = LayerBelief(
        case.formed.relu(),
        belief.std,
        belief.deltas,
        belief.spread,
        belief.log_odds,
        (case.formed > 0).double(),
        belief.strain,
    )
    shifted = ReceivedLayer(
        case.layer,
        2 * case.received.gradient + 0.5 * _sent(case)[:, None],
        None,
        2 * NOISE,
        2 * NOISE,
        2.0,
        0.5,
    )
    equations = shifted.equations(sure, case.inputs, torch.zeros(12, dtype=torch.float64))
    left = equations.apply(case.layer.patches(case.inputs)) - equations.values
    assert float((left / equations.std[:, None]).square().mean().sqrt()) < 1.5


def _sent(case: Case) -> Tensor:
    return (case.deltas * (case.formed > 0)).sum(dim=(0, 2, 3))


def test_rows_tell_units_whose_outputs_leave_it_open() -> None:
    case = Case()
    belief = case.belief()
    truth = case.formed > 0
    open_ = (belief.chance > 0.01) & (belief.chance < 0.99)
    assert int(open_.sum()) >= 5
    chance, doubt = settle_rows(case.received, belief, case.inputs)
    loud = case.deltas.abs() * case.inputs.square().mean().sqrt() > 2 * NOISE
    assert torch.equal(chance[loud] > 0.5, truth[loud])
    assert float(doubt.max()) < 2 * NOISE


def test_a_background_is_active_or_not_as_a_whole() -> None:
    case = Case()
    case.inputs[:, :, 2:] = case.inputs[:, :, 2:3, :1]
    formed = case.layer.linear(case.inputs)
    background = torch.zeros_like(formed, dtype=torch.bool)
    background[:, 0, 2:] = True
    case.layer.bias[0] -= formed[0, 0, 4, 4] - 0.1 * NOISE
    formed = case.layer.linear(case.inputs)
    assert bool((formed[background] > 0).all())
    sent = (case.deltas * (formed > 0)).flatten(2)[0]
    gradient = sent @ case.layer.patches(case.inputs)[0].T
    case.received = ReceivedLayer(case.layer, gradient, sent.sum(dim=1), NOISE, NOISE)
    case.heard = formed.relu()
    belief = case.belief()
    assert not bool(belief.active[background].any())
    chance, _ = settle_rows(case.received, belief, case.inputs)
    assert bool((chance[background] > 0.5).all())


def test_a_row_that_no_units_explain_counts_as_noise() -> None:
    case = Case()
    case.received.gradient[3] += 40 * NOISE
    _, doubt = settle_rows(case.received, case.belief(), case.inputs)
    assert float(doubt[3]) > 40 * NOISE
    assert float(doubt[torch.arange(12) != 3].max()) < 2 * NOISE


def test_what_is_usual_is_taken_out_of_what_was_heard() -> None:
    usual = Usual(torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    heard, std = torch.tensor([0.8]).double(), torch.tensor([0.5]).double()
    variance = 1 / (1 / std**2 + 1)
    found, left = usual.without(variance * heard / std**2, variance.sqrt())
    torch.testing.assert_close((found, left), (heard, std))


@pytest.mark.parametrize(("usual", "likely"), [(1.0, 0.5), (-1.0, 0.1)])
def test_where_outputs_say_little_what_is_usual_decides(usual: float, likely: float) -> None:
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    before = Usual(usual * one, 0.5 * one)
    chance = float(LayerBelief.of(0.3 * one, 10 * one, one, before).chance)
    assert (chance > likely) == (usual > 0)
    prior = 0.5 * math.erfc(-usual / 0.5 / math.sqrt(2))
    assert chance == pytest.approx(prior, abs=0.02)


def test_outputs_far_from_what_inputs_give_are_less_certain() -> None:
    case = Case()
    belief = case.belief()
    off = case.formed.clone()
    off[0, 0, 0, 0] += 30 * NOISE
    strained = belief.strained(off)
    changed = strained.loose / belief.loose
    assert float(changed[0, 0, 0, 0]) > 5 or not bool(belief.active[0, 0, 0, 0])
    assert float(changed.median()) == 1.0


def test_what_deviates_is_no_longer_held_to_what_is_usual() -> None:
    mean, spread = torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    wider = Usual(mean, spread).around(torch.tensor([[0.0, 1.0, 100.0]]).double()).spread[0]
    assert wider[:2].tolist() == [1.0, 1.0]
    assert float(wider[2]) > 30
