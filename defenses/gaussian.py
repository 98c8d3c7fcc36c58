"""Gaussian noise on the shared gradient, without clipping."""

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
    "gaussian",
    stage="transform",
    level="variance",
    grid=(1e-5, 1e-3, 1e-1, 10.0),
    minimum=0.0,
    private_end="high",
    summary="adds N(0, variance) to every coordinate of each client's mean gradient",
    guarantee="no formal guarantee",
)
@dataclass(frozen=True)
class Gaussian:
    """Adds independent N(0, ``variance``) noise to every coordinate of the mean gradient.

    The gradient is not clipped, so its sensitivity is unbounded and no noise of fixed size gives
    differential privacy. Variance 0 changes nothing.
    """

    variance: float

    uses_memory = False

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on one coordinate of one client's release."""
        return math.sqrt(self.variance)

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data; see ``defenses.stages``."""
        return {
            "mechanism": "gaussian",
            "stage": "transform",
            "variance": self.variance,
            "noise_std": self.noise_std,
            "formal_guarantee": False,
            "server_receives": "each client's mean gradient plus independent noise of standard "
            f"deviation {self.noise_std:g} on every coordinate",
            "sensitivity": "unbounded: the gradient is not clipped",
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
        return releases + self.noise_std * _standard_normal(releases, generator)

    def apply_to_mean(self, mean: Tensor, clients: int, generator: torch.Generator) -> Tensor:
        """(P,) plus the mean of ``clients`` independent noises: N(0, variance / clients)."""
        std = self.noise_std / math.sqrt(clients)
        return mean + std * _standard_normal(mean, generator)

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """Noise makes every coordinate a float again."""
        return Payload(parameters)


def _standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like).normal_(generator=generator)
