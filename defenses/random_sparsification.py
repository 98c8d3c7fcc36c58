"""Random-k sparsification without bias."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from defenses.layout import Layout
from defenses.registry import register_defense
from defenses.stages import Payload


@register_defense(
    "randk",
    stage="transform",
    level="fraction",
    grid=(0.1, 0.001, 0.00001),
    minimum=0.0,
    maximum=1.0,
    exclusive_minimum=True,
    private_end="low",
    summary="sends only this fraction of coordinates, drawn at random, scaled to stay unbiased",
    guarantee="no formal guarantee",
    in_default_sweep=False,
)
@dataclass(frozen=True)
class RandK:
    """Keeps k = ceil(``fraction`` P) coordinates drawn without replacement, times P / k.

    Unbiased (Konecny et al. 2016, arXiv 1610.05492, "random mask"; Wangni et al. 2018): E[output]
    = input, at P / k times the second moment. Every client draws new coordinates in every round
    from a seed that it shares with the server, so no positions are sent and the server knows them.
    It also knows P / k. Nothing is remembered: what is not sent is lost.
    """

    fraction: float

    uses_memory = False

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data; see ``defenses.stages``."""
        return {
            "mechanism": "randk",
            "stage": "transform",
            "fraction": self.fraction,
            "unbiased": True,
            "formal_guarantee": False,
            "server_receives": f"{100 * self.fraction:g}% of the coordinates of each client's "
            "gradient, whose positions follow from a shared seed, scaled by the inverse share",
            "sensitivity": "unbounded: the kept values are exact",
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
        """(clients, P) with each client's own k coordinates, the others zero."""
        parameters = releases.shape[1]
        kept = self._kept(parameters)
        index = (
            torch.rand(releases.shape, device=releases.device, generator=generator)
            .topk(kept, dim=1, sorted=False)
            .indices
        )
        values = releases.gather(1, index) * (parameters / kept)
        return torch.zeros_like(releases).scatter_(1, index, values)

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """The kept values; their positions follow from the shared seed."""
        return replace(payload, values=self._kept(parameters), index_bits=0)

    def _kept(self, parameters: int) -> int:
        return math.ceil(self.fraction * parameters)
