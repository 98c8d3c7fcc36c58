"""Finds vectors of zeros and ones in a linear subspace, up to known factors and noise.

The set {scale * p : p binary} and the subspace are both easy to project onto, so a point of both is
sought by Douglas-Rachford splitting (the "difference map": Elser, 2003, J. Opt. Soc. Am. A 20(1);
Elser, Rankenburg, Thibault, PNAS 2007). Unlike rounding to and fro it does not stop at the
spurious fixed points that almost all starts of the plain iteration end in. Binary factorisation:
van der Veen, 1997, IEEE Trans. Signal Processing 45(4); Slawski, Hein, Lutsik, NeurIPS 2013.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHECK_EVERY = 25
FLIPS = 8

RELAXATION = 0.6
"""Step of the splitting. Smaller than one finds rarer patterns; measured on critics' gradients."""

PHASE = 1000
POWERS = (0.5, 0.25, 0.75)
"""Each phase of the search weighs row j by |scale_j| to another power. One metric alone lets a few
patterns attract nearly all starts: with 0.5 all of 16 are found where 1 finds 11."""

TOLERANCE = 1.5
"""Candidates may miss the subspace by so many times what the noise explains; true ones miss it by
0.8 to 1.1 times that, up to the point where singular directions drown."""

STARTS_PER_DIMENSION = 32
"""Of the subspace: fewer dimensions hold fewer patterns to end in."""

LIMIT = 0.3
"""No vector misses the subspace by more than this share of its norm, whatever the noise."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """Span of ``columns`` (M, d), each known up to independent noise of ``std`` (d,) an entry."""

    columns: Tensor
    std: Tensor

    def basis(self) -> Tensor:
        """Orthonormal basis (M, at most d)."""
        left, singular, _ = torch.linalg.svd(self.columns, full_matrices=False)
        return left[:, singular > 1e-12 * singular[0]]

    def coefficients(self, vectors: Tensor) -> Tensor:
        """Least-squares coefficients (k, d) of ``vectors`` (k, M) in the columns."""
        if not len(vectors):  # LAPACK refuses
            return vectors.new_zeros(0, self.columns.shape[1])
        return torch.linalg.lstsq(self.columns, vectors.T, driver="gelsd").solution.T

    def expected_misfit(self, vectors: Tensor) -> Tensor:
        """Norm (k,) of what noise alone would leave of ``vectors`` (k, M) outside the span."""
        noise = (self.coefficients(vectors) * self.std).norm(dim=1)
        return noise * len(self.columns) ** 0.5


@dataclass(frozen=True, eq=False)
class Patterns:
    """Candidates.

    Attributes:
        vectors: (k, M), scale * pattern.
        scales: (k,) index of the scale.
        misfit: (k,) distance to the subspace over the vector's norm.
        accepted: (k,) whether the noise explains that misfit.
    """

    vectors: Tensor
    scales: Tensor
    misfit: Tensor
    accepted: Tensor

    def __getitem__(self, index: Tensor) -> Patterns:
        """Selected candidates."""
        return Patterns(
            self.vectors[index], self.scales[index], self.misfit[index], self.accepted[index]
        )

    @staticmethod
    def cat(parts: Sequence[Patterns]) -> Patterns:
        """All candidates of ``parts`` in order."""
        return Patterns(
            torch.cat([p.vectors for p in parts]),
            torch.cat([p.scales for p in parts]),
            torch.cat([p.misfit for p in parts]),
            torch.cat([p.accepted for p in parts]),
        )


def binary_vectors(
    subspace: Subspace,
    scales: Tensor,
    wanted: int,
    *,
    generator: torch.Generator,
    starts: int = 256,
    iterations: int = 4000,
    phase: int = 0,
) -> Patterns:
    """Patterns p with scale * p near the subspace; stops once ``wanted`` independent are accepted.

    More may come back: a sum of patterns minus another may happen to be one. If fewer are accepted,
    the nearest of the others follow.

    Args:
        subspace: where to search.
        scales: (K, M) known factors, each of which some of the vectors have. Entries near zero say
            nothing and are left out (p is 0 there).
        wanted: dimension that the vectors span.
        generator: of the random starts.
        starts: points iterated at once, at most.
        iterations: of the splitting for each scale, at most.
        phase: how many phases of an interrupted search have been.
    """
    basis = subspace.basis()
    starts = min(starts, STARTS_PER_DIMENSION * basis.shape[1])
    judges = [Judge(subspace, basis, scale, index) for index, scale in enumerate(scales)]
    known = [torch.zeros(0, len(basis), dtype=torch.bool) for _ in scales]
    others = known.copy()
    for start in range(0, iterations, PHASE):
        power = POWERS[(phase + start // PHASE) % len(POWERS)]
        for index, judge in enumerate(judges):
            search = _Search(judge, power)
            x = search.draw(starts, known[index], generator)
            for step in range(1, min(PHASE, iterations - start) + 1):
                inside = search.project(x)
                binary = ((2 * inside - x) > 0.5) & judge.heard
                x = x + RELAXATION * (binary.to(x.dtype) - inside)
                if step % CHECK_EVERY:
                    continue
                arrived = judge.accepts(binary)
                if bool(arrived.any()):
                    found = judge.improve(binary[arrived])
                    known[index] = judge.distinct(torch.cat([known[index], found]))
                    verdicts = [j.verdict(k) for j, k in zip(judges, known, strict=True)]
                    answer = Patterns.cat(verdicts)
                    if len(independent(answer.vectors, wanted)) == wanted:
                        return answer
                    x[arrived] = search.draw(int(arrived.sum()), known[index], generator)
            others[index] = judge.improve(binary)
    parts = [torch.cat(pair) for pair in zip(known, others, strict=True)]
    return Patterns.cat([j.verdict(j.distinct(p)) for j, p in zip(judges, parts, strict=True)])


def independent(rows: Tensor, limit: int, tolerance: float = 1e-8) -> Tensor:
    """Indices of the first ``limit`` of ``rows`` (k, M) that no others before them combine to.

    Up to a relative ``tolerance``.
    """
    kept: list[int] = []
    basis = rows.new_zeros(0, rows.shape[1])
    for index, row in enumerate(rows):
        rest = row - (row @ basis.T) @ basis
        rest = rest - (rest @ basis.T) @ basis
        if float(rest.norm()) > tolerance * float(row.norm()):
            kept.append(index)
            basis = torch.cat([basis, (rest / rest.norm())[None]])
        if len(kept) == limit:
            break
    return torch.tensor(kept, dtype=torch.long)


class _Search:
    """The two projections and the starts, in one metric, on points in units of the pattern.

    Arrival does not depend on the last digits, so this is float32.
    """

    def __init__(self, judge: Judge, power: float) -> None:
        factors = torch.where(judge.heard, judge.scale, 1.0)
        weights = factors.abs() ** (power - 1)
        # Rows with weights span another subspace, which has the same binary vectors in it.
        self._basis = torch.linalg.qr(judge.basis * weights[:, None])[0].float()
        self._factors = (factors * weights).float()

    def project(self, x: Tensor) -> Tensor:
        """Nearest points of the subspace, (k, M) to (k, M)."""
        return ((x * self._factors) @ self._basis) @ self._basis.T / self._factors

    def draw(self, count: int, known: Tensor, generator: torch.Generator) -> Tensor:
        """Random points (count, M) of the subspace, away from the patterns already known."""
        width = self._basis.shape[1]
        weights = torch.randn(count, width, generator=generator)
        if 0 < len(known) < width:
            taken = torch.linalg.qr(((known * self._factors) @ self._basis).T)[0]
            weights = weights - (weights @ taken) @ taken.T
        x = weights @ self._basis.T / self._factors
        return 0.5 + 0.5 * x / x.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-30)


@dataclass(frozen=True, eq=False)
class Judge:
    """Decides in float64 which patterns of one scale are near enough to the subspace."""

    subspace: Subspace
    basis: Tensor
    scale: Tensor
    index: int
    tolerance: float = TOLERANCE

    @property
    def heard(self) -> Tensor:
        """(M,) which entries are not too small to say anything."""
        return self.scale.abs() > 1e-6 * self.scale.abs().max()

    def verdict(self, binary: Tensor) -> Patterns:
        """All of ``binary`` (k, M) but zero, sorted by misfit."""
        binary = binary[binary.any(dim=1)]
        vectors = binary * self.scale
        misfit = self._misfit(vectors)
        order = misfit.argsort()
        scales = torch.full_like(order, self.index)
        return Patterns(vectors, scales, misfit, self.accepts(binary))[order]

    def accepts(self, binary: Tensor) -> Tensor:
        """(k,) whether the noise explains the misfit of ``binary`` (k, M)."""
        vectors = binary * self.scale
        norm = vectors.norm(dim=1).clamp_min(1e-300)
        misfit = self._misfit(vectors)
        near = misfit < LIMIT
        limit = torch.zeros_like(misfit)
        if bool(near.any()):  # most are far off, and the expectation costs a solve
            expected = self.subspace.expected_misfit(vectors[near]) / norm[near]
            limit[near] = (self.tolerance * expected).clamp(1e-7, LIMIT)
        return (misfit <= limit) & binary.any(dim=1)

    def distinct(self, binary: Tensor) -> Tensor:
        """Those of ``binary`` (k, M) that noise cannot make of one another, the nearest first.

        A direction drowned in noise takes many patterns that differ in small entries.
        """
        found = self.verdict(binary.unique(dim=0))
        noise = self.tolerance * self.subspace.expected_misfit(found.vectors)
        alike = torch.cdist(found.vectors, found.vectors) <= noise[:, None] + noise[None, :]
        kept: list[int] = []
        for index in range(len(noise)):
            if not bool(alike[index, kept].any()):
                kept.append(index)
        return found.vectors[kept] != 0

    def improve(self, binary: Tensor) -> Tensor:
        """Flips single entries of ``binary`` (k, M) for as long as the squared misfit falls.

        Where directions are drowned in noise, patterns a few entries off are accepted too.
        """
        diagonal = 1 - self.basis.square().sum(dim=1)
        rows = torch.arange(len(binary))
        for _ in range(FLIPS if len(binary) else 0):
            vectors = binary * self.scale
            rest = vectors - (vectors @ self.basis) @ self.basis.T
            step = torch.where(binary, -self.scale, self.scale)
            gain = 2 * step * rest + step.square() * diagonal
            best = gain.argmin(dim=1)
            better = gain[rows, best] < -1e-9 * vectors.square().sum(dim=1)
            if not bool(better.any()):
                break
            binary = binary.clone()
            binary[rows[better], best[better]] ^= True
        return binary

    def _misfit(self, vectors: Tensor) -> Tensor:
        norm = vectors.norm(dim=1).clamp_min(1e-300)
        return (vectors - (vectors @ self.basis) @ self.basis.T).norm(dim=1) / norm
