"""Coordinates in which the prior is N(0, I), and the posterior of a release in them.

A record is its state and action, whitened by the prior's covariance, and one number for its reward:
r = predicted reward + offset + deviation v. A gradient sees r and s' only through the target
y = r + gamma V(s'), so s' is fixed to the prior's prediction f(s, a) and r stands for y: the
deviation is that of the *equivalent reward*, the one that gives a known record's gradient when its
next state is replaced by the prediction. A discrete action belongs to the start of a search and
does not move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.bayes.misfit_choice import misfit_to
from attacks.bayes.misfits import Misfit, Received
from attacks.bayes.normal_equations import NormalEquations
from attacks.channel import Channel
from attacks.gradients.layer_calls import LayerCalls
from attacks.gradients.linear_layers import LinearLayer
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.transitions import Template, Transitions, flatten_state, unflatten_state_action

BLIND_REWARD = 100.0
"""Deviation of the equivalent reward for an adversary that knows no transition."""

SMALLEST_SHARE = 0.1
"""Of a sample's error that is left where the dynamics were fitted on it, at least."""

ROUNDING = 1e-6
"""Relative error of float32 gradients, the noise where the channel adds none."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Whitened records. ``K`` is the number of continuous (s, a) coordinates plus one.

    Attributes:
        template: shapes and ranges.
        prior: predicts next states and rewards.
        mean, factor: (K - 1,) and (K - 1, K - 1), a square root of the covariance.
        reward_offset, reward_std: of the equivalent reward around the predicted one.
    """

    template: Template
    prior: Prior
    mean: Tensor
    factor: Tensor
    reward_offset: float
    reward_std: float

    @classmethod
    def of(
        cls, observation: Observation, layers: Sequence[LinearLayer], prior: Prior
    ) -> Coordinates:
        """The coordinates of the adversary's prior for one model and loss."""
        template = observation.template
        like = next(iter(observation.parameters.values())).detach()
        mean, factor = prior.whitening()
        blind = cls(
            template=template,
            prior=prior,
            mean=mean.to(like),
            factor=factor.to(like),
            reward_offset=0.0,
            reward_std=BLIND_REWARD,
        )
        if prior.known is None:
            return blind
        known = prior.known.to(dtype=like.dtype, device=like.device)
        surprise = blind.equivalent_rewards(observation, layers, known) - prior.predicted_reward(
            known.state, known.action
        )
        # As large as on records that the dynamics were not fitted on.
        surprise = surprise / (1 - prior.leverage().to(surprise)).clamp_min(SMALLEST_SHARE)
        spread = float(surprise.std(correction=0))
        return replace(blind, reward_offset=float(surprise.mean()), reward_std=max(spread, 1e-3))

    @property
    def width(self) -> int:
        """K."""
        return len(self.mean) + 1

    def decode(self, rows: Tensor, action: Tensor | None) -> Transitions:
        """(n, K) to n non-terminal records; ``action`` (n,) where actions are discrete."""
        flat = self.mean + rows[:, :-1] @ self.factor.T
        if action is None:
            state, action = unflatten_state_action(flat, self.template)
        else:
            state = flat.reshape(-1, *self.template.state_shape)
        reward = self.prior.predicted_reward(state, action) + self.reward_offset
        reward = reward + self.reward_std * rows[:, -1]
        return Transitions(
            state, action, reward, self.prior.transition(state, action), torch.zeros_like(reward)
        )

    def encode(self, z: Transitions, reward: Tensor | None = None) -> Tensor:
        """n records to (n, K), with the equivalent rewards ``reward`` (n,) or the prior's guess."""
        flat = flatten_state(z.state, self.mean.dtype).to(self.mean)
        if not self.template.discrete:
            flat = torch.cat([flat, z.action.reshape(len(flat), -1).to(flat)], dim=1)
        whitened = torch.linalg.solve(self.factor.double(), (flat - self.mean).double().T).T
        last = torch.zeros(len(flat), 1, dtype=flat.dtype, device=flat.device)
        if reward is not None:
            surprise = reward - self.prior.predicted_reward(z.state.to(self.mean), z.action)
            last = ((surprise - self.reward_offset) / self.reward_std)[:, None]
        return torch.cat([whitened.to(flat), last.to(flat)], dim=1)

    def equivalent_rewards(
        self, observation: Observation, layers: Sequence[LinearLayer], z: Transitions
    ) -> Tensor:
        """Rewards (n,) with which records give their gradients though s' is f(s, a).

        The gradient is affine in the reward; the answer is its least-squares solution, from the
        layers' deltas alone, since all three evaluations share their inputs.
        """
        predicted = self.prior.transition(z.state, z.action)
        zero = torch.zeros_like(z.reward)

        def deltas(reward: Tensor, next_state: Tensor, terminated: Tensor) -> list[Tensor]:
            records = Transitions(z.state, z.action, reward, next_state, terminated)
            with LayerCalls([layer.module for layer in layers]) as hooks:
                loss = observation.loss(observation.model, records) * len(records)
            seen = {module: (x, out) for module, x, out in hooks.calls}
            outputs = [seen[layer.module][1] for layer in layers]
            found = torch.autograd.grad(loss, outputs)
            return [
                d * (seen[layer.module][0].detach().square().sum(1, keepdim=True) + 1).sqrt()
                for layer, d in zip(layers, found, strict=True)
            ]

        true = deltas(z.reward, z.next_state, z.terminated)
        base, unit = deltas(zero, predicted, zero), deltas(zero + 1, predicted, zero)
        up, down = zero.clone(), zero.clone()
        for t, b, u in zip(true, base, unit, strict=True):
            up += ((t - b) * (u - b)).sum(dim=1)
            down += (u - b).square().sum(dim=1)
        return torch.where(down > 0, up / down.clamp_min(1e-30), z.reward).detach()


class Posterior:
    """Minus the log posterior of groups of records, up to a constant.

    Half the squared residual in units of the channel's noise (the absolute one if the noise is
    Laplace) plus half the squared distance to the
    prior's mean in whitened coordinates.
    """

    def __init__(
        self,
        observations: Sequence[Observation],
        layers: Sequence[LinearLayer],
        coordinates: Coordinates,
        received: Received,
        actions: Tensor | None,
        measure: Callable[[Received], Misfit] = misfit_to,
    ) -> None:
        """``actions`` (G, b): the records' discrete actions, None for a box."""
        self._coordinates = coordinates
        self._actions = actions
        self._equations = NormalEquations(observations[0], layers, received, self._decode, measure)

    def value(self, points: Tensor) -> Tensor:
        """(G,) at points (G, b, K)."""
        return self._equations.value(points) + 0.5 * points.flatten(1).square().sum(dim=1)

    def quadratic(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (G, b K) and Gauss-Newton Hessian (G, b K, b K), float64."""
        normal = self._equations.at(points)
        flat = points.flatten(1).double()
        identity = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device)
        return normal.gradient.double() + flat, normal.hessian.double() + identity

    def _decode(self, rows: Tensor, record: Tensor) -> Transitions:
        if self._actions is None:
            return self._coordinates.decode(rows, None)
        chosen = self._actions.reshape(-1)
        # Trials of one group follow each other, so their records share its actions.
        per_group = record // self._actions.shape[1]
        trials = (int(record.max()) + 1) // chosen.numel()
        group, slot = per_group // trials, record % self._actions.shape[1]
        return self._coordinates.decode(rows, self._actions[group, slot])


def received_by(observations: Sequence[Observation], noise_std: float | None = None) -> Received:
    """What the releases say, with the noise that their channel states and known rescaling undone.

    Quantisation is taken as Gaussian noise of each tensor's mean rounding variance, and so is every
    mixture of noises; where the channel adds none, float32 rounding is the noise. The scale of
    noise that follows the gradient's norm is read off the release.

    Args:
        observations: T releases that share computation.
        noise_std: of the noise of fixed size; None: as the channel states it.
    """
    first = observations[0]
    channel = first.channel
    like = next(iter(first.parameters.values())).detach()
    flat = torch.stack([o.flat_gradient() for o in observations]).to(like)
    gain = channel.gain(flat.shape[1])
    gradient = {
        name: torch.stack([o.gradient[name] for o in observations]).to(like) / gain
        for name in first.gradient
    }
    rounding = (ROUNDING * flat.norm(dim=1) / gain / flat.shape[1] ** 0.5).clamp_min(1e-12).square()
    if noise_std is None:
        noise_std = channel.information_std if channel.laplace else channel.noise_std
    floor = rounding + noise_std**2 + _following_variance(flat / gain, channel)
    steps = channel.quantization_steps
    precision = {}
    for name, value in gradient.items():
        variance = floor
        if steps is not None:
            variance = variance + _rounding_variance(value.flatten(1), steps)
        precision[name] = 1 / variance
    sent = None
    if channel.zeroed:
        sent = {name: (value != 0).to(like) for name, value in gradient.items()}
    return Received(gradient, precision, sent, channel.clips, channel.laplace)


def _following_variance(releases: Tensor, channel: Channel) -> Tensor:
    """Variance (T,) of noise of norm r ||g||, from releases (T, P): r^2 / (1 + r^2) of their power.

    Noise of fixed size is taken off first, as if it had come later.
    """
    ratio = channel.noise_to_signal
    arrived = (releases != 0).sum(dim=1).clamp_min(1) if channel.zeroed else releases.shape[1]
    power = releases.square().sum(dim=1) / arrived - channel.noise_std**2
    return power.clamp_min(0.0) * (ratio**2 / (1 + ratio**2))


def _rounding_variance(codes: Tensor, steps: int) -> Tensor:
    """Mean variance (T,) of unbiased rounding to a grid of ``steps`` intervals, from (T, n) codes.

    A coordinate at a random place between two grid points has variance step^2 / 6. One much smaller
    than a step is seldom rounded away from zero, and its variance is about the mean square of its
    codes.
    """
    step = 2 * codes.abs().amax(dim=1) / steps
    return torch.minimum(step.square() / 6, codes.square().mean(dim=1)).clamp_min(1e-30)
