"""DP-SGD whose noise falls from round to round, or in steps, by Opacus' schedules.

Early gradients are large and point the same way; late ones are small and decide how well the policy
ends. Noise that starts high and falls spends the same epsilon where it hurts least.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from defenses.accounting import Accountant
from defenses.dp_sgd import DPSGD
from defenses.ghost_clipping import GhostClipping
from defenses.layout import Layout
from defenses.registry import DefenseError, register_defense
from defenses.stages import Sampling


@register_defense(
    "dp-sgd-scheduled",
    stage="per-sample",
    level="noise multiplier",
    grid=(0.03, 0.1, 0.3, 1.0),
    minimum=0.0,
    private_end="high",
    summary="dp-sgd whose noise falls by a factor every round, or every so many (Opacus)",
    guarantee="(epsilon, delta)-DP per transition and client",
    in_default_sweep=False,
)
@dataclass(frozen=True)
class ScheduledDPSGD:
    """DP-SGD (see ``defenses.dp_sgd``) whose noise multiplier falls.

    It is z ``gamma``^floor(t / ``every``) in round t = 0, 1, ...: Opacus' ``ExponentialNoise`` if
    it falls every round, else its ``StepNoise``.

    Formal guarantees:
        Those of DP-SGD, with every round accounted for at its own noise multiplier.

    Raises:
        DefenseError: ``gamma`` is not in (0, 1], ``every`` below 1, or ``clip`` not above 0.
    """

    noise_multiplier: float
    """z, of the first round."""
    gamma: float = 0.9999
    """Factor of each fall: 0.9999 halves the noise multiplier in 7,000 of them."""
    every: int = 1
    """Rounds between two falls."""
    clip: float = 1.0

    sampling: ClassVar[Sampling] = "poisson"

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise DefenseError(
                f"dp-sgd-scheduled@gamma={self.gamma}: must be above 0 and up to 1, e.g. 0.9999"
            )
        if self.every < 1:
            raise DefenseError(
                f"dp-sgd-scheduled@every={self.every}: must be at least 1, the rounds between falls"
            )
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise DefenseError(
                f"dp-sgd-scheduled@clip={self.clip}: the clipping norm must be above 0, e.g. 1.0"
            )

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data, as of the first round; a session's description has the current noise."""
        return self.describe_at(self.noise_multiplier, batch_size)

    def describe_at(self, noise_multiplier: float, batch_size: int) -> dict[str, Any]:
        """Plain data of a round at this noise multiplier."""
        described = DPSGD(noise_multiplier, self.clip).describe(batch_size)
        return described | {"gamma": self.gamma, "every": self.every}

    def accountant(self) -> Accountant:
        """A fresh accountant of one client."""
        return Accountant(self.noise_multiplier, self.gamma, every=self.every)

    def bind(
        self, module: nn.Module, layout: Layout, clients: int, generator: torch.Generator
    ) -> ScheduledNoise:
        """Attaches Opacus' hooks to ``module``."""
        return ScheduledNoise(self, module, layout, clients, generator)


class ScheduledNoise(GhostClipping):
    """Ghost clipping whose noise falls at the end of each round (an ``Adapting`` source)."""

    def __init__(
        self,
        mechanism: ScheduledDPSGD,
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
            noise_multiplier=mechanism.noise_multiplier,
        )
        self._mechanism = mechanism
        self._schedules = self.noise_schedules(mechanism.gamma, mechanism.every)

    def end_round(self) -> None:
        """The noise falls."""
        for schedule in self._schedules:
            schedule.step()

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data, with the noise of the coming round."""
        return self._mechanism.describe_at(self.noise_multiplier, batch_size)

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint between two rounds."""
        return {"noise_multiplier": self.noise_multiplier, "rounds": self._schedules[0].last_epoch}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from what :meth:`state` returned."""
        self.noise_multiplier = state["noise_multiplier"]
        for schedule in self._schedules:
            schedule.last_epoch = state["rounds"]
