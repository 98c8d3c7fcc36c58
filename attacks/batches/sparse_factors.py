"""Finds the sparse vectors of a linear subspace: SPEAR's search, by splitting instead of sampling.

For a ReLU layer with inputs X (b, n) and output gradients D (b, m), dL/dW = D^T X has rank b, and
its column space holds the b columns of D^T, about half zeros each. SPEAR (Dimitrov et al., NeurIPS
2024, arXiv 2403.03945) samples b - 1 rows and keeps null vectors that are sparse; the share of
lucky samples falls as 2^-b. Here Douglas-Rachford splitting between unit vectors of the subspace
and sparse vectors moves towards one from any start, and least-trimmed-squares steps polish it:
the smallest right singular vector of the rows that are nearest to zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.batches.binary_factors import independent

CHECK_EVERY = 50
KEPT = 0.45
"""Share of entries that the splitting leaves non-zero: a little below that of active units."""

RELAXATION = 0.7
"""Step of the splitting, as in ``binary_factors``."""

EXTRA = 300
"""Iterations after enough independent ones are known: a sparser one may replace a combination."""

TRIMMED = 0.3
"""Share of entries, the smallest, that a least-trimmed-squares step looks at."""

ZEROS = 0.15
"""Share of zeros that a sparse vector has beyond the r - 1 that any vector can be given."""

TOLERANCE = 4.0
"""Entries are zero within so many standard deviations of their noise."""


@dataclass(frozen=True, eq=False)
class SparseVectors:
    """Unit coefficients (k, r) of independent sparse vectors and their numbers of zeros (k,).

    ``accepted`` (k,) says which have clearly more zeros than chance gives.
    """

    coefficients: Tensor
    zeros: Tensor
    accepted: Tensor


def sparse_vectors(
    left: Tensor,
    std: Tensor,
    *,
    generator: torch.Generator,
    starts: int = 128,
    iterations: int = 1500,
) -> SparseVectors:
    """The sparsest independent vectors of the span of ``left`` (M, r), at most r, sparsest first.

    ``std`` (r,) is the noise of each column's entries. If fewer are accepted, the sparsest of the
    others follow.
    """
    rank = left.shape[1]
    pool = torch.zeros(0, rank, dtype=left.dtype)
    enough = iterations
    x = _draw(left, pool, starts, generator)
    for step in range(1, iterations + 1):
        inside = _project(x, left)
        reflected = 2 * inside - x
        sparse = reflected * (reflected.abs() > _quantile(reflected, 1 - KEPT))
        x = x + RELAXATION * (sparse - inside)
        if step % CHECK_EVERY == 0 or step == iterations:
            points = _polish(_unit(sparse @ left), left)
            found = _count(points, left, std)
            pool = _merge(torch.cat([pool, points[found.accepted]]), left, std)
            x[found.accepted] = _draw(left, pool, int(found.accepted.sum()), generator)
            if len(pool) == rank:
                enough = min(enough, step)
            if step >= min(2 * enough + EXTRA, iterations):
                break
    if len(pool) < rank:
        pool = _merge(torch.cat([pool, points]), left, std)
    return _count(pool, left, std)


def with_zeros(found: SparseVectors, zeros: Tensor, left: Tensor, std: Tensor) -> SparseVectors:
    """The sparsest of ``found`` and of the vectors nearest to zero at ``zeros`` (k, M)."""
    rows = zeros.to(left.dtype)[:, :, None] * left
    nearest = torch.linalg.eigh(rows.mT @ rows)[1][:, :, 0]
    return _count(_merge(torch.cat([found.coefficients, nearest]), left, std), left, std)


def _draw(left: Tensor, known: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random unit vectors (count, M) of the subspace, away from those with known coefficients."""
    q = torch.randn(count, left.shape[1], generator=generator, dtype=left.dtype)
    if 0 < len(known) < left.shape[1]:
        taken = torch.linalg.qr(known.T)[0]
        q = q - (q @ taken) @ taken.T
    return _unit(q) @ left.T


def _project(x: Tensor, left: Tensor) -> Tensor:
    return _unit(x @ left) @ left.T


def _quantile(x: Tensor, share: float) -> Tensor:
    return x.abs().kthvalue(max(1, int(share * x.shape[1])), dim=1, keepdim=True).values


def _polish(q: Tensor, left: Tensor) -> Tensor:
    """Three concentration steps of least trimmed squares on coefficients (k, r)."""
    count = max(left.shape[1] + 1, int(TRIMMED * len(left)))
    for _ in range(3):
        smallest = (q @ left.T).abs().topk(min(count, len(left)), dim=1, largest=False).indices
        rows = left[smallest]
        q = torch.linalg.eigh(rows.mT @ rows)[1][:, :, 0]
    return q


def _count(q: Tensor, left: Tensor, std: Tensor) -> SparseVectors:
    noise = (q * std).norm(dim=1, keepdim=True)
    limit = (TOLERANCE * noise).clamp(max=0.1 / len(left) ** 0.5)
    zeros = ((q @ left.T).abs() <= limit).sum(dim=1)
    return SparseVectors(q, zeros, zeros >= left.shape[1] - 1 + ZEROS * len(left))


def _merge(q: Tensor, left: Tensor, std: Tensor) -> Tensor:
    """Independent ones among ``q`` (k, r), those with most zeros first."""
    values = (q @ left.T).abs()
    smallest = values.topk(max(1, int(TRIMMED * len(left))), dim=1, largest=False).values
    order = (_count(q, left, std).zeros - smallest.norm(dim=1)).argsort(descending=True)
    return q[order][independent(q[order], left.shape[1], 1e-3)]


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-300)
