"""Clipping of a client's whole gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defenses.layout import Layout
from defenses.registry import register_defense
from defenses.stages import Payload


@register_defense(
    "clip",
    stage="transform",
    level="norm",
    grid=(10.0, 0.1),
    minimum=0.0,
    exclusive_minimum=True,
    private_end="low",
    summary="scales each client's mean gradient down to an L2 norm of at most this",
    guarantee="no formal guarantee",
)
@dataclass(frozen=True)
class Clip:
    """Scales a client's whole mean gradient g by min(1, ``norm`` / ||g||_2).

    Directions stay: it hides how large a gradient is, nothing else. A zero gradient stays zero.
    """

    norm: float

    uses_memory = False

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data; see ``defenses.stages``."""
        return {
            "mechanism": "clip",
            "stage": "transform",
            "norm": self.norm,
            "formal_guarantee": False,
            "server_receives": "each client's mean gradient, scaled to an L2 norm of at most "
            f"{self.norm:g}",
            "sensitivity": f"at most {2 * self.norm:g} (L2) when a client's data change, "
            "but no noise is calibrated to it",
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
        """(clients, P) with every row's norm at most ``norm``."""
        norms = torch.linalg.vector_norm(releases, dim=1, keepdim=True)
        tiny = torch.finfo(releases.dtype).tiny
        return releases * (self.norm / norms.clamp_min(tiny)).clamp_max(1.0)

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """Clipping changes no size."""
        return payload
