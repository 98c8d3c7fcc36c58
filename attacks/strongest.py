"""The adaptive ensemble: a frozen suite of attacks, and the most probable answer of each target.

AutoAttack's idea (Croce and Hein, ICML 2020, arXiv 2003.01690): no parameters to tune, a fixed
list, the worst case. The best answer is the one with the largest posterior density under the
channel that the defence declares; where no posterior can be formed, the one that explains the
gradient best. The truth has no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.attack import Attack, Reconstruction
from attacks.bayes.problem import Problem
from attacks.gradients.linear_layers import dense_layers
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.registry import get_attack, register_attack

STANDARD = ("analytic", "spear", "map", "rgia")
"""The frozen suite whose numbers may be compared between users."""


@register_attack(
    "strongest",
    summary="runs the standard suite and keeps each target's most probable answer",
    ensemble=True,
)
@dataclass(frozen=True)
class Strongest(Attack):
    """Parameter-free; costs as much as all members of ``STANDARD`` that fit together."""

    def unsupported(self, observation: Observation) -> str:
        """Needs one member that can be used."""
        reasons = {name: get_attack(name).unsupported(observation) for name in STANDARD}
        if any(not reason for reason in reasons.values()):
            return ""
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

    def solve(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """Members without the knowledge that they need are left out."""
        found: dict[str, list[Reconstruction]] = {}
        for name in STANDARD:
            attack = get_attack(name)
            if attack.unsupported(observations[0]) or not prior.grants.issuperset(attack.needs):
                continue
            found[name] = attack.reconstruct_many(observations, prior=prior, seed=seed)
        if not found:
            raise ValueError(f"no attack of {', '.join(STANDARD)} has the knowledge that it needs")
        judged = _judge(observations, found, prior)
        best = judged.argmin(dim=0).tolist()
        names = list(found)
        return [
            replace(
                found[names[choice]][target],
                objective=float(judged[choice, target]),
                notes=f"by {names[choice]}; {found[names[choice]][target].notes}",
            )
            for target, choice in enumerate(best)
        ]


def _judge(
    observations: Sequence[Observation], found: dict[str, list[Reconstruction]], prior: Prior
) -> Tensor:
    """(members, T), lower is better: minus log posterior, or the gradient matching error."""
    layers = dense_layers(observations[0])
    if layers is None or "map" not in found:
        errors = [[answer.gme for answer in answers] for answers in found.values()]
        return torch.tensor(errors, dtype=torch.float64).nan_to_num(nan=torch.inf)
    problem = Problem.of(observations, layers, prior)
    rows = [
        # map may answer with a mean; what counts is the density of the maximum that it found.
        torch.tensor([answer.objective for answer in answers], dtype=torch.float64)
        if name == "map"
        else problem.values(answers).cpu()
        for name, answers in found.items()
    ]
    return torch.stack(rows).nan_to_num(nan=torch.inf)
