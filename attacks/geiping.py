"""Inverting Gradients: matching the gradient's direction only.

Geiping, Bauermeister, Droege, Moeller, NeurIPS 2020 (arXiv 2003.14053): cosine distance with a
total-variation prior on images, Adam instead of its signed variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from attacks.attack import Attack, Reconstruction
from attacks.matching import match
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.registry import register_attack
from attacks.transitions import Transitions


@register_attack("geiping", summary="cosine gradient matching, smooth images (Inverting Gradients)")
@dataclass(frozen=True)
class Geiping(Attack):
    """Minimises 1 - cos(g~, g) + total_variation * TV(s~), from N(0, 1) draws.

    TV is the mean absolute difference of neighbouring pixels, grey levels taken in [0, 1]. It
    applies to states of shape (channels, height, width) and to no others.
    """

    iterations: int = 400
    restarts: int = 2
    learning_rate: float = 0.1
    total_variation: float = 1e-4

    def solve(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """Uses nothing of the prior."""
        template = observations[0].template

        def smoothness(z: Transitions) -> Tensor:
            across = z.state.diff(dim=-1).abs().mean(dim=(1, 2, 3))
            down = z.state.diff(dim=-2).abs().mean(dim=(1, 2, 3))
            return self.total_variation / template.state_unit * (across + down)

        return match(
            observations,
            distance="cosine",
            iterations=self.iterations,
            restarts=self.restarts,
            learning_rate=self.learning_rate,
            seed=seed,
            penalty=smoothness if template.image else None,
        )
