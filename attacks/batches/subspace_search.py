"""Finds single records whose inputs lie in the row spaces of all layers at once.

A record is one point, searched for on its own: the others of its batch have no part in it, and
neither have rewards, next states and output gradients. The cost is piecewise smooth and continuous,
also where a ReLU switches, so Levenberg-Marquardt goes all the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vmap

from attacks.batches.row_spaces import RowSpace
from attacks.gradients.layer_calls import LayerCalls
from attacks.gradients.linear_layers import LinearLayer
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.transitions import (
    Template,
    Transitions,
    flatten_state_action,
    unflatten_state_action,
)

MARGIN = 4.0
"""Inputs tell two points apart if their squared difference is so many times their squared error."""

DOUBTFUL = 10.0
"""A point is no record if it lies outside of the row spaces by more than so many times what noise
explains. True records do so by about five, where weak companions of theirs are drowned in noise."""


SETTLED = 1e-6
"""A step that lowers the cost by a smaller share of it gained nothing."""

PATIENCE = 4
"""A point is left alone after so many such steps in a row."""


@dataclass(frozen=True, eq=False)
class Whitened:
    """Coordinates (K,) in which the prior is a standard Gaussian; states alone if discrete.

    Attributes:
        template: shapes.
        mean, factor: (K,) and (K, K), a square root of the prior's covariance; float64.
        next_state, reward: (1, *state_shape) and (1,), what completes a record: they do not matter.
    """

    template: Template
    mean: Tensor
    factor: Tensor
    next_state: Tensor
    reward: Tensor

    @classmethod
    def of(cls, prior: Prior, template: Template, like: Tensor) -> Whitened:
        """For models of the type and device of ``like``."""
        blind = prior.mean_transitions(1, template).to(dtype=like.dtype, device=like.device)
        return cls(template, *prior.whitening(), blind.next_state, blind.reward)

    def draws(self, prior: Prior, count: int, generator: torch.Generator) -> Tensor:
        """Points (count, K): known records in random order, then draws from the Gaussian."""
        random = torch.randn(count, len(self.mean), generator=generator, dtype=torch.float64)
        if prior.known is None:
            return random
        order = torch.randperm(len(prior.known), generator=generator)[:count]
        rows = flatten_state_action(prior.known[order], self.template).double()
        offset = rows[:, : len(self.mean)] - self.mean
        random[: len(rows)] = torch.linalg.solve(self.factor, offset.T).T
        return random

    def rows(self, points: Tensor) -> Tensor:
        """Points (N, K) as [state, action] or states (N, K)."""
        return self.mean.to(points) + points @ self.factor.T.to(points)

    def records(self, points: Tensor) -> Transitions:
        """Points (N, K) as records; a discrete action is zero."""
        rows = self.rows(points)
        if self.template.discrete:
            state = rows.reshape(-1, *self.template.state_shape)
            action = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        else:
            state, action = unflatten_state_action(rows, self.template)
        next_state = self.next_state.expand_as(state)
        reward = self.reward.expand(len(rows))
        return Transitions(state, action, reward, next_state, torch.zeros_like(reward))


@dataclass(frozen=True, eq=False)
class Inputs:
    """Runs the loss on points and reads what goes into some layers."""

    observation: Observation
    whitened: Whitened
    layers: Sequence[LinearLayer]

    def at(self, points: Tensor) -> list[Tensor]:
        """Each layer's inputs (N, n), float64 on the CPU, at points (N, K)."""
        return [x.detach().cpu().double() for x in self._run(points)]

    def derivatives(self, points: Tensor) -> list[Tensor]:
        """Each layer's (N, K, n) derivatives of its inputs by the points (N, K)."""

        def along(direction: Tensor) -> list[Tensor]:
            return jvp(self._run, (points,), (direction.expand_as(points),))[1]

        # Only the changes differ from one coordinate to the next; values are computed once.
        directions = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
        changes = vmap(along, randomness="same")(directions)
        return [change.detach().cpu().double().movedim(0, 1) for change in changes]

    def _run(self, points: Tensor) -> list[Tensor]:
        like = next(iter(self.observation.parameters.values()))
        z = self.whitened.records(points.to(like))
        with LayerCalls([layer.module for layer in self.layers]) as hooks:
            self.observation.loss(self.observation.model, z)
        seen = {module: x for module, x, _ in hooks.calls}
        return [seen[layer.module] for layer in self.layers]


def search(
    points: Tensor, spaces: Sequence[RowSpace], inputs: Inputs, iterations: int
) -> tuple[Tensor, Tensor]:
    """Points (N, K) moved to local optima, and their costs (N,): each on its own.

    The cost is minus twice the log posterior, up to a constant.
    """
    points = points.clone()
    damping = torch.full(points.shape[:1], 1e-2, dtype=torch.float64)
    idle = torch.zeros(len(points), dtype=torch.long)
    found = inputs.at(points)
    cost = _cost(found, points, spaces)
    for _ in range(iterations):
        moving = (idle < PATIENCE).nonzero()[:, 0]
        if len(moving) == 0:
            break
        tried = points[moving] - _steps(
            points[moving], [x[moving] for x in found], damping[moving], spaces, inputs
        )
        moved = inputs.at(tried)
        after = _cost(moved, tried, spaces)
        gain = cost[moving] - after
        idle[moving] = torch.where(gain > SETTLED * cost[moving].abs(), 0, idle[moving] + 1)
        better = gain > 0
        kept = moving[better]
        points[kept], cost[kept] = tried[better], after[better]
        for x, new in zip(found, moved, strict=True):
            x[kept] = new[better]
        changed = torch.where(better, 0.2, 5.0) * damping[moving]
        damping[moving] = changed.clamp(1e-10, 1e4)
    return points, cost


def _steps(
    points: Tensor,
    found: Sequence[Tensor],
    damping: Tensor,
    spaces: Sequence[RowSpace],
    inputs: Inputs,
) -> Tensor:
    """Levenberg-Marquardt steps (N, K) that are to be subtracted from the points (N, K)."""
    slope = points.clone()
    bend = torch.eye(points.shape[1], dtype=torch.float64).repeat(len(points), 1, 1)
    for x, dx, space in zip(found, inputs.derivatives(points), spaces, strict=True):
        pulled = dx @ space.metric[:-1]
        slope = slope + (pulled @ space.full(x)[:, :, None])[:, :, 0]
        bend = bend + pulled[:, :, :-1] @ dx.mT
    values, vectors = torch.linalg.eigh(bend)
    # The metric may bend downwards; steps must not go uphill there.
    values = values.abs()
    stiff = values + (damping * values.mean(dim=1))[:, None]
    return (vectors @ ((vectors.mT @ slope[:, :, None]) / stiff[:, :, None]))[:, :, 0]


def choose(found: Sequence[Tensor], spaces: Sequence[RowSpace], count: int) -> list[int]:
    """Indices of at most ``count`` points that together explain most of the gradients.

    Greedy: ``found`` holds each layer's inputs (N, n) of all points. A layer's gradient is D^T H,
    with D free, so a point adds the energy of the gradient along the part of its input that the
    points before it do not span. Noise has energy everywhere: that much does not count. A point
    outside of the row spaces by more than noise explains counts for less, and a point whose input
    is not known well enough to tell it from those before it not at all.
    """
    room = sum(space.room for space in spaces)
    misfit = torch.stack([space.misfit(x) for x, space in zip(found, spaces, strict=True)])
    trust = (misfit.sum(dim=0) / max(room, 1)).clamp_min(1.0)
    units = sum(len(space.gradient) for space in spaces)
    noise = units + 4 * (2 * units) ** 0.5
    rests = [space.full(x) for x, space in zip(found, spaces, strict=True)]
    blurs = [space.outside(x) for x, space in zip(found, spaces, strict=True)]
    chosen: list[int] = []
    while len(chosen) < min(count, len(trust)):
        gain = torch.zeros_like(trust)
        for rest, blur, space in zip(rests, blurs, spaces, strict=True):
            square = rest.square().sum(dim=1).clamp_min(1e-300)
            energy = (rest @ space.gradient.T).square().sum(dim=1) / square
            gain += torch.where(square > MARGIN * blur, energy, 0.0)
        worth = torch.where(trust <= DOUBTFUL, (gain - noise) / trust, -torch.inf)
        best = int(worth.argmax())
        if worth[best] <= 0:
            break
        chosen.append(best)
        for index, rest in enumerate(rests):
            axis = rest[best] / rest[best].norm().clamp_min(1e-300)
            rests[index] = rest - (rest @ axis)[:, None] * axis
    return chosen


def least_explained(
    points: Tensor, spaces: Sequence[RowSpace], inputs: Inputs, known: Tensor, count: int
) -> Tensor:
    """The ``count`` of ``points`` (N, K) that differ most, within the row spaces, from ``known``.

    A record not found yet has a large part there that the records ``known`` (k, K) do not span.
    """
    score = torch.zeros(len(points), dtype=torch.float64)
    for x, done, space in zip(inputs.at(points), inputs.at(known), spaces, strict=True):
        full = space.full(x)
        inside = full / full.norm(dim=1, keepdim=True) @ space.basis @ space.basis.T
        span = torch.linalg.qr(space.full(done).T)[0]
        score += (inside - (inside @ span) @ span.T).square().sum(dim=1)
    return points[score.argsort(descending=True)[:count]]


def _cost(found: Sequence[Tensor], points: Tensor, spaces: Sequence[RowSpace]) -> Tensor:
    cost = points.square().sum(dim=1)
    for x, space in zip(found, spaces, strict=True):
        full = space.full(x)
        cost = cost + ((full @ space.metric) * full).sum(dim=1)
    return cost
