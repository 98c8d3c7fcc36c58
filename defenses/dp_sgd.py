"""DP-SGD with Opacus: every sample's gradient clipped, Gaussian noise on the sum.

Ghost clipping (Li et al. 2022, arXiv 2110.05679) takes per-sample gradient norms from layer inputs
and output gradients in a first backward pass, and the clipped sum from a second one over losses
scaled by the clipping factors. Opacus computes norms, factors, passes and noise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from defenses.accounting import Accountant
from defenses.client_gradients import client_bounds, sample_losses
from defenses.layout import Layout
from defenses.registry import DefenseError, register_defense
from defenses.stages import Losses, Sampling


@register_defense(
    "dp-sgd",
    stage="per-sample",
    level="noise multiplier",
    grid=(0.003, 0.03, 0.1, 0.3),
    minimum=0.0,
    private_end="high",
    summary="Opacus: clips every sample's gradient, adds noise to the sum; accounts for epsilon",
    guarantee="(epsilon, delta)-DP per transition and client",
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
        A sample's sensitivity is ``clip`` on the sum, ``clip`` / batch size on the release.

    Edge cases: noise multiplier 0 only clips (epsilon infinite); an empty minibatch releases pure
    noise; a sample with a non-finite loss or gradient counts as a zero gradient and is tallied.

    Raises:
        DefenseError: ``clip`` is not a finite number above 0.
    """

    noise_multiplier: float
    clip: float = 1.0

    sampling: ClassVar[Sampling] = "poisson"

    def __post_init__(self) -> None:
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
    ) -> GhostClipping:
        """Attaches Opacus' hooks to ``module``."""
        return GhostClipping(self, module, layout, clients, generator)


class GhostClipping:
    """Opacus' ghost clipping on one module (a ``GradientSource``).

    The hooks stay attached until :meth:`close` but record only within a release, so other forward
    passes through the module are free of side effects.
    """

    def __init__(
        self,
        mechanism: DPSGD,
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
        from opacus.grad_sample import GradSampleHooksFastGradientClipping
        from opacus.optimizers import DPOptimizerFastGradientClipping

        self.nonfinite_count = 0
        self._module = module
        self._layout = layout
        self._clients = clients
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._layers = [
            layer
            for layer in module.modules()
            if any(p.requires_grad for p in layer.parameters(recurse=False))
        ]
        if hasattr(module, "autograd_grad_sample_hooks"):
            raise DefenseError(
                "dp-sgd is already bound to this module: share that session, or close it first"
            )
        try:
            self._hooks = GradSampleHooksFastGradientClipping(
                module, loss_reduction="sum", max_grad_norm=mechanism.clip
            )
        except NotImplementedError as error:
            raise DefenseError(f"dp-sgd: Opacus does not support this module: {error}") from error
        self._hooks.disable_hooks()
        # Inputs of first layers need no gradient, and the hooks do not need theirs.
        warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients")

        # The optimisers add noise and never step: the release is what pre_step() leaves in .grad.
        def optimizer(noise_multiplier: float) -> DPOptimizerFastGradientClipping:
            return DPOptimizerFastGradientClipping(
                torch.optim.SGD(self._parameters, lr=0.0),
                noise_multiplier=noise_multiplier,
                max_grad_norm=mechanism.clip,
                expected_batch_size=None,
                loss_reduction="sum",
                generator=generator,
            )

        self._one_client = optimizer(mechanism.noise_multiplier)
        # The sum of N independent N(0, (zC)^2) is one N(0, N (zC)^2).
        self._all_clients = optimizer(mechanism.noise_multiplier * math.sqrt(clients))

    def per_client(self, losses: Losses, owner: Tensor, batch_size: int) -> Tensor:
        """(clients, P): one Opacus pass and one noise draw per client."""
        bounds = client_bounds(owner, self._clients)
        sums = [
            self._noised_sum(
                losses, torch.arange(start, stop, device=owner.device), self._one_client
            )
            for start, stop in pairwise(bounds)
        ]
        return torch.stack(sums).div_(batch_size)

    def mean(self, losses: Losses, owner: Tensor, batch_size: int) -> Tensor:
        """(P,): one Opacus pass over all rows, and noise of the clients' sum drawn once."""
        rows = torch.arange(len(owner), device=owner.device)
        return self._noised_sum(losses, rows, self._all_clients).div_(self._clients * batch_size)

    def close(self) -> None:
        """Removes Opacus' hooks and every attribute it left on the module."""
        self._hooks.cleanup()
        for p in self._parameters:
            del p.summed_grad  # type: ignore[attr-defined]
        for layer in self._module.modules():
            _forget_activations(layer)

    def _noised_sum(self, losses: Losses, rows: Tensor, optimizer: Any) -> Tensor:
        """(P,): the sum of clipped gradients of ``rows`` plus noise."""
        with self._borrowed_gradients():
            rows_left = rows
            while len(rows_left):
                finite = self._ghost_pass(losses, rows_left, optimizer)
                if finite.all():
                    break
                # One non-finite sample poisons the whole sum: take the sum without it.
                self.nonfinite_count += int((~finite).sum())
                rows_left = rows_left[finite]
                for p in self._parameters:
                    p.grad = None
            for p in self._parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            optimizer.pre_step()
            return self._layout.flatten([cast(Tensor, p.grad) for p in self._parameters])

    def _ghost_pass(self, losses: Losses, rows: Tensor, optimizer: Any) -> Tensor:
        """Leaves the clipped sum in ``.grad``; returns (len(rows),): which samples are finite."""
        from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

        if not all(layer.training for layer in self._layers):
            raise DefenseError("dp-sgd: Opacus records layers in train mode only; call .train()")
        # A layer that takes no part this time has norm 0, not the norms of an earlier batch.
        absent = self._parameters[0].new_zeros(len(rows))
        for p in self._parameters:
            p._norm_sample = absent  # type: ignore[attr-defined]
        with self._recording():
            values = sample_losses(losses, rows, len(rows))
            DPTensorFastGradientClipping(self._hooks, optimizer, values, "sum").backward()
        for name, p in zip(self._layout.names, self._parameters, strict=True):
            if p.grad is not None and p._norm_sample is absent:  # type: ignore[attr-defined]
                raise DefenseError(
                    f"dp-sgd: no per-sample gradient of {name!r}: it is used outside the forward "
                    "of its own layer"
                )
        return values.detach().isfinite() & self._hooks.per_sample_gradient_norms.isfinite()

    @contextmanager
    def _recording(self) -> Iterator[None]:
        self._hooks.enable_hooks()
        try:
            yield
        except BaseException:
            # A pass broken off midway would leave its activations to the next one.
            for layer in self._module.modules():
                _forget_activations(layer)
            for p in self._parameters:
                p._forward_counter = 0  # type: ignore[attr-defined]
            raise
        finally:
            self._hooks.disable_hooks()

    @contextmanager
    def _borrowed_gradients(self) -> Iterator[None]:
        """Lends ``.grad`` to Opacus and gives it back unchanged."""
        before = [p.grad for p in self._parameters]
        for p in self._parameters:
            p.grad = None
        try:
            yield
        finally:
            for p, gradient in zip(self._parameters, before, strict=True):
                p.grad = gradient
                p.summed_grad = None  # type: ignore[attr-defined]


def _forget_activations(layer: nn.Module) -> None:
    for name in ("activations", "max_batch_len"):
        if hasattr(layer, name):
            delattr(layer, name)
