"""RGIA for the adversary that knows nothing beforehand: its prior is replaced by plain assumptions.

RGIA (arXiv 2512.00303) leaves open what remains of it without samples. Without any, its three terms
keep a meaning each: R_s pulls towards the middle of the known range (zero where there is none) in
units of one; R_r is empty, no reward being implausible; and R_f becomes persistence, s' near s,
which holds in every environment whose steps are short. Persistence alone removes most
pseudo-solutions: see ``reports/rgia/ablation.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attacks.attack import Reconstruction
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.registry import register_attack
from attacks.rgia import RGIA


@register_attack(
    "rgia-zero",
    summary="rgia without prior knowledge: states near zero, next states near states",
    instead_of="rgia",
)
@dataclass(frozen=True)
class ZeroPriorRGIA(RGIA):
    """RGIA's objective and settings with the prior of the template alone."""

    def solve(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """Uses nothing of the prior that it is given."""
        return super().solve(observations, prior=Prior.none(observations[0].template), seed=seed)
