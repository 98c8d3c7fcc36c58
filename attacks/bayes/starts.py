"""Where the searches of a Bayesian problem begin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.analytic import Analytic
from attacks.bayes.first_layer import shrunk_record
from attacks.bayes.problem import REWARD_SHIFTS, Problem
from attacks.bayes.search import Trail
from attacks.gradients.first_layers import FirstLayer, first_layers
from attacks.spear import Spear


def single_starts(
    problem: Problem, count: int, candidates: int, generator: torch.Generator
) -> Trail:
    """``count`` or more starts for one record: the closed forms where there are any, and of the
    prior's mean and ``candidates`` known records those that fit best.

    A closed form stays whatever its fit: near the truth, behind a ledge, it may fit worse than
    records that are far away.
    """
    targets = len(problem.observations)
    pool, pool_actions = _known(problem, candidates, generator)
    closed, closed_actions = _closed_forms(problem)
    forms = closed.shape[1]
    points = torch.cat([closed, pool[None].expand(targets, -1, -1)], dim=1)
    actions = None
    if pool_actions is not None and closed_actions is not None:
        pool_actions = pool_actions[None].expand(targets, -1)
        actions = torch.cat([closed_actions, pool_actions], dim=1)
    if problem.observations[0].channel.scale_unknown:
        points, actions = _promising(problem, points, actions, forms, 4 * count)
    points, values = problem.best_rewards(points, actions)
    values[:, :forms] = -torch.inf
    order = values.argsort(dim=1, stable=True)[:, : max(count, forms + 1)]
    chosen = points.gather(1, order[..., None].expand(-1, -1, points.shape[2]))
    taken = None if actions is None else actions.gather(1, order)[..., None]
    return Trail.begin(chosen[:, :, None], taken)


def joint_starts(problem: Problem, generator: torch.Generator) -> Trail:
    """For b records: what sparse factors give, and a draw of b known records."""
    targets, size = len(problem.observations), problem.size
    pool, pool_actions = _known(problem, 10**9, generator)
    draws = torch.randint(len(pool), (1, size), generator=generator)
    points = pool[draws].expand(targets, -1, -1, -1)
    actions = None
    if pool_actions is not None:
        actions = pool_actions[draws].expand(targets, -1, -1)
    sparse = Spear()
    if sparse.unsupported(problem.observations[0]):
        return Trail.begin(points, actions)
    found = sparse.reconstruct_many(problem.observations, prior=problem.prior, seed=0)
    records = [problem.filled(answer.transitions) for answer in found]
    exact = torch.stack([problem.coordinates.encode(z, z.reward) for z in records])
    points = torch.cat([exact[:, None], points], dim=1)
    if actions is not None:
        chosen = torch.stack([z.action for z in records])
        actions = torch.cat([chosen[:, None], actions], dim=1)
    return Trail.begin(points, actions)


def _promising(
    problem: Problem, points: Tensor, actions: Tensor | None, forms: int, count: int
) -> tuple[Tensor, Tensor | None]:
    """Of points (T, n, K) the first ``forms`` and those that fit best at one of a few rewards."""
    value, here = problem.along_rewards(points, actions), points[..., -1]
    values = torch.stack([value(here + shift) for shift in REWARD_SHIFTS]).amin(dim=0)
    values[:, :forms] = -torch.inf
    order = values.argsort(dim=1, stable=True)[:, :count]
    kept = points.gather(1, order[..., None].expand(-1, -1, points.shape[2]))
    return kept, None if actions is None else actions.gather(1, order)


def _known(
    problem: Problem, candidates: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """The prior's mean and known records as points (n, K), with their actions (n,)."""
    coordinates = problem.coordinates
    like, count = coordinates.mean, coordinates.template.action_count
    actions = None if count is None else torch.arange(count, device=like.device)
    points = like.new_zeros(count or 1, coordinates.width)
    known = problem.prior.known
    if known is None:
        return points, actions
    rows = torch.randperm(len(known), generator=generator)[:candidates]
    known = known[rows].to(dtype=like.dtype, device=like.device)
    rewards = coordinates.equivalent_rewards(problem.observations[0], problem.layers, known)
    points = torch.cat([points, coordinates.encode(known, rewards)])
    return points, None if actions is None else torch.cat([actions, known.action])


def _closed_forms(problem: Problem) -> tuple[Tensor, Tensor | None]:
    """The first layers' answers (T, n, K) with their discrete actions (T, n), None for a box.

    As they are, cut to the prior's range, and weighed against the prior where all coordinates
    arrived; none, n = 0, where the first layers do not read the state.
    """
    first, coordinates = problem.observations[0], problem.coordinates
    discrete, targets = coordinates.template.discrete, len(problem.observations)
    analytic = Analytic()
    if analytic.unsupported(first):
        nothing = coordinates.mean.new_zeros(targets, 0, coordinates.width)
        return nothing, nothing[:, :, 0].long() if discrete else None
    found = analytic.reconstruct_many(problem.observations, prior=problem.prior, seed=0)
    answers = [problem.filled(answer.transitions) for answer in found]
    exact = torch.stack([coordinates.encode(z) for z in answers])
    forms = [exact, exact.clamp(-3, 3)]
    if problem.received.sent is None:
        forms.append(_shrunk(problem, first_layers(first)).to(exact))
    points, actions = torch.cat(forms, dim=1), None
    if discrete:
        actions = torch.stack([z.action.reshape(1).repeat(len(forms)) for z in answers])
    return points, actions


def _shrunk(problem: Problem, layers: Sequence[FirstLayer]) -> Tensor:
    """(T, 1, K), at the reward that the prior predicts."""
    mean, factor, received = problem.coordinates.mean, problem.coordinates.factor, problem.received
    records = []
    for target in range(received.targets):
        gradient = {name: value[target] for name, value in received.gradient.items()}
        precision = {name: value[target] for name, value in received.precision.items()}
        records.append(shrunk_record(gradient, precision, layers, mean, factor))
    whitened = torch.stack(records)
    return torch.cat([whitened, torch.zeros_like(whitened[:, :1])], dim=1)[:, None]
