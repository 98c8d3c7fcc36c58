"""The Gram form of the normal equations against Jacobians made by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attacks import Observation, Transitions
from attacks.bayes.misfits import Received
from attacks.bayes.normal_equations import NormalEquations
from attacks.channel import Clipping
from attacks.gradients.linear_layers import dense_layers
from attacks.transitions import unflatten_state_action
from tests.attacks.conftest import Client, random_transitions


def problem(size: int, *, layer_norm: bool) -> tuple[Observation, Tensor]:
    client = Client.build(5, 2, hidden=16, layer_norm=layer_norm)
    for module in (client.model, client.target, client.frozen):
        module.double()
    observation = client.observe(random_transitions(size, seed=1))
    points = torch.randn(2, size, 8, generator=torch.Generator().manual_seed(2)).double()
    return observation, points


def decode(rows: Tensor, record: Tensor) -> Transitions:
    template = random_transitions(1).template(action_low=-1.0, action_high=1.0)
    state, action = unflatten_state_action(rows[:, :7], template)
    return Transitions(state, action, rows[:, 7], 0.9 * state, torch.zeros_like(rows[:, 7]))


def released(observation: Observation, flat: Tensor, clip: Clipping | None) -> Tensor:
    """The gradient that the records ``flat`` (b K,) give, as a differentiable vector."""
    size = observation.batch_size
    parameters = list(observation.parameters.values())
    total = torch.zeros(0)
    for row in flat.reshape(size, 1, -1):
        loss = observation.loss(observation.model, decode(row, torch.zeros(1)))
        grads = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        gradient = torch.cat([g.reshape(-1) for g in grads])
        if clip is not None:
            parts = [g.reshape(-1) for g in grads] if clip.per_tensor else [gradient]
            gradient = torch.cat([g * (clip.limit / g.norm()).clamp_max(1.0) for g in parts])
        total = gradient / size if total.numel() == 0 else total + gradient / size
    return total


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize(
    "clip", [None, Clipping(0.5, per_tensor=False), Clipping(0.2, per_tensor=True)]
)
@pytest.mark.parametrize("sparse", [False, True])
def test_normal_equations_agree_with_autograd(
    layer_norm: bool, clip: Clipping | None, sparse: bool
) -> None:
    observation, points = problem(2, layer_norm=layer_norm)
    layers = dense_layers(observation)
    assert layers is not None
    generator = torch.Generator().manual_seed(3)
    sent = {
        name: (torch.rand(1, *g.shape, generator=generator) < 0.3).double()
        for name, g in observation.gradient.items()
    }
    received = Received(
        {name: g[None] for name, g in observation.gradient.items()},
        {name: torch.rand(1, generator=generator).double() + 0.5 for name in observation.gradient},
        sent if sparse else None,
        () if clip is None else (clip,),
    )
    equations = NormalEquations(observation, layers, received, decode)
    values, normal = equations.value(points), equations.at(points)
    weight = torch.cat(
        [
            (received.precision[name] * (sent[name] if sparse else torch.ones_like(g[None])))
            .expand(1, *g.shape)
            .reshape(-1)
            for name, g in observation.gradient.items()
        ]
    )
    for index, point in enumerate(points.flatten(1)):
        jacobian = torch.autograd.functional.jacobian(
            lambda x: released(observation, x, clip), point
        )
        error = released(observation, point, clip).detach() - observation.flat_gradient()
        torch.testing.assert_close(values[index], 0.5 * (weight * error.square()).sum())
        torch.testing.assert_close(normal.gradient[index], jacobian.T @ (weight * error))
        torch.testing.assert_close(normal.hessian[index], jacobian.T @ (weight[:, None] * jacobian))


def test_laplace_misfit_and_its_derivatives() -> None:
    observation, points = problem(1, layer_norm=True)
    layers = dense_layers(observation)
    assert layers is not None
    scale = 0.3
    received = Received(
        {name: g[None] for name, g in observation.gradient.items()},
        {name: torch.ones(1).double() / scale**2 for name in observation.gradient},
        laplace=True,
    )
    equations = NormalEquations(observation, layers, received, decode)
    values, normal = equations.value(points), equations.at(points)
    for index, point in enumerate(points.flatten(1)):
        point.requires_grad_()
        error = released(observation, point, None) - observation.flat_gradient()
        misfit = error.abs().sum() / scale
        torch.testing.assert_close(values[index], misfit.detach())
        (slope,) = torch.autograd.grad(misfit, point)
        torch.testing.assert_close(normal.gradient[index], slope)
        jacobian = torch.autograd.functional.jacobian(
            lambda x: released(observation, x, None), point
        )
        torch.testing.assert_close(normal.hessian[index], jacobian.T @ jacobian / scale**2)
