"""What several releases say of one transition's reward and next state.

A release tells the target y_t = r + gamma (1 - terminated) V_t(s') of every record in it, one
equation for r and s' together. Whoever knows V_t can turn it into the reward that a supposed next
state implies; with the targets of several rounds, only few next states imply the same reward each
time. This module knows losses as ``Observation`` does: it never sees y or V_t themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.observation import Observation
from attacks.transitions import Transitions


@dataclass(frozen=True, eq=False)
class Uses:
    """One record's appearances in several releases.

    Attributes:
        observations: the k releases.
        records: (k) the record as each release's attack answered it: the reward is the one that,
            with the answered next state and no end of the episode, gives its target y_t.
        errors: (k,) standard deviations of the rewards' errors, float64.
    """

    observations: Sequence[Observation]
    records: Transitions
    errors: Tensor

    def implied_rewards(self, next_state: Tensor, terminated: Tensor) -> Tensor:
        """Rewards (c, k) that c supposed next states (c, *state_shape) imply in each release.

        ``terminated`` (c,) says where the episode is supposed to end. Differentiable in the next
        states. The loss must be quadratic in the reward, as temporal-difference losses are.
        """
        columns = []
        for number, observation in enumerate(self.observations):
            own = self.records[number : number + 1]
            known, _ = _slope(observation, own)
            supposed = _supposed(own, next_state, terminated)
            slope, curvature = _slope(observation, supposed)
            columns.append(own.reward - (slope - known) / curvature)
        return torch.stack(columns, dim=1)


def _supposed(own: Transitions, next_state: Tensor, terminated: Tensor) -> Transitions:
    count = len(next_state)
    return Transitions(
        own.state.expand(count, *own.state.shape[1:]),
        own.action.expand(count, *own.action.shape[1:]),
        own.reward.expand(count),
        next_state,
        terminated,
    )


def _slope(observation: Observation, z: Transitions) -> tuple[Tensor, Tensor]:
    """First and second derivative (n,) of each record's loss with respect to its reward."""
    reward = z.reward.detach().clone().requires_grad_()
    records = Transitions(z.state, z.action, reward, z.next_state, z.terminated)
    loss = observation.loss(observation.model, records) * len(records)
    (slope,) = torch.autograd.grad(loss, reward, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), reward, retain_graph=True)
    return slope, curvature.detach()


@dataclass(frozen=True, eq=False)
class Expectation:
    """What the dynamics let expect of one record.

    Attributes:
        state, deviation: s' (1, *state_shape), and its coordinates' standard deviations (S,).
        reward, reward_std: r.
    """

    state: Tensor
    deviation: Tensor
    reward: float
    reward_std: float


def pin_down(uses: Uses, expected: Expectation) -> tuple[Tensor, float]:
    """The most probable next state (1, *state_shape) and reward, by a few Gauss-Newton steps.

    Both stay near what the dynamics let expect and meet the k targets, each in units of its
    standard deviation. The episode is taken to go on.
    """
    state, value = expected.state, expected.reward
    deviation = expected.deviation.double()
    scale = torch.cat([deviation, deviation.new_tensor([expected.reward_std])])
    cost, gradient, hessian = _normal_equations(uses, expected, scale, state, value)
    for _ in range(_GAUSS_NEWTON_STEPS):
        step = -scale * torch.linalg.solve(hessian, gradient)
        for length in _STEP_LENGTHS:
            moved = length * step
            tried = state + moved[:-1].reshape(state.shape).to(state), value + float(moved[-1])
            next_cost, gradient, hessian = _normal_equations(uses, expected, scale, *tried)
            if next_cost < cost:
                cost, (state, value) = next_cost, tried
                break
        else:
            break
    return state, value


def _normal_equations(
    uses: Uses, expected: Expectation, scale: Tensor, state: Tensor, reward: float
) -> tuple[float, Tensor, Tensor]:
    """Cost, gradient and Gauss-Newton Hessian in units of ``scale`` (S + 1,)."""
    point = state.detach().requires_grad_()
    implied = uses.implied_rewards(point, torch.zeros(1, dtype=state.dtype))[0]
    rows = [torch.autograd.grad(r, point, retain_graph=True)[0].flatten() for r in implied]
    # y_t is met where implied_t(s') equals r: residuals are linear in (s', r).
    jacobian = torch.stack([torch.cat([-row, row.new_ones(1)]) for row in rows]).double()
    residual = (reward - implied.detach().double()) / uses.errors
    offset = (state - expected.state).flatten().double()
    offset = torch.cat([offset, offset.new_tensor([reward - expected.reward])]) / scale
    whitened = jacobian * scale / uses.errors[:, None]
    cost = float(residual.square().sum() + offset.square().sum())
    identity = torch.eye(len(scale), dtype=torch.float64)
    return cost, whitened.T @ residual + offset, whitened.T @ whitened + identity


_GAUSS_NEWTON_STEPS = 6
_STEP_LENGTHS = (1.0, 0.3, 0.1, 0.03)
