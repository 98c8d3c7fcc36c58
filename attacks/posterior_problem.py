"""Several releases as one Bayesian problem: where searches start, and what their ends mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.analytic import Analytic
from attacks.attack import Reconstruction
from attacks.linear_layers import LinearLayer
from attacks.misfits import Received, StudentMisfit
from attacks.observation import Observation, gradient_matching_error
from attacks.posterior import Coordinates, Posterior, received_by
from attacks.posterior_search import Trail
from attacks.prior import Prior
from attacks.spear import Spear
from attacks.transitions import Transitions

REWARD_SHIFTS = (-100.0, -30.0, -10.0, -3.0, -1.0, 0.0, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Trial rewards around the prior's guess, in deviations of the equivalent reward."""

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

    def starts(self, count: int, candidates: int, generator: torch.Generator) -> Trail:
        """Where each target's searches begin."""
        if self.size == 1:
            return self._single_starts(count, candidates, generator)
        return self._joint_starts(count, generator)

    def _single_starts(self, count: int, candidates: int, generator: torch.Generator) -> Trail:
        """The closed form where there is one, the prior's mean, and the best known records."""
        targets = len(self.observations)
        pool, pool_actions = self._known(candidates, generator)
        points = pool[None].expand(targets, -1, -1)
        actions = None if pool_actions is None else pool_actions[None].expand(targets, -1)
        first = Analytic()
        if not first.unsupported(self.observations[0]):
            found = first.reconstruct_many(self.observations, prior=self.prior, seed=0)
            closed = [self._closed_form(answer.transitions) for answer in found]
            points = torch.cat([torch.stack([p for p, _ in closed]), points], dim=1)
            if actions is not None:
                actions = torch.cat([torch.stack([a for _, a in closed]), actions], dim=1)
        if self.observations[0].channel.scale_unknown:
            points, actions = self._promising(points, actions, 4 * count)
        points, values = self._best_rewards(points, actions)
        order = values.argsort(dim=1)[:, :count]
        chosen = points.gather(1, order[..., None].expand(-1, -1, points.shape[2]))
        taken = None if actions is None else actions.gather(1, order)[..., None]
        return Trail.begin(chosen[:, :, None], taken)

    def _promising(
        self, points: Tensor, actions: Tensor | None, count: int
    ) -> tuple[Tensor, Tensor | None]:
        """The ``count`` points (T, n, K) that fit best at one of a few rewards."""
        value, here = self._along_rewards(points, actions), points[..., -1]
        values = torch.stack([value(here + shift) for shift in REWARD_SHIFTS]).amin(dim=0)
        # The closed form's two answers come first and always stay; without it, the prior's mean.
        values[:, :2] = -torch.inf
        order = values.argsort(dim=1)[:, :count]
        kept = points.gather(1, order[..., None].expand(-1, -1, points.shape[2]))
        return kept, None if actions is None else actions.gather(1, order)

    def _known(self, candidates: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """The prior's mean and known records as points (n, K), with their actions (n,)."""
        template, like = self.coordinates.template, self.coordinates.mean
        count = template.action_count
        actions = None if count is None else torch.arange(count, device=like.device)
        points = like.new_zeros(count or 1, self.coordinates.width)
        known = self.prior.known
        if known is None:
            return points, actions
        rows = torch.randperm(len(known), generator=generator)[:candidates]
        known = known[rows].to(dtype=like.dtype, device=like.device)
        rewards = self.coordinates.equivalent_rewards(self.observations[0], self.layers, known)
        points = torch.cat([points, self.coordinates.encode(known, rewards)])
        return points, None if actions is None else torch.cat([actions, known.action])

    def _closed_form(self, z: Transitions) -> tuple[Tensor, Tensor]:
        """Two starts (2, K) from the first layers' answer: as it is, and shrunk into the prior."""
        z = self._filled(z)
        point = self.coordinates.encode(z)
        return torch.cat([point, point.clamp(-3, 3)]), z.action.reshape(-1)[:1].repeat(2)

    def _filled(self, z: Transitions) -> Transitions:
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

    def _best_rewards(self, points: Tensor, actions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Points (T, n, K) with the reward that fits best, and their values (T, n).

        The gradient is affine in the reward, so without clipping the posterior is quadratic in it.
        """
        value = self._along_rewards(points, actions)
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

    def _along_rewards(self, points: Tensor, actions: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Values (T, n) of points (T, n, K) as a function of their rewards (T, n)."""
        targets, count, width = points.shape
        posterior = self.posterior(None if actions is None else actions.reshape(-1, 1))

        def value(last: Tensor) -> Tensor:
            moved = torch.cat([points[..., :-1], last[..., None]], dim=-1)
            found = posterior.value(moved.reshape(-1, 1, width).to(self.coordinates.mean))
            return found.reshape(targets, count).double()

        return value

    def _joint_starts(self, count: int, generator: torch.Generator) -> Trail:
        """For b records: what sparse factors give, and a draw of b known records."""
        targets, size = len(self.observations), self.size
        pool, pool_actions = self._known(10**9, generator)
        draws = torch.randint(len(pool), (1, size), generator=generator)
        points = pool[draws].expand(targets, -1, -1, -1)
        actions = None
        if pool_actions is not None:
            actions = pool_actions[draws].expand(targets, -1, -1)
        sparse = Spear()
        if sparse.unsupported(self.observations[0]):
            return Trail.begin(points, actions)
        found = sparse.reconstruct_many(self.observations, prior=self.prior, seed=0)
        records = [self._filled(answer.transitions) for answer in found]
        exact = torch.stack([self.coordinates.encode(z, z.reward) for z in records])
        points = torch.cat([exact[:, None], points], dim=1)
        if actions is not None:
            chosen = torch.stack([z.action for z in records])
            actions = torch.cat([chosen[:, None], actions], dim=1)
        return Trail.begin(points, actions)

    def rewarded(self, trail: Trail) -> Trail:
        """Single records' searches with the rewards that fit best, and no value yet."""
        if self.size > 1:
            return trail
        actions = None if trail.actions is None else trail.actions[:, :, 0]
        points, _ = self._best_rewards(trail.points[:, :, 0], actions)
        return Trail.begin(points[:, :, None], trail.actions)

    def values(self, answers: Sequence[Reconstruction]) -> Tensor:
        """Minus log posterior (T,) of other attacks' answers, up to the constant of ``Trail``."""
        records = [self._filled(answer.transitions) for answer in answers]
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
