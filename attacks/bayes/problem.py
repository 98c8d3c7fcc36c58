"""Several releases as one Bayesian problem, and what the ends of searches mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attack import Reconstruction
from attacks.bayes.misfits import Received, StudentMisfit
from attacks.bayes.posterior import ROUNDING, Coordinates, Posterior, received_by
from attacks.bayes.search import Trail
from attacks.gradients.linear_layers import LinearLayer
from attacks.observation import Observation, gradient_matching_error
from attacks.prior import Prior
from attacks.transitions import Transitions

REWARD_SHIFTS = (-100.0, -30.0, -10.0, -3.0, -1.0, 0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Trial rewards around the prior's guess, in deviations of the equivalent reward."""

EXPLAINED = 1e-4
"""Of an exact gradient's norm, what is left at most where a record explains it: sums in float32
leave up to a fifth of that."""

ZOOMS = 4
"""Times that the reward's bracket is narrowed, each time to a fifth."""


@dataclass(frozen=True, eq=False)
class Problem:
    """T targets that share everything but their gradients."""

    observations: Sequence[Observation]
    layers: list[LinearLayer]
    prior: Prior
    coordinates: Coordinates
    received: Received

    @classmethod
    def of(
        cls, observations: Sequence[Observation], layers: list[LinearLayer], prior: Prior
    ) -> Problem:
        """The problem of ``observations``, which share computation; ``layers`` are all theirs."""
        return cls(
            observations,
            layers,
            prior,
            Coordinates.of(observations[0], layers, prior),
            received_by(observations),
        )

    @property
    def size(self) -> int:
        """Records in a release, b."""
        return self.observations[0].batch_size

    def posterior(self, actions: Tensor | None) -> Posterior:
        """The posterior of groups whose records have these discrete actions (G, b), or a box."""
        return Posterior(self.observations, self.layers, self.coordinates, self.received, actions)

    def robust_posterior(self, actions: Tensor | None) -> Posterior:
        """The same where rows of the gradient may be wrong; for Gaussian noise on all of it."""
        return Posterior(
            self.observations,
            self.layers,
            self.coordinates,
            self.received,
            actions,
            StudentMisfit,
        )

    def filled(self, z: Transitions) -> Transitions:
        """An answer of another attack, with the prior's mean where it knows nothing."""
        like = self.coordinates.mean
        mean = self.prior.mean_transitions(len(z), self.coordinates.template)
        mean, z = (x.to(dtype=like.dtype, device=like.device) for x in (mean, z))

        def known(ours: Tensor, fallback: Tensor) -> Tensor:
            return torch.where(ours.isnan(), fallback, ours) if ours.is_floating_point() else ours

        return Transitions(
            known(z.state, mean.state),
            known(z.action, mean.action),
            known(z.reward, mean.reward),
            known(z.next_state, mean.next_state),
            torch.zeros_like(z.reward),
        )

    def best_rewards(self, points: Tensor, actions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Points (T, n, K) with the reward that fits best, and their values (T, n).

        The gradient is affine in the reward, so without clipping the posterior is quadratic in it.
        """
        value = self.along_rewards(points, actions)
        here = points[..., -1]
        if self.observations[0].channel.scale_unknown:
            here = _valley(value, here)
        middle, up, down = value(here), value(here + 1), value(here - 1)
        slope, bend = (up - down) / 2, (up + down - 2 * middle).clamp_min(1e-30)
        moved = (here - (slope / bend).to(here)).clamp(-1e3, 1e3)
        fitted = value(moved)
        last = torch.where(fitted < middle, moved, here)
        values = torch.minimum(fitted, middle)
        return torch.cat([points[..., :-1], last[..., None]], dim=-1), values

    def along_rewards(self, points: Tensor, actions: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Values (T, n) of points (T, n, K) as a function of their rewards (T, n)."""
        targets, count, width = points.shape
        posterior = self.posterior(None if actions is None else actions.reshape(-1, 1))

        def value(last: Tensor) -> Tensor:
            moved = torch.cat([points[..., :-1], last[..., None]], dim=-1)
            found = posterior.value(moved.reshape(-1, 1, width).to(self.coordinates.mean))
            return found.reshape(targets, count).double()

        return value

    def rewarded(self, trail: Trail) -> Trail:
        """Single records' searches with the rewards that fit best, and no value yet."""
        if self.size > 1:
            return trail
        actions = None if trail.actions is None else trail.actions[:, :, 0]
        points, _ = self.best_rewards(trail.points[:, :, 0], actions)
        return Trail.begin(points[:, :, None], trail.actions)

    def explained(self, trail: Trail) -> bool:
        """Whether every target's best search explains all of a gradient that came exactly."""
        if self.observations[0].channel.random:
            return False
        count = sum(gradient[0].numel() for gradient in self.received.gradient.values())
        most = 0.5 * count * (EXPLAINED / ROUNDING) ** 2
        return bool((trail.values.amin(dim=1) <= most).all())

    def values(self, answers: Sequence[Reconstruction]) -> Tensor:
        """Minus log posterior (T,) of other attacks' answers, up to the constant of ``Trail``."""
        records = [self.filled(answer.transitions) for answer in answers]
        points = torch.stack([self.coordinates.encode(z, z.reward) for z in records])
        actions = None
        if self.coordinates.template.discrete:
            actions = torch.stack([z.action for z in records])
        return self.posterior(actions).value(points).double()

    def answers(self, trail: Trail) -> list[Reconstruction]:
        """Each target's best search, with the reward and next state that go with it."""
        answers = []
        for target, observation in enumerate(self.observations):
            restarts = [
                self._records(
                    trail.points[target, search],
                    None if trail.actions is None else trail.actions[target, search],
                )
                for search in range(trail.values.shape[1])
            ]
            best = int(trail.values[target].argmin())
            answers.append(
                Reconstruction(
                    transitions=_open(observation.template.clamp(restarts[best])),
                    objective=float(trail.values[target, best]),
                    gme=gradient_matching_error(observation, restarts[best]),
                    restarts=[_open(observation.template.clamp(z)) for z in restarts],
                    notes="next state predicted by the prior; terminated assumed 0",
                )
            )
        return answers

    def _records(self, points: Tensor, actions: Tensor | None) -> Transitions:
        with torch.no_grad():
            return self.coordinates.decode(points, actions)


def _open(z: Transitions) -> Transitions:
    """``terminated`` answered NaN: it cannot be known."""
    unknown = torch.full_like(z.reward, torch.nan)
    return Transitions(z.state, z.action, z.reward, z.next_state, unknown)


def _valley(value: Callable[[Tensor], Tensor], here: Tensor) -> Tensor:
    """The rewards near ``here`` where ``value`` is least, element by element.

    Clipping bends the posterior: where only directions are left, the target is in the ratios
    between networks, and the valley at the temporal-difference error's sign is steep and narrow.
    """
    shifts = torch.tensor(REWARD_SHIFTS).to(here)
    tried = torch.stack([value(here + shift) for shift in shifts])
    best = tried.argmin(dim=0)
    low = shifts[(best - 1).clamp_min(0)]
    high = shifts[(best + 1).clamp_max(len(shifts) - 1)]
    fractions = torch.linspace(0.1, 0.9, 9).to(here)
    for _ in range(ZOOMS):
        width = high - low
        tried = torch.stack([value(here + low + width * f) for f in fractions])
        middle = low + width * fractions[tried.argmin(dim=0)]
        low, high = middle - width / 10, middle + width / 10
    return here + (low + high) / 2
