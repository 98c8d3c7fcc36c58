"""Opacus' ghost clipping on one module: clipped, noised sums of per-sample gradients.

Ghost clipping (Li et al. 2022, arXiv 2110.05679) takes per-sample gradient norms from layer inputs
and output gradients in a first backward pass, and the clipped sum from a second one over losses
scaled by the clipping factors. Opacus computes norms, factors, passes and noise. Where all layers
are linear, one pass does (book-keeping: Bu et al. 2023, arXiv 2210.00038): its inputs and output
gradients, the latter times Opacus' factors, give the sum that the second pass would.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from defenses.client_gradients import client_bounds
from defenses.layout import Layout
from defenses.linear_passes import LayerPass, LinearPasses, sample_losses
from defenses.registry import DefenseError
from defenses.stages import Losses


class GhostClipping:
    """Opacus' ghost clipping on one module (a ``GradientSource``).

    The hooks are attached only where two passes need them, and record only within a release, so
    other forward passes through the module are free of side effects. Opacus' mark stays on the
    module until :meth:`close`.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        clients: int,
        generator: torch.Generator,
        *,
        clip_norm: float,
        noise_multiplier: float,
    ) -> None:
        """Lets Opacus look at the module, and attaches its hooks where they will be needed.

        Raises:
            DefenseError: Opacus is attached already, or does not support a layer.
        """
        # Opacus takes a second to import; other defences do without.
        from opacus.grad_sample import GradSampleHooksFastGradientClipping
        from opacus.optimizers import DPOptimizerFastGradientClipping

        self.nonfinite_count = 0
        self.sample_norms = torch.empty(0)
        """(n,): the gradient norms of all finite samples of the last release, before clipping."""
        self._module = module
        self._layout = layout
        self._clients = clients
        self._passes = LinearPasses(module)
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
                module, loss_reduction="sum", max_grad_norm=clip_norm
            )
        except NotImplementedError as error:
            raise DefenseError(f"dp-sgd: Opacus does not support this module: {error}") from error
        self._hooks.disable_hooks()
        self._attached = True
        if self._passes.applicable:
            self._detach()
        # Inputs of first layers need no gradient, and the hooks do not need theirs.
        warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients")

        # The optimisers add noise and never step: the release is what pre_step() leaves in .grad.
        def optimizer(noise_multiplier: float) -> DPOptimizerFastGradientClipping:
            return DPOptimizerFastGradientClipping(
                torch.optim.SGD(self._parameters, lr=0.0),
                noise_multiplier=noise_multiplier,
                max_grad_norm=clip_norm,
                expected_batch_size=None,
                loss_reduction="sum",
                generator=generator,
            )

        self._one_client = optimizer(noise_multiplier)
        # The sum of N independent N(0, (zC)^2) is one N(0, N (zC)^2).
        self._all_clients = optimizer(noise_multiplier * math.sqrt(clients))

    @property
    def clip_norm(self) -> float:
        """What a sample's gradient norm is clipped to."""
        return self._hooks.max_grad_norm

    @clip_norm.setter
    def clip_norm(self, value: float) -> None:
        self._hooks.max_grad_norm = value
        self._one_client.max_grad_norm = value
        self._all_clients.max_grad_norm = value

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise on a client's sum, in clipping norms."""
        return self._one_client.noise_multiplier

    @noise_multiplier.setter
    def noise_multiplier(self, value: float) -> None:
        self._one_client.noise_multiplier = value
        self._all_clients.noise_multiplier = value * math.sqrt(self._clients)

    def noise_schedules(self, gamma: float, every: int) -> list[Any]:
        """Opacus' schedules: they multiply the noise by ``gamma`` at every so many ``step()``s."""
        from opacus.schedulers import ExponentialNoise, StepNoise

        optimizers = (self._one_client, self._all_clients)
        if every == 1:
            return [ExponentialNoise(optimizer, gamma=gamma) for optimizer in optimizers]
        return [StepNoise(optimizer, step_size=every, gamma=gamma) for optimizer in optimizers]

    def per_client(self, losses: Losses, owner: Tensor, batch_size: int) -> Tensor:
        """(clients, P): one Opacus pass and one noise draw per client."""
        self.sample_norms = torch.empty(0)
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
        self.sample_norms = torch.empty(0)
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
                finite = self._clipped_sum(losses, rows_left, optimizer)
                if finite.all():
                    norms = self._hooks.per_sample_gradient_norms.cpu()
                    self.sample_norms = torch.cat([self.sample_norms, norms])
                    break
                # One non-finite sample poisons the whole sum: take the sum without it.
                self.nonfinite_count += int((~finite).sum())
                rows_left = rows_left[finite]
                for p in self._parameters:
                    p.grad = None
            for p in self._parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                # Opacus adds to a sum that is there, and copies the gradient (slower) otherwise.
                p.summed_grad = torch.zeros_like(p)  # type: ignore[attr-defined]
            optimizer.pre_step()
            return self._layout.flatten([cast(Tensor, p.grad) for p in self._parameters])

    def _clipped_sum(self, losses: Losses, rows: Tensor, optimizer: Any) -> Tensor:
        """Leaves the clipped sum in ``.grad``; returns (len(rows),): which samples are finite."""
        if not all(layer.training for layer in self._layers):
            raise DefenseError("dp-sgd: Opacus records layers in train mode only; call .train()")
        # A layer that takes no part this time has norm 0, not the norms of an earlier batch.
        absent = self._parameters[0].new_zeros(len(rows))
        for p in self._parameters:
            p._norm_sample = absent  # type: ignore[attr-defined]
        kept = self._passes.run(losses, rows, len(rows))
        if kept is None:
            values = self._two_passes(losses, rows, optimizer, absent)
        else:
            values, passes = kept
            self._weigh(passes)
        return values.isfinite() & self._hooks.per_sample_gradient_norms.isfinite()

    def _weigh(self, passes: list[LayerPass]) -> None:
        """Leaves the clipped sum in ``.grad``, from one pass's inputs and output gradients."""
        norms_of = self._hooks.NORM_SAMPLERS[nn.Linear]
        for layer, inputs, deltas in passes:
            for p, norms in norms_of(layer, [inputs], deltas).items():
                p._norm_sample = norms
        factors = self._hooks.get_clipping_coef()
        for layer, inputs, deltas in passes:
            if layer.weight.requires_grad:
                layer.weight.grad = (deltas * factors[:, None]).mT @ inputs
            if layer.bias is not None and layer.bias.requires_grad:
                layer.bias.grad = factors @ deltas

    def _two_passes(self, losses: Losses, rows: Tensor, optimizer: Any, absent: Tensor) -> Tensor:
        """Leaves Opacus' clipped sum in ``.grad``; returns the losses of ``rows``."""
        from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

        if not self._attached:
            self._hooks.remove_hooks()
            self._hooks.add_hooks(loss_reduction="sum")
            self._attached = True
        with self._recording():
            values = sample_losses(losses, rows, len(rows))
            DPTensorFastGradientClipping(self._hooks, optimizer, values, "sum").backward()
        for name, p in zip(self._layout.names, self._parameters, strict=True):
            if p.grad is not None and p._norm_sample is absent:  # type: ignore[attr-defined]
                raise DefenseError(
                    f"dp-sgd: no per-sample gradient of {name!r}: it is used outside the forward "
                    "of its own layer"
                )
        return values.detach()

    def _detach(self) -> None:
        """Takes Opacus' hooks off the layers; disabled ones cost a twelfth of a round on Ant too.

        Its list of them stays on the module, the sign that the module is taken.
        """
        for handle in self._hooks.autograd_grad_sample_hooks:
            handle.remove()
        self._attached = False

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
