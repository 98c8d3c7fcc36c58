"""Chooses among candidate patterns the set whose records' inputs activate the very units of it.

Records that took one action and activate nearly the same units have patterns with others in between
that lie in the same subspace. Every independent set of candidates explains the gradient equally
well, and what an input activates tells which set is right: for a wrong one, inputs come out as
mixtures of the records'. An input depends on the span of the other candidates alone, so that one
right exchange sets other inputs right at once: exchanges one at a time lead to the true set.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

INDEPENDENT = 1e-6
"""Share of a candidate, in terms of those chosen, that it must have of the one it replaces."""

CHUNK = 32
"""Candidates that are tried at once."""

Costs = Callable[[Tensor, Tensor], Tensor]
"""(c, r, q) inputs or linear functions of them, and the candidates (c, r) that they belong to, to
what speaks against each, (c, r), zero where nothing does."""


def exchange(candidates: Tensor, rows: Tensor, start: Tensor, costs: Costs) -> tuple[Tensor, float]:
    """Exchanges chosen candidates for others, best first, for as long as all costs together fall.

    Args:
        candidates: (k, r) directions of output gradients in a basis of their column space.
        rows: (r, q) candidates^T [inputs] of the true ones, or linear functions of that.
        start: (r,) indices of independent candidates to begin with.

    Returns:
        (r,) indices, and what all of them cost; infinite if those to begin with are dependent.
    """
    chosen = start.clone()
    inputs, singular = torch.linalg.solve_ex(candidates[chosen].T, rows)
    if int(singular):
        return chosen, math.inf
    least = float(costs(inputs[None], chosen[None]).sum())
    while least > 0:
        weights = torch.linalg.solve(candidates[chosen].T, candidates.T).T  # (k, r)
        best: tuple[int, int] | None = None
        for place in range(len(chosen)):
            able = weights[:, place].abs() > INDEPENDENT * weights.abs().amax(dim=1)
            able[chosen] = False
            for some in able.nonzero()[:, 0].split(CHUNK):
                tried, sets = _with(inputs, weights[some], place), chosen.repeat(len(some), 1)
                sets[:, place] = some
                total = costs(tried, sets).sum(dim=1)
                if len(some) and float(total.min()) < least:
                    least, best = float(total.min()), (place, int(some[total.argmin()]))
        if best is None:
            break
        chosen[best[0]] = best[1]
        inputs = torch.linalg.solve(candidates[chosen].T, rows)
    return chosen, least


def _with(inputs: Tensor, weights: Tensor, place: int) -> Tensor:
    """Inputs (c, r, q) with one chosen candidate replaced by each of some, of these weights (c, r).

    sum_j d_j x_j with d = sum_j w_j d_j in place of d_p: x_p / w_p, and x_j - w_j x_p / w_p.
    """
    replaced = inputs[place] / weights[:, place, None]
    tried = inputs - weights[:, :, None] * replaced[:, None, :]
    tried[:, place] = replaced
    return tried
