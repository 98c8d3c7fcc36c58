"""The part of a layer's gradient that stands out of its noise: b records have b directions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

SEEN, LEAST_SEEN = 2.0, 1000
"""How many times the noise seen beyond the rank is taken for it, from so many numbers on."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """The part of a gradient (m, n) that stands out of the noise: left diag(singular) right^T."""

    left: Tensor
    singular: Tensor
    right: Tensor
    noise_std: float

    @classmethod
    def of(cls, gradient: Tensor, limit: int, noise_std: float) -> LowRank:
        """At most ``limit`` directions; those below the noise's own largest are dropped."""
        left, singular, right = torch.linalg.svd(gradient, full_matrices=False)
        floor = noise_std * (gradient.shape[0] ** 0.5 + gradient.shape[1] ** 0.5)
        rank = min(limit, int((singular > floor).sum()))
        return cls(left[:, :rank], singular[:rank], right[:rank].T, noise_std)

    def measured(self, gradient: Tensor) -> LowRank:
        """With the noise that the rest of ``gradient`` shows, where what was bounded is more."""
        rest = (gradient.shape[0] - self.rank) * (gradient.shape[1] - self.rank)
        if rest < LEAST_SEEN:
            return self
        known = self.left @ (self.singular[:, None] * self.right.T)
        left = (gradient - known).square().sum()
        return replace(self, noise_std=min(self.noise_std, SEEN * float(left / rest) ** 0.5))

    @property
    def rank(self) -> int:
        """Number of directions kept."""
        return len(self.singular)
