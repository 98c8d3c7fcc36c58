"""Deep Leakage from Gradients: plain gradient matching, the unregularised baseline.

Zhu, Liu, Han, NeurIPS 2019 (arXiv 1906.08935), with Adam in place of L-BFGS. In reinforcement
learning it meets the pseudo-solution problem: reward and next state enter the gradient only through
the target y, so many pairs (r, s') match it equally well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attacks.attack import Attack, Reconstruction
from attacks.matching import match
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.registry import register_attack


@register_attack("dlg", summary="gradient matching without prior knowledge (DLG)")
@dataclass(frozen=True)
class DLG(Attack):
    """Minimises ||g~ - g||^2 / ||g||^2 from N(0, 1) draws.

    If the channel may rescale the gradient, the distance is 1 - cos(g~, g) instead.
    """

    iterations: int = 400
    restarts: int = 2
    learning_rate: float = 0.1

    def solve(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """Uses nothing of the prior."""
        return match(
            observations,
            distance="cosine" if observations[0].channel.scale_unknown else "l2",
            iterations=self.iterations,
            restarts=self.restarts,
            learning_rate=self.learning_rate,
            seed=seed,
        )
