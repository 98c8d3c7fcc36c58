"""DP-SGD with Opacus: every sample's gradient clipped, Gaussian noise on the sum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast, get_args

import torch
from torch import nn

from defenses.accounting import Accountant, Unit
from defenses.ghost_clipping import GhostClipping
from defenses.layout import Layout
from defenses.prv_accounting import PRVAccountant
from defenses.registry import DefenseError, register_defense
from defenses.stages import Sampling

_ACCOUNTANTS = {"rdp": Accountant, "prv": PRVAccountant}


@register_defense(
    "dp-sgd",
    stage="per-sample",
    level="noise multiplier",
    grid=(0.0003, 0.001, 0.003, 0.03, 0.3),
    minimum=0.0,
    private_end="high",
    summary="Opacus: clips every sample's gradient, adds noise to the sum; accounts for epsilon",
    guarantee="(epsilon, delta)-DP per transition (or @unit=trajectory) and client",
)
@dataclass(frozen=True)
class DPSGD:
    """DP-SGD (Abadi et al. 2016, arXiv 1607.00133, algorithm 1) on one joint release.

    A sample's gradient, over all shared parameters together, is scaled to an L2 norm of at most
    ``clip``; the client's sum receives N(0, (``noise_multiplier`` ``clip``)^2) on every coordinate
    and is divided by a public constant.

    Formal guarantees:
        (epsilon, delta)-DP with respect to one transition of one client added or removed, under
        Poisson sampling; see ``defenses.accounting.Accountant`` for epsilon and all assumptions.
        A sample's sensitivity is ``clip`` on the sum, ``clip`` / batch size on the release. With
        ``unit`` "trajectory" each round draws trajectories and one transition of each, so that
        one trajectory has that sensitivity; there are far fewer of them, so epsilon is larger.

    Edge cases: noise multiplier 0 only clips (epsilon infinite); an empty minibatch releases pure
    noise; a sample with a non-finite loss or gradient counts as a zero gradient and is tallied.

    Raises:
        DefenseError: ``clip`` is not a finite number above 0, or ``unit`` or ``accounting`` is
            unknown.
    """

    noise_multiplier: float
    clip: float = 1.0
    unit: str = "transition"
    """What epsilon protects: "transition" or "trajectory"."""
    accounting: str = "rdp"
    """The analysis: "rdp", or "prv", which gives a smaller epsilon where it can be afforded."""

    @property
    def sampling(self) -> Sampling:
        """A coin for each transition, or for each trajectory."""
        return "poisson" if self.unit == "transition" else "poisson-trajectories"

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            allowed = " or ".join(get_args(Unit))
            raise DefenseError(f"dp-sgd@unit={self.unit}: the unit must be {allowed}")
        if self.accounting not in _ACCOUNTANTS:
            allowed = " or ".join(_ACCOUNTANTS)
            raise DefenseError(
                f"dp-sgd@accounting={self.accounting}: the analysis must be {allowed}"
            )
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise DefenseError(
                f"dp-sgd@clip={self.clip}: the clipping norm must be above 0, e.g. 1.0"
            )

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data; ``noise_std`` is per coordinate of one client's mean gradient."""
        return {
            "mechanism": "dp-sgd",
            "stage": "per-sample",
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": self.clip,
            "batch_size": batch_size,
            "noise_std": self.noise_multiplier * self.clip / batch_size,
            "sampling": self.sampling,
            "formal_guarantee": self.noise_multiplier > 0,
            "server_receives": "each client's sum of per-sample gradients, each clipped to an L2 "
            f"norm of {self.clip:g}, plus Gaussian noise, divided by {batch_size}",
            "sensitivity": f"{self.clip / batch_size:g} (L2) of a client's release",
            "unit": f"{self.unit} (add/remove), one client",
            "guarantee": "(epsilon, delta)-DP by RDP accounting (Opacus)"
            + ("" if self.accounting == "rdp" else ", by PRV where it can be afforded")
            if self.noise_multiplier > 0
            else "none without noise: epsilon is infinite",
        }

    def accountant(self) -> Accountant:
        """A fresh accountant of one client."""
        return _ACCOUNTANTS[self.accounting](self.noise_multiplier, per=cast(Unit, self.unit))

    def bind(
        self, module: nn.Module, layout: Layout, clients: int, generator: torch.Generator
    ) -> GhostClipping:
        """Attaches Opacus' hooks to ``module``."""
        return GhostClipping(
            module,
            layout,
            clients,
            generator,
            clip_norm=self.clip,
            noise_multiplier=self.noise_multiplier,
        )
