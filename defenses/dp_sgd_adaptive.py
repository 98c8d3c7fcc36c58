"""DP-SGD whose clipping norm follows a quantile of the samples' gradient norms.

Andrew et al. 2021 (arXiv 1905.03871): in every round the clients also release, with noise, how many
of their samples were not clipped, and the server moves the norm towards the wanted quantile. Where
gradients are heavy-tailed or grow during training, as critics' do, no fixed norm fits for long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from defenses.accounting import Accountant
from defenses.dp_sgd import DPSGD
from defenses.ghost_clipping import GhostClipping
from defenses.layout import Layout
from defenses.registry import DefenseError, register_defense
from defenses.stages import Losses, Sampling

SMALLEST_CLIP, LARGEST_CLIP = 1e-3, 1e6
"""Bounds of the clipping norm, public."""


@register_defense(
    "dp-sgd-adaptive",
    stage="per-sample",
    level="noise multiplier",
    grid=(0.003, 0.03, 0.1, 0.3),
    minimum=0.0,
    private_end="high",
    summary="dp-sgd whose clipping norm follows a noised quantile of the gradient norms",
    guarantee="(epsilon, delta)-DP per transition and client",
    in_default_sweep=False,
)
@dataclass(frozen=True)
class AdaptiveDPSGD:
    """DP-SGD (see ``defenses.dp_sgd``) with the clipping norm of Andrew et al., algorithm 1.

    Each round, client by client, sum of (1[norm_i <= C] - 1/2) + N(0, ``count_noise``^2) goes to
    the server with the gradient; with f = 1/2 + their mean / batch size, C is then multiplied by
    exp(-``rate`` (f - ``quantile``)) and broadcast. The batch size is the public constant, since
    the realised one is private under Poisson sampling.

    Formal guarantees:
        Those of DP-SGD at ``noise_multiplier``, for gradient and count together: the gradient's own
        noise multiplier is (z^-2 - (2 count_noise)^-2)^(-1/2), slightly more than z (theorem 1).

    Raises:
        DefenseError: an option is out of range, or the count alone would spend what the noise
            multiplier allows (z >= 2 ``count_noise``).
    """

    noise_multiplier: float
    clip: float = 10.0
    """Clipping norm of the first round."""
    quantile: float = 0.5
    """Share of the samples that should not be clipped."""
    rate: float = 0.2
    count_noise: float = 2.0
    """Standard deviation of the noise on a client's count of unclipped samples."""

    sampling: ClassVar[Sampling] = "poisson"

    def __post_init__(self) -> None:
        allowed = {
            "clip": (SMALLEST_CLIP <= self.clip <= LARGEST_CLIP, "from 0.001 to 1e6, e.g. 10"),
            "quantile": (0 < self.quantile < 1, "between 0 and 1, e.g. 0.5"),
            "rate": (0 < self.rate <= 1, "above 0 and up to 1, e.g. 0.2"),
            "count_noise": (0 < self.count_noise < math.inf, "a finite number above 0, e.g. 2"),
        }
        for option, (holds, words) in allowed.items():
            if not holds:
                value = getattr(self, option)
                raise DefenseError(f"dp-sgd-adaptive@{option}={value}: must be {words}")
        if self.noise_multiplier >= 2 * self.count_noise:
            raise DefenseError(
                f"dp-sgd-adaptive={self.noise_multiplier}: the noise multiplier must be below "
                f"twice count_noise ({2 * self.count_noise:g}); raise @count_noise"
            )

    @property
    def gradient_noise_multiplier(self) -> float:
        """What is left for the gradient once the count has its share of the privacy loss."""
        if self.noise_multiplier == 0:
            return 0.0
        return (self.noise_multiplier**-2 - (2 * self.count_noise) ** -2) ** -0.5

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data, as of the first round; a session's description has the current norm."""
        return self.describe_at(self.clip, batch_size)

    def describe_at(self, clip_norm: float, batch_size: int) -> dict[str, Any]:
        """Plain data of a round that clips to ``clip_norm``."""
        return DPSGD(self.noise_multiplier, clip_norm).describe(batch_size) | {
            "noise_std": self.gradient_noise_multiplier * clip_norm / batch_size,
            "adaptive": {
                "quantile": self.quantile,
                "rate": self.rate,
                "count_noise": self.count_noise,
            },
            "server_receives": "each client's sum of per-sample gradients, each clipped to the "
            f"round's norm ({clip_norm:g}), plus Gaussian noise, divided by {batch_size}; and a "
            "noised count of the samples that were not clipped",
        }

    def accountant(self) -> Accountant:
        """A fresh accountant of one client."""
        return Accountant(self.noise_multiplier)

    def bind(
        self, module: nn.Module, layout: Layout, clients: int, generator: torch.Generator
    ) -> AdaptiveClipping:
        """Attaches Opacus' hooks to ``module``."""
        return AdaptiveClipping(self, module, layout, clients, generator)


class AdaptiveClipping(GhostClipping):
    """Ghost clipping to a norm that moves at the end of each round (an ``Adapting`` source)."""

    def __init__(
        self,
        mechanism: AdaptiveDPSGD,
        module: nn.Module,
        layout: Layout,
        clients: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(
            module,
            layout,
            clients,
            generator,
            clip_norm=mechanism.clip,
            noise_multiplier=mechanism.gradient_noise_multiplier,
        )
        self._mechanism = mechanism
        self._generator = generator
        self._unclipped_share = mechanism.quantile

    def per_client(self, losses: Losses, owner: Tensor, batch_size: int) -> Tensor:
        """(clients, P): as ``GhostClipping``, with the count of unclipped samples beside it."""
        releases = super().per_client(losses, owner, batch_size)
        self._count(batch_size)
        return releases

    def mean(self, losses: Losses, owner: Tensor, batch_size: int) -> Tensor:
        """(P,): likewise."""
        mean = super().mean(losses, owner, batch_size)
        self._count(batch_size)
        return mean

    def end_round(self) -> None:
        """The server moves the norm by what the round's releases said."""
        mechanism = self._mechanism
        step = math.exp(-mechanism.rate * (self._unclipped_share - mechanism.quantile))
        moved = self.clip_norm * step
        self.clip_norm = min(max(moved, SMALLEST_CLIP), LARGEST_CLIP)

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data, with the norm of the coming round."""
        return self._mechanism.describe_at(self.clip_norm, batch_size)

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint between two rounds."""
        return {"clip_norm": self.clip_norm}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from what :meth:`state` returned."""
        self.clip_norm = state["clip_norm"]

    def _count(self, batch_size: int) -> None:
        centred = (self.sample_norms <= self.clip_norm).double() - 0.5
        # The clients' counts are only ever averaged: one draw has the law of their sum.
        noise = torch.randn((), generator=self._generator, device=self._generator.device)
        spread = self._mechanism.count_noise * math.sqrt(self._clients)
        total = float(centred.sum()) + spread * float(noise)
        self._unclipped_share = 0.5 + total / (self._clients * batch_size)
