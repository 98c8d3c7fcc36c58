"""Clipping of each parameter tensor of a client's gradient by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defenses.layout import Layout
from defenses.registry import register_defense
from defenses.stages import Payload


@register_defense(
    "layer-clip",
    stage="transform",
    level="norm",
    grid=(1.0, 0.01),
    minimum=0.0,
    exclusive_minimum=True,
    private_end="low",
    summary="scales each tensor of a client's mean gradient down to an L2 norm of at most this",
    guarantee="no formal guarantee",
    in_default_sweep=False,
)
@dataclass(frozen=True)
class LayerClip:
    """Scales each parameter tensor g_t of the mean gradient by min(1, ``norm`` / ||g_t||_2).

    A layer is one parameter tensor, as in Opacus' per-layer clipping: weight and bias have scales
    of their own. Of one record's gradient [dW | db] = d (x, 1)^T this hides ||d|| and, where both
    are clipped, ||x||, but not the direction of x; later layers then tell its length.
    """

    norm: float

    uses_memory = False

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data; see ``defenses.stages``."""
        return {
            "mechanism": "layer-clip",
            "stage": "transform",
            "tensor_norm": self.norm,
            "formal_guarantee": False,
            "server_receives": "each client's mean gradient, every parameter tensor scaled to an "
            f"L2 norm of at most {self.norm:g}",
            "sensitivity": f"at most {2 * self.norm:g} sqrt(tensors) (L2) when a client's data "
            "change, but no noise is calibrated to it",
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
        """(clients, P) in which every tensor's norm is at most ``norm``."""
        tiny = torch.finfo(releases.dtype).tiny
        parts = []
        for part in releases.split(layout.sizes, dim=1):
            norms = torch.linalg.vector_norm(part, dim=1, keepdim=True)
            parts.append(part * (self.norm / norms.clamp_min(tiny)).clamp_max(1.0))
        return torch.cat(parts, dim=1)

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """Clipping changes no size."""
        return payload
