"""Laplace noise on the shared gradient, without clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defenses.layout import Layout
from defenses.registry import register_defense
from defenses.stages import Payload


@register_defense(
    "laplace",
    stage="transform",
    level="scale",
    grid=(0.003, 0.03, 0.3, 3.0),
    minimum=0.0,
    private_end="high",
    summary="adds Laplace noise of this scale to every coordinate of each client's mean gradient",
    guarantee="no formal guarantee",
    in_default_sweep=False,
)
@dataclass(frozen=True)
class Laplace:
    """Adds independent Laplace(0, ``scale``) noise, of variance 2 ``scale``^2, to every coordinate.

    No epsilon, whatever stands before it: the Laplace mechanism (Dwork et al. 2006) is calibrated
    to the L1 sensitivity, which without clipping is unbounded, and after ``clip`` to an L2 norm C
    still as large as 2 C sqrt(P) for P parameters.

    An adversary that knows the law does better than with Gaussian noise of the same variance: the
    Fisher information about a coordinate is 1 / scale^2, twice 1 / variance.
    """

    scale: float

    uses_memory = False

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on one coordinate of one client's release."""
        return math.sqrt(2) * self.scale

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data; see ``defenses.stages``."""
        return {
            "mechanism": "laplace",
            "stage": "transform",
            "scale": self.scale,
            "noise_std": self.noise_std,
            "formal_guarantee": False,
            "server_receives": "each client's mean gradient plus independent Laplace noise of "
            f"scale {self.scale:g} on every coordinate",
            "sensitivity": "unbounded: the gradient is not clipped in L1",
            "unit": None,
            "guarantee": "no formal guarantee",
        }

    def apply(
        self,
        releases: Tensor,
        layout: Layout,
        generator: torch.Generator,
        memory: Tensor | None,
    ) -> Tensor:
        """(clients, P) plus independent noise for every client."""
        return releases + self.scale * _standard_laplace(releases, generator)

    def apply_to_mean(self, mean: Tensor, clients: int, generator: torch.Generator) -> Tensor:
        """(P,) plus the mean of ``clients`` independent noises, which is not Laplace itself."""
        noise = torch.zeros_like(mean)
        for _ in range(clients):
            noise += _standard_laplace(mean, generator)
        return mean + (self.scale / clients) * noise

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """Noise makes every coordinate a float again."""
        return Payload(parameters)


def _standard_laplace(like: Tensor, generator: torch.Generator) -> Tensor:
    """The difference of two exponentials; finite, unlike the inverse distribution function at 0."""
    up = torch.empty_like(like).exponential_(generator=generator)
    return up - torch.empty_like(like).exponential_(generator=generator)
