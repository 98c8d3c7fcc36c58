"""DP-SGD with per-layer clipping: every parameter tensor of a sample's gradient by itself.

Networks whose gradients differ in size by orders, such as a critic and an actor in one release,
share one clipping norm badly: the larger decides how much is left of the smaller.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from defenses.accounting import Accountant
from defenses.client_gradients import client_bounds
from defenses.layout import Layout
from defenses.linear_passes import sample_losses
from defenses.registry import DefenseError, register_defense
from defenses.stages import Losses, Sampling


@register_defense(
    "dp-sgd-layer",
    stage="per-sample",
    level="noise multiplier",
    grid=(0.003, 0.03, 0.1, 0.3),
    minimum=0.0,
    private_end="high",
    summary="dp-sgd that clips each parameter tensor by itself (Opacus' per-layer clipping)",
    guarantee="(epsilon, delta)-DP per transition and client",
    in_default_sweep=False,
)
@dataclass(frozen=True)
class LayerDPSGD:
    """DP-SGD (see ``defenses.dp_sgd``) with one clipping norm for every parameter tensor.

    A sample's gradient of each of the K tensors is scaled to an L2 norm of at most ``clip``; the
    sum receives N(0, (``noise_multiplier`` ``clip`` sqrt(K))^2) on every coordinate, since
    ``clip`` sqrt(K) is the joint norm of a sample. Per-sample gradients are materialised, so a
    round costs several times that of ``dp-sgd``.

    Formal guarantees:
        Those of DP-SGD: the K tensors are one release and one mechanism.

    Raises:
        DefenseError: ``clip`` is not a finite number above 0.
    """

    noise_multiplier: float
    clip: float = 1.0

    sampling: ClassVar[Sampling] = "poisson"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise DefenseError(
                f"dp-sgd-layer@clip={self.clip}: the clipping norm must be above 0, e.g. 1.0"
            )

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data; the noise depends on the number of tensors: see a session's description."""
        return self.describe_for(1, batch_size)

    def describe_for(self, tensors: int, batch_size: int) -> dict[str, Any]:
        """Plain data for a module of so many parameter tensors."""
        joint = self.clip * math.sqrt(tensors)
        return {
            "mechanism": "dp-sgd",
            "stage": "per-sample",
            "noise_multiplier": self.noise_multiplier,
            "tensor_norm": self.clip,
            "tensors": tensors,
            "batch_size": batch_size,
            "noise_std": self.noise_multiplier * joint / batch_size,
            "sampling": self.sampling,
            "formal_guarantee": self.noise_multiplier > 0,
            "server_receives": "each client's sum of per-sample gradients, every tensor of each "
            f"clipped to an L2 norm of {self.clip:g}, plus Gaussian noise, divided by {batch_size}",
            "sensitivity": f"{joint / batch_size:g} (L2) of a client's release",
            "unit": "transition (add/remove), one client",
            "guarantee": "(epsilon, delta)-DP by RDP accounting (Opacus)"
            if self.noise_multiplier > 0
            else "none without noise: epsilon is infinite",
        }

    def accountant(self) -> Accountant:
        """A fresh accountant of one client."""
        return Accountant(self.noise_multiplier)

    def bind(
        self, module: nn.Module, layout: Layout, clients: int, generator: torch.Generator
    ) -> LayerClipping:
        """Attaches Opacus' hooks to ``module``."""
        return LayerClipping(self, module, layout, clients, generator)


class LayerClipping:
    """Opacus' per-sample gradients and per-layer optimiser on one module."""

    def __init__(
        self,
        mechanism: LayerDPSGD,
        module: nn.Module,
        layout: Layout,
        clients: int,
        generator: torch.Generator,
    ) -> None:
        """Attaches the hooks.

        Raises:
            DefenseError: Opacus is attached already, or does not support a layer.
        """
        # Opacus takes a second to import; other defences do without.
        from opacus.grad_sample import GradSampleHooks
        from opacus.optimizers import DPPerLayerOptimizer

        self.nonfinite_count = 0
        self._mechanism = mechanism
        self._module = module
        self._layout = layout
        self._clients = clients
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        if hasattr(module, "autograd_grad_sample_hooks"):
            raise DefenseError(
                "dp-sgd-layer is bound to a module that Opacus is attached to already"
            )
        try:
            self._hooks = GradSampleHooks(module, loss_reduction="sum")
        except NotImplementedError as error:
            raise DefenseError(
                f"dp-sgd-layer: Opacus does not support this module: {error}"
            ) from error
        self._hooks.disable_hooks()
        # Inputs of first layers need no gradient, and the hooks do not need theirs.
        warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients")

        def optimizer(noise_multiplier: float) -> DPPerLayerOptimizer:
            return DPPerLayerOptimizer(
                torch.optim.SGD(self._parameters, lr=0.0),
                noise_multiplier=noise_multiplier,
                max_grad_norm=[mechanism.clip] * len(self._parameters),
                expected_batch_size=None,
                loss_reduction="sum",
                generator=generator,
            )

        self._one_client = optimizer(mechanism.noise_multiplier)
        self._all_clients = optimizer(mechanism.noise_multiplier * math.sqrt(clients))

    def per_client(self, losses: Losses, owner: Tensor, batch_size: int) -> Tensor:
        """(clients, P): each client's clipped and noised sum / batch_size."""
        samples = self._per_sample(losses, len(owner))
        bounds = client_bounds(owner, self._clients)
        sums = [
            self._noised_sum([g[start:stop] for g in samples], self._one_client)
            for start, stop in pairwise(bounds)
        ]
        return torch.stack(sums).div_(batch_size)

    def mean(self, losses: Losses, owner: Tensor, batch_size: int) -> Tensor:
        """(P,): the mean over clients, with the noise of their sum drawn once."""
        samples = self._per_sample(losses, len(owner))
        return self._noised_sum(samples, self._all_clients).div_(self._clients * batch_size)

    def end_round(self) -> None:
        """Nothing moves."""

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data, for this module's number of tensors."""
        return self._mechanism.describe_for(len(self._parameters), batch_size)

    def state(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""

    def close(self) -> None:
        """Removes Opacus' hooks and every attribute it left on the module."""
        self._hooks.cleanup()
        for p in self._parameters:
            del p.summed_grad  # type: ignore[attr-defined]

    def _per_sample(self, losses: Losses, rows: int) -> list[Tensor]:
        """Each tensor's per-sample gradients (rows, ...); those that are not finite are zeroed."""
        for p in self._parameters:
            p.grad_sample = None  # type: ignore[attr-defined]
        self._hooks.enable_hooks()
        try:
            values = sample_losses(losses, torch.arange(rows), rows)
            if rows:
                torch.autograd.grad(
                    values.sum(), self._parameters, allow_unused=True, materialize_grads=True
                )
        finally:
            self._hooks.disable_hooks()
        found = []
        for p in self._parameters:
            sample = p.grad_sample  # type: ignore[attr-defined]
            found.append(p.new_zeros(rows, *p.shape) if sample is None else sample)
            p.grad_sample = None  # type: ignore[attr-defined]
        finite = values.detach().isfinite()
        for g in found:
            finite &= g.flatten(1).isfinite().all(dim=1)
        self.nonfinite_count += int((~finite).sum())
        return found if finite.all() else [torch.where(_like(finite, g), g, 0.0) for g in found]

    def _noised_sum(self, samples: list[Tensor], optimizer: Any) -> Tensor:
        """(P,): Opacus' clipped and noised sum of per-sample gradients."""
        with self._borrowed_gradients():
            for p, sample in zip(self._parameters, samples, strict=True):
                p.grad_sample = sample.clone()  # type: ignore[attr-defined]
                p.summed_grad = None  # type: ignore[attr-defined]
            optimizer.pre_step()
            return self._layout.flatten([p.grad for p in self._parameters if p.grad is not None])

    @contextmanager
    def _borrowed_gradients(self) -> Iterator[None]:
        """Lends ``.grad`` to Opacus and gives it back unchanged."""
        before = [p.grad for p in self._parameters]
        try:
            yield
        finally:
            for p, gradient in zip(self._parameters, before, strict=True):
                p.grad = gradient
                p.grad_sample = None  # type: ignore[attr-defined]
                p.summed_grad = None  # type: ignore[attr-defined]


def _like(rows: Tensor, tensor: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (tensor.dim() - 1))
