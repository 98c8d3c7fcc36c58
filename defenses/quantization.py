"""Stochastic uniform quantisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from defenses.layout import Layout
from defenses.registry import register_defense
from defenses.stages import Payload


@register_defense(
    "quantize",
    stage="transform",
    level="bits",
    grid=(8, 2, 1),
    minimum=1,
    maximum=16,
    integer=True,
    private_end="low",
    summary="rounds every coordinate at random, without bias, to a grid of this many bits",
    guarantee="no formal guarantee",
)
@dataclass(frozen=True)
class Quantize:
    """Unbiased stochastic rounding of each tensor to a uniform grid over [-max|v|, max|v|].

    QSGD (Alistarh et al. 2017, arXiv 1610.02132, section 3.1) with the largest magnitude as scale.
    From 2 bits the grid has 2^bits - 1 points, zero among them, so zeros stay zero (2 bits are
    TernGrad); 1 bit has the two points -max|v| and +max|v|: a scaled sign, drawn at random so that
    it is unbiased too (stochastic sign; Safaryan and Richtarik 2021, arXiv 1905.12938). E[output] =
    input exactly; the error of a coordinate is below one step, 2 max|v| / (points - 1).
    """

    bits: int

    uses_memory = False

    @property
    def steps(self) -> int:
        """Intervals of the grid: points - 1."""
        return 1 if self.bits == 1 else 2**self.bits - 2

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data; see ``defenses.stages``."""
        return {
            "mechanism": "quantize",
            "stage": "transform",
            "bits": self.bits,
            "points": self.steps + 1,
            "scale": "max_abs_per_tensor",
            "unbiased": True,
            "formal_guarantee": False,
            "server_receives": f"a {self.bits}-bit code per coordinate and the largest magnitude "
            "of each tensor",
            "sensitivity": "unbounded: the scale follows the data",
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
        """(clients, P) with each client's tensors on their grids."""
        parts = releases.split(layout.sizes, dim=1)
        scale = torch.cat(
            [part.abs().amax(1, keepdim=True).expand_as(part) for part in parts], dim=1
        )
        step = scale * (2.0 / self.steps)
        # Positions are counted from the middle of the grid: a point of it, or half-way for 1 bit.
        shift = 0.5 * (self.steps % 2)
        position = (releases / step.clamp_min(torch.finfo(releases.dtype).tiny)).add_(shift)
        below = position.floor()
        noise = torch.rand(
            releases.shape, dtype=releases.dtype, device=releases.device, generator=generator
        )
        code = below.add_(noise < position.sub_(below))
        # Rounding of the division may push the largest coordinate one step out of the grid.
        half = self.steps / 2
        return code.sub_(shift).clamp_(-half, half).mul_(step)

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """``bits`` a value, and one float32 scale a tensor."""
        return replace(payload, bits=self.bits, header=4 * tensors)
