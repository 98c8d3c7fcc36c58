"""Searches on many posteriors at once: Levenberg-Marquardt, scattered draws, and their mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.bayes.posterior import Posterior
from attacks.gradients.replay import record

SCALES = (1.0, 0.5, 0.2, 0.05)
"""Scales of draws around a point, in deviations of its Laplace approximation."""

FIRST_SCALE, ACCEPTANCE, ADAPTATION = 0.2, 0.2, 0.2
"""Scale that a chain's moves begin at, the share of them it should accept, and how fast the
logarithm of the scale follows the difference. Random walks mix best at about a quarter or less
(Gelman, Roberts, Gilks, 1996)."""

DAMPINGS = (1e-2, 1.0, 1e2)
"""Trial dampings of one step, relative to the damping that worked before."""

MakePosterior = Callable[[Tensor | None], Posterior]
"""The posterior of groups with these discrete actions (G, b); None for a box."""


@dataclass(frozen=True, eq=False)
class Trail:
    """Where R searches of each of T targets stand, target-major: G = T R.

    Attributes:
        points: (T, R, b, K) whitened records.
        actions: (T, R, b) their discrete actions; None for a box.
        values: (T, R) minus log posterior, float64; infinite before the first step.
    """

    points: Tensor
    actions: Tensor | None
    values: Tensor

    @classmethod
    def begin(cls, points: Tensor, actions: Tensor | None) -> Trail:
        """Searches that have not moved yet."""
        values = torch.full(points.shape[:2], torch.inf, dtype=torch.float64, device=points.device)
        return cls(points, actions, values)

    def best(self, count: int) -> Trail:
        """Each target's ``count`` best searches, best first."""
        order = self.values.argsort(dim=1)[:, :count]

        def pick(x: Tensor) -> Tensor:
            index = order.reshape(*order.shape, *[1] * (x.dim() - 2))
            return x.gather(1, index.expand(-1, -1, *x.shape[2:]))

        actions = None if self.actions is None else pick(self.actions)
        return Trail(pick(self.points), actions, self.values.gather(1, order))

    def joined(self, other: Trail) -> Trail:
        """The searches of both."""
        actions = None
        if self.actions is not None and other.actions is not None:
            actions = torch.cat([self.actions, other.actions], dim=1)
        return Trail(
            torch.cat([self.points, other.points], dim=1),
            actions,
            torch.cat([self.values, other.values], dim=1),
        )

    def answered_by(self, points: Tensor) -> Trail:
        """Each target's best search alone, with its point replaced by (T, b, K) ``points``."""
        return replace(self.best(1), points=points[:, None])

    def flat_actions(self) -> Tensor | None:
        """(G, b), or None."""
        return None if self.actions is None else self.actions.flatten(0, 1)


def descend(trail: Trail, posterior_of: MakePosterior, iterations: int) -> Trail:
    """Damped Gauss-Newton steps of every search, until none of them gains or the steps are over."""
    posterior = posterior_of(trail.flat_actions())
    points = trail.points.flatten(0, 1)
    values = posterior.value(points).double()
    damping = torch.ones_like(values)
    trials = torch.tensor(DAMPINGS, dtype=torch.float64, device=points.device)
    for _ in range(iterations):
        gradient, hessian = posterior.quadratic(points)
        factors = damping[:, None] * trials  # (G, trials)
        steps = _solve(hessian, gradient, factors).unflatten(-1, points.shape[1:])
        moved = points[:, None] + steps.to(points)
        tried = posterior.value(moved.flatten(0, 1)).double().unflatten(0, factors.shape)
        lowest, index = tried.nan_to_num(nan=torch.inf).min(dim=1)
        better = lowest < values
        gain = torch.where(better, values - lowest, 0.0)
        chosen = moved[torch.arange(len(moved), device=points.device), index]
        points = torch.where(better[:, None, None], chosen, points)
        values = torch.minimum(values, lowest)
        worked = factors.gather(1, index[:, None]).squeeze(1)
        damping = torch.where(better, worked, 1e2 * damping).clamp(1e-9, 1e9)
        if bool((gain <= 1e-5 * values.clamp_min(1e-3)).all()):
            break
    return replace(trail, points=points.view_as(trail.points), values=values.view_as(trail.values))


def scatter(
    trail: Trail, posterior_of: MakePosterior, draws: int, keep: int, generator: torch.Generator
) -> Trail:
    """The ``keep`` best of ``draws`` points around each target's best search.

    A gradient jumps where a ReLU switches, which derivatives cannot see: the posterior is rugged,
    and searches end on ledges. Draws from the Laplace approximation, at several scales, look across
    them at the price of one row each.
    """
    best = trail.best(1)
    actions = None if best.actions is None else best.actions.expand(-1, draws, -1)
    posterior = posterior_of(None if actions is None else actions.flatten(0, 1))
    factor = _laplace_factor(best, posterior_of)
    scales = torch.tensor(SCALES, dtype=torch.float64).repeat(-(-draws // len(SCALES)))[:draws]
    # The same draws for every target, so that no answer depends on its companions.
    noise = torch.randn(factor.shape[-1], draws, generator=generator, dtype=torch.float64) * scales
    moves = _offsets(factor, noise.to(factor).expand(len(factor), -1, -1), best.points)
    points = best.points + moves
    values = posterior.value(points.flatten(0, 1)).double().unflatten(0, points.shape[:2])
    return Trail(points, actions, values.nan_to_num(nan=torch.inf)).best(keep)


def walk(
    trail: Trail,
    posterior_of: MakePosterior,
    chains: int,
    steps: int,
    generator: torch.Generator,
) -> tuple[Trail, Tensor]:
    """Metropolis chains from each target's best search, and their mean once they have settled.

    Proposals keep a Gaussian invariant (preconditioned Crank-Nicolson; Cotter et al. 2013, arXiv
    1202.0709): in turn the Laplace approximation at each target's best search and the prior, which
    moves where much noise leaves the posterior wider than any point's curvature says. How bold a
    move may be depends on how rugged the posterior is, so each target's scales follow its
    acceptance for half of the steps; the mean (T, b, K) of the rest estimates the posterior's mean,
    where the mean squared error is least: on a rugged posterior the maximum may lie far from it.

    Returns:
        The lowest point of each chain, and the mean.
    """
    best = trail.best(1)
    actions = None if best.actions is None else best.actions.expand(-1, chains, -1)
    posterior = posterior_of(None if actions is None else actions.flatten(0, 1))
    factor = _laplace_factor(best, posterior_of)
    points = best.points.expand(-1, chains, -1, -1)
    values = best.values.expand(-1, chains)
    lowest = Trail(points, actions, values)
    total, counted = torch.zeros_like(best.points[:, 0]), 0
    settling = steps // 2
    scales = factor.new_full((2, len(factor), 1, 1), FIRST_SCALE)
    value_at = _replayed(posterior, points.flatten(0, 1))
    for step in range(steps):
        kind = step % 2
        fresh = scales[kind]
        kept = (1 - fresh.square()).sqrt()
        noise = torch.randn(factor.shape[-1], chains, generator=generator, dtype=torch.float64)
        noise = fresh * noise.to(factor)
        if kind == 0:
            away = (factor @ (points - best.points).flatten(2).to(factor).mT).contiguous()
            proposed = kept * away + noise
            moved = best.points + _offsets(factor, proposed, best.points)
            energies = 0.5 * (proposed.square().sum(1) - away.square().sum(1))
        else:
            proposed = kept * points.flatten(2).to(factor) + noise.mT
            moved = proposed.to(points).view_as(points)
            energies = 0.5 * (moved.square() - points.square()).flatten(2).sum(2).double()
        tried = value_at(moved.flatten(0, 1)).double().unflatten(0, values.shape)
        chance = torch.rand(chains, generator=generator, dtype=torch.float64).to(factor)
        accepted = chance.log() < values - tried + energies
        points = torch.where(accepted[..., None, None], moved, points)
        values = torch.where(accepted, tried, values)
        lower = values < lowest.values
        lowest = Trail(
            torch.where(lower[..., None, None], points, lowest.points),
            actions,
            torch.minimum(values, lowest.values),
        )
        if step < settling:
            surplus = accepted.to(factor).mean(dim=1) - ACCEPTANCE
            scales[kind] *= (ADAPTATION * surplus).exp()[:, None, None]
            scales[kind].clamp_(max=1.0)
        else:
            total, counted = total + points.mean(dim=1), counted + 1
    return lowest, total / counted


def _replayed(posterior: Posterior, points: Tensor) -> Callable[[Tensor], Tensor]:
    """``posterior.value`` for points like ``points`` (G, b, K), without the cost of modules.

    Thousands of evaluations of a few small tensors spend most of their time there.
    """
    memory = points.clone()
    replay = record(lambda x: (posterior.value(x),), memory, 0.9 * points)
    if replay is None:
        return posterior.value

    def value(points: Tensor) -> Tensor:
        memory.copy_(points)
        with torch.inference_mode():
            return replay()[0].clone()

    return value


def _laplace_factor(best: Trail, posterior_of: MakePosterior) -> Tensor:
    """Upper triangular R^T of the Hessian H = R R^T at each target's best search, (T, n, n)."""
    _, hessian = posterior_of(best.flat_actions()).quadratic(best.points.flatten(0, 1))
    return torch.linalg.cholesky_ex(hessian)[0].mT


def _offsets(factor: Tensor, whitened: Tensor, like: Tensor) -> Tensor:
    """Moves (T, R, b, K) from moves (T, n, R) in deviations of the Laplace approximation."""
    moves = torch.linalg.solve_triangular(factor, whitened, upper=True).mT
    return moves.unflatten(-1, like.shape[2:]).to(like)


def _solve(hessian: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
    """Steps (G, trials, n) of -(H + damping I)^-1 gradient."""
    identity = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    damped = hessian[:, None] + damping[:, :, None, None] * identity
    factor, _ = torch.linalg.cholesky_ex(damped)
    right = gradient[:, None, :, None].expand(-1, damping.shape[1], -1, 1)
    return -torch.cholesky_solve(right, factor).squeeze(-1)
