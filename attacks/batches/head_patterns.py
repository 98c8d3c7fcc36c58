"""Finds which units of the last hidden layer each record of a batch activates; see ``unmixing``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.batches.binary_factors import (
    PHASE,
    Judge,
    Patterns,
    Subspace,
    binary_vectors,
    independent,
)
from attacks.batches.dense_stacks import Stack
from attacks.batches.exchange import exchange
from attacks.batches.low_rank import LowRank

CHOICES = 8
"""Rounds of choosing candidates that confirm one another, at most."""

CANDIDATES = 256
"""Accepted patterns among which a set that agrees is sought, at most, the nearest."""

STARTS = 4
"""Sets that the exchanges begin with."""

SEARCHES = 4
"""For patterns, where no set of those found agrees with its inputs and no noise explains it."""

DEFLATION = 10.0
"""How much noisier a gradient counts as when the records known so far are taken out of it."""


@dataclass(frozen=True, eq=False)
class Deltas:
    """Records' output gradients, each up to a factor.

    Attributes:
        directions: (k, m) in the column space of the received gradient.
        active: (k, m) which units are active.
        heads: (k,) index of the head's output that the record used.
        accepted: (k,) whether the noise explains the distance to the subspace.
    """

    directions: Tensor
    active: Tensor
    heads: Tensor
    accepted: Tensor


def read_inputs(deltas: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, float]:
    """Inputs (k, n), scales (k,) and misfit of gradient = (scale * deltas)^T [inputs | 1]."""
    rows = torch.linalg.lstsq(deltas.T, gradient, driver="gelsd").solution
    scale = rows[:, -1]
    misfit = float((gradient - deltas.T @ rows).norm())
    return rows[:, :-1] / scale[:, None], scale, misfit


def find_deltas(
    low: LowRank,
    stack: Stack,
    gradient: Tensor,
    *,
    generator: torch.Generator,
    iterations: int,
    searches: int,
) -> Deltas:
    """Independent ones, at most as many as the rank of the last hidden layer's ``gradient``.

    Args:
        searches: for patterns, at most, for as long as enough are accepted and do not agree with
            their inputs; under noise none need to.
    """
    search = _Search(low, stack, gradient)
    pool = _found(search, stack, generator, iterations, phase=0)
    best, least = pool, math.inf
    for phase in range(1, searches + 1):
        if not len(pool.misfit):
            break
        chosen, cost = _agreeing(search, _choose(search, pool), pool, generator)
        if cost < least or phase == 1:
            best, least = chosen, cost
        sure = len(chosen.misfit) == low.rank and bool(chosen.accepted.all())
        if least == 0 or phase == searches or not sure:
            break
        pool = search.merged(pool, _found(search, stack, generator, iterations, phase))
    return Deltas(search.directions(best), best.vectors != 0, best.scales, best.accepted)


def _found(
    search: _Search, stack: Stack, generator: torch.Generator, iterations: int, phase: int
) -> Patterns:
    """Candidates of one search."""
    if stack.hidden[-1].norm is not None:
        return _deflating(search, stack, generator, iterations)
    return binary_vectors(
        search.subspace,
        search.scales,
        search.low.rank,
        generator=generator,
        iterations=iterations,
        phase=phase,
    )


class _Search:
    """The subspace of one gradient (m, n + 1) and what its candidates say of the records."""

    def __init__(self, low: LowRank, stack: Stack, gradient: Tensor) -> None:
        self.low, self.last, self.gradient = low, stack.hidden[-1], gradient
        self.scales = stack.head * self.last.gain
        columns, std = [low.left], [low.noise_std / low.singular]
        if self.last.norm is not None:
            weight = self.last.weight
            columns += [weight @ low.right, torch.ones_like(low.left[:, :1])]
            size = weight.square().sum(dim=1).mean().sqrt()
            std += [size * low.noise_std / low.singular, torch.zeros(1, dtype=torch.float64)]
        self.subspace = Subspace(torch.cat(columns, dim=1), torch.cat(std))
        basis = self.subspace.basis()
        self._judges = [
            Judge(self.subspace, basis, scale, index) for index, scale in enumerate(self.scales)
        ]
        self._heard = torch.stack([judge.heard for judge in self._judges])

    def directions(self, found: Patterns) -> Tensor:
        """The parts (k, m) of candidates in the gradient's column space."""
        coefficients = self.subspace.coefficients(found.vectors)
        return coefficients[:, : self.low.rank] @ self.low.left.T

    def activated(self, inputs: Tensor, scales: Tensor) -> Tensor:
        """Vectors (k, m) of the patterns that ``inputs`` (k, n) activate."""
        weight = self.last.weight
        rectified = self.last.normalise(inputs @ weight[:, :-1].T + weight[:, -1])
        return (rectified > 0) * self.scales[scales]

    def merged(self, pool: Patterns, fresh: Patterns) -> Patterns:
        """The different patterns of both."""
        both = Patterns.cat([pool, fresh])
        return self.judged(both.vectors, both.scales)

    def disagreeing(self, outputs: Tensor, found: Patterns) -> Tensor:
        """Units (c, r) that inputs activate otherwise than the patterns of ``found`` (c r) say.

        ``outputs`` (c, r, m + 1): of the linear part, and the inputs' one, up to a common factor.
        """
        rectified = self.last.normalise(outputs[..., :-1] / outputs[..., -1:])
        heard = self._heard[found.scales].unflatten(0, outputs.shape[:2])
        active = (found.vectors != 0).unflatten(0, outputs.shape[:2])
        return (((rectified > 0) != active) & heard).sum(dim=-1)

    def judged(self, vectors: Tensor, scales: Tensor) -> Patterns:
        """Different patterns of ``vectors`` (k, m), and whether they lie in the subspace."""
        parts = [
            judge.verdict(judge.distinct(judge.improve(vectors[scales == index] != 0)))
            for index, judge in enumerate(self._judges)
        ]
        return Patterns.cat(parts)

    def own_inputs(self, found: Patterns) -> Tensor:
        """Inputs with their one, (k, n + 1), that candidates' normalised outputs tell."""
        rank = self.low.rank
        coefficients = self.subspace.coefficients(found.vectors)[:, rank : 2 * rank]
        rows = coefficients @ self.low.right.T
        return rows / rows[:, -1:]


def _deflating(
    search: _Search, stack: Stack, generator: torch.Generator, iterations: int
) -> Patterns:
    """Candidates under a LayerNorm, where one found makes the others easier to find.

    It tells its own d, and by its normalised outputs its own input. Their product leaves the
    gradient, and the subspace loses two dimensions. What is then found is judged in the whole one.
    """
    rank, rest = search.low.rank, search
    sure = search.judged(search.gradient.new_zeros(0, len(search.gradient)), torch.zeros(0).long())
    pool = sure
    for phase in range(-(-iterations // PHASE)):
        found = binary_vectors(
            rest.subspace,
            rest.scales,
            rest.low.rank,
            generator=generator,
            iterations=min(PHASE, iterations - phase * PHASE),
            phase=phase,
        )
        everything = Patterns.cat([sure, found])
        pool = search.judged(everything.vectors, everything.scales)
        sure = pool[pool.accepted]
        if len(independent(sure.vectors, rank)) == rank:
            break
        gradient, known = _deflated(search, sure)
        low = LowRank.of(gradient, rank - known, DEFLATION * search.low.noise_std)
        rest = _Search(low, stack, gradient) if known > 0 and low.rank > 0 else search
    return pool


def _deflated(search: _Search, found: Patterns) -> tuple[Tensor, int]:
    """The gradient without some of the records ``found``, and how many were taken out.

    Wedderburn's rank reduction: d h^T / (h^T G^+ d) leaves G with one rank less. Only candidates
    that their own inputs confirm are taken out.
    """
    inputs = search.own_inputs(found)
    activated = search.activated(inputs[:, :-1].nan_to_num(), found.scales)
    differs = (activated - found.vectors).norm(dim=1) / found.vectors.norm(dim=1)
    confirmed = ((differs < 0.1) & inputs.isfinite().all(dim=1)).nonzero()[:, 0]
    chosen = confirmed[independent(found.vectors[confirmed], search.low.rank)]
    low, rows = search.low, inputs[chosen]
    directions = search.directions(found[chosen])
    inverse = (low.right / low.singular) @ low.left.T
    scale = 1 / ((rows @ inverse) * directions).sum(dim=1)
    return search.gradient - (scale[:, None] * directions).T @ rows, len(chosen)


def _agreeing(
    search: _Search, chosen: Patterns, pool: Patterns, generator: torch.Generator
) -> tuple[Patterns, float]:
    """Exchanges of ``chosen`` for others of the pool, and how many units then still disagree."""
    rank, low, weight = search.low.rank, search.low, search.last.weight
    accepted = pool[pool.accepted]
    nearest = accepted[accepted.misfit.argsort()[:CANDIDATES]]
    both = Patterns.cat([chosen, nearest])
    if len(chosen.misfit) < rank:
        return chosen, math.inf
    candidates = search.subspace.coefficients(both.vectors)[:, :rank]
    inputs = low.singular[:, None] * low.right.T
    rows = torch.cat([inputs @ weight.T, inputs[:, -1:]], dim=1)

    def costs(outputs: Tensor, sets: Tensor) -> Tensor:
        return search.disagreeing(outputs, both[sets.flatten()])

    best, least = exchange(candidates, rows, torch.arange(rank), costs)
    for _ in range(STARTS - 1):
        if least == 0:
            break
        order = torch.randperm(len(both.misfit), generator=generator)
        start = order[independent(both.vectors[order], rank)]
        if len(start) < rank:
            continue
        found, cost = exchange(candidates, rows, start, costs)
        if cost < least:
            best, least = found, cost
    return both[best], least


def _choose(search: _Search, pool: Patterns) -> Patterns:
    """Independent candidates whose inputs activate the very units of their patterns.

    A pattern made of others, p_j = p_i + p_k - p_l, passes every test of its own. Chosen in place
    of p_l it takes up that record's input, which tells: it activates p_l. So patterns that inputs
    activate join the pool, and candidates that are confirmed so go first in the next choice.
    """
    favour = -pool.misfit - 10.0 * ~pool.accepted
    best, agreed = pool, -1
    for _ in range(CHOICES):
        order = favour.argsort(descending=True)
        chosen = order[independent(pool.vectors[order], search.low.rank)]
        found = pool[chosen]
        inputs = read_inputs(search.directions(found), search.gradient)[0].nan_to_num()
        activated = search.activated(inputs, found.scales)
        distance = torch.cdist(activated, pool.vectors)
        nearest = distance.argmin(dim=1)
        agrees = nearest == chosen
        new = distance.amin(dim=1) > 1e-6 * activated.norm(dim=1)
        fresh = search.judged(activated[new], found.scales[new])
        fresh = fresh[fresh.accepted]
        fresh = fresh[torch.cdist(fresh.vectors, pool.vectors).amin(dim=1) > 0]
        if int(agrees.sum()) > agreed:
            best, agreed = found, int(agrees.sum())
        if bool(agrees.all()) and not len(fresh.misfit):
            break
        favour[chosen[~agrees]] -= 1.0
        favour[nearest[~agrees]] += 2.0
        if len(fresh.misfit):
            pool = Patterns.cat([pool, fresh])
            favour = torch.cat([favour, 2.0 - fresh.misfit])
            agreed = -1
    return best
