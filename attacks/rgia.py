"""RGIA: gradient matching regularised by what transitions of the environment look like.

"Gradient Inversion in Federated Reinforcement Learning", arXiv 2512.00303. Fake tuples
(s~, a~, r~, s~') start from N(0, 1) and minimise, with Adam,

    ||g~ - g||^2 / ||g||^2 + state_weight R_s + reward_weight R_r + dynamics_weight R_f.

The summary we work from states neither the weights nor the scales. Here everything, the draws too,
is in units of the prior's standard deviations, so that one set of defaults serves all environments.
The first part of the iterations matches directions only, 1 - cos(g~, g): on a trained critic, where
the target y is far from any random start, this raises the share of records found several times.
``direction_share=0`` is the plain objective throughout.

An adversary with a simulator still matches with the learned model, then lets the simulator step the
(s~, a~) that it found. Measured, the simulator inside the loop finds worse (s~, a~) where contacts
make the environment stiff (``reports/rgia/ablation.md``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attack import Attack, Reconstruction
from attacks.matching import match
from attacks.observation import Observation, gradient_matching_error
from attacks.prior import Prior
from attacks.registry import register_attack
from attacks.rewards import explain
from attacks.transitions import Transitions


@register_attack(
    "rgia",
    summary="gradient matching with state, reward and dynamics regularisers (arXiv 2512.00303)",
    needs=("samples",),
)
@dataclass(frozen=True)
class RGIA(Attack):
    """Regularised gradient inversion. A weight of zero removes its term.

    Attributes:
        direction_share: share of the iterations that match directions only, at the start; none of
            them on images, where this phase often ends in a wrong action (on the conformance
            suite's screen with a batch of one in two of four records, without it in none).
        state_weight: of R_s, the mean squared distance of s~ to the prior's mean, in deviations.
        reward_weight: of R_r, the distance of r~ to the interval of known rewards, in deviations.
        dynamics_weight: of R_f, the root mean square of f(s~, a~) - s~' over coordinates, in
            deviations; f is the prior's learned transition model.
        total_variation: images only: of the mean absolute difference of neighbouring pixels of
            s~'s deviation from the prior's mean, across plus down; grey levels in [0, 1].
        frame_variation: images only: of the mean squared difference of s~'s consecutive frames;
            grey levels in [0, 1].
    """

    iterations: int = 400
    restarts: int = 4
    learning_rate: float = 0.1
    direction_share: float = 0.6
    state_weight: float = 1e-4
    reward_weight: float = 1e-2
    dynamics_weight: float = 1e-2
    total_variation: float = 1e-2
    frame_variation: float = 1e-2

    def solve(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """If the channel may rescale the gradient, the distance is 1 - cos(g~, g)."""

        def penalty(z: Transitions) -> Tensor:
            return self._penalty(z, prior)

        answers = match(
            observations,
            distance="cosine" if observations[0].channel.scale_unknown else "l2",
            iterations=self.iterations,
            restarts=self.restarts,
            learning_rate=self.learning_rate,
            seed=seed,
            penalty=penalty,
            scale=prior,
            direction_share=0.0 if prior.template.image else self.direction_share,
        )
        if prior.simulator is None:
            return answers
        return [_simulated(o, a, prior) for o, a in zip(observations, answers, strict=True)]

    def _penalty(self, z: Transitions, prior: Prior) -> Tensor:
        """The weighted sum of the regularisers of each row, (n,)."""
        total = torch.zeros_like(z.reward)
        mean, std = prior.state_mean.to(z.state), prior.state_std.to(z.state)
        if self.state_weight:
            state = (z.state.flatten(1) - mean) / std
            total = total + self.state_weight * state.square().mean(dim=1)
        if self.reward_weight:
            outside = (z.reward - prior.reward_high).relu() + (prior.reward_low - z.reward).relu()
            total = total + self.reward_weight * outside / max(prior.reward_std, 1e-3)
        if self.dynamics_weight:
            step = self.dynamics(z, prior) - z.next_state
            scaled = (step.flatten(1) / std).square().mean(dim=1)
            # The root's slope is infinite at zero.
            total = total + self.dynamics_weight * (scaled + 1e-12).sqrt()
        return total + self._smoothness(z, prior) if prior.template.image else total

    def _smoothness(self, z: Transitions, prior: Prior) -> Tensor:
        """What images alone have: deviations from the background are few and compact, (n,)."""
        unit = prior.template.state_unit
        state = z.state / unit
        moved = state - prior.state_mean.to(state).reshape(prior.template.state_shape) / unit
        across = moved.diff(dim=-1).abs().mean(dim=(1, 2, 3))
        down = moved.diff(dim=-2).abs().mean(dim=(1, 2, 3))
        total = self.total_variation * (across + down)
        if state.shape[1] > 1 and self.frame_variation:
            total = total + self.frame_variation * state.diff(dim=1).square().mean(dim=(1, 2, 3))
        return total

    def dynamics(self, z: Transitions, prior: Prior) -> Tensor:
        """f(s~, a~) of the dynamics term, differentiable."""
        return prior.transition(z.state, z.action)


def _simulated(observation: Observation, answer: Reconstruction, prior: Prior) -> Reconstruction:
    """The answer with s' as the simulator steps (s~, a~), and the r~ that then fit the gradient."""
    completed = _completed(observation, answer.transitions, prior)
    zero = torch.zeros_like(completed.reward)
    known = Transitions(
        completed.state, completed.action, completed.reward, completed.next_state, zero
    )
    return dataclasses.replace(
        answer,
        transitions=completed,
        gme=gradient_matching_error(observation, known),
        restarts=[_completed(observation, z, prior) for z in answer.restarts],
        notes=f"{answer.notes}; next state simulated",
    )


def _completed(observation: Observation, z: Transitions, prior: Prior) -> Transitions:
    """Where the simulator cannot step, or the reward cannot be told, what was matched stays."""
    found = explain(observation, z.state, z.action, prior).transitions
    if found.next_state.isnan().any():
        return z
    reward = torch.where(found.reward.isnan(), z.reward, found.reward)
    return Transitions(z.state, z.action, reward, found.next_state, z.terminated)
