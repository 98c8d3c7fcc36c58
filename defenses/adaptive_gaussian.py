"""Gaussian noise that follows the norm of the gradient that it hides."""

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
    "adaptive-gaussian",
    stage="transform",
    level="noise-to-signal ratio",
    grid=(0.1, 3.0, 100.0),
    minimum=0.0,
    private_end="high",
    summary="adds Gaussian noise whose norm is this multiple of each client's gradient norm",
    guarantee="no formal guarantee",
    in_default_sweep=False,
)
@dataclass(frozen=True)
class AdaptiveGaussian:
    """Adds N(0, s^2) to every coordinate of g, s = ``ratio`` ||g||_2 / sqrt(P).

    Noise of fixed size hides gradients of small norm well and those of large norm badly, and what
    is large changes over training. Here every release has the same signal-to-noise ratio.

    The norm leaks: ||release||^2 is (1 + ratio^2) ||g||^2 up to a relative error of about
    sqrt(2 / P), so the server knows ||g|| almost exactly, one equation about the record. No
    differential privacy: the noise's own scale depends on the data.
    """

    ratio: float

    uses_memory = False

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data; see ``defenses.stages``."""
        return {
            "mechanism": "adaptive-gaussian",
            "stage": "transform",
            "noise_to_signal": self.ratio,
            "formal_guarantee": False,
            "server_receives": "each client's mean gradient plus independent Gaussian noise, whose "
            f"norm is about {self.ratio:g} times the gradient's; with it, the gradient's norm",
            "sensitivity": "unbounded: the noise's scale follows the data",
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
        """(clients, P) plus noise in proportion to each row's norm; a zero row stays zero."""
        norms = torch.linalg.vector_norm(releases, dim=1, keepdim=True)
        noise = torch.empty_like(releases).normal_(generator=generator)
        return releases + (self.ratio / math.sqrt(releases.shape[1])) * norms * noise

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """Noise makes every coordinate a float again."""
        return Payload(parameters)
