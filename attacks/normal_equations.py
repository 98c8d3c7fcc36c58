"""Gauss-Newton normal equations of dense networks, without forming Jacobians.

A layer's gradient of b records is sum_i d_i x_i^T. Along one coordinate k of record i it changes by
d'_ik x_i^T + d_i x'_ik^T, so every inner product of two such changes is made of inner products of
small vectors:

    <J_ik, J_jl> = (d'_ik . d'_jl)(x_i . x_j) + (d'_ik . d_j)(x_i . x'_jl)
                 + (d_i . d'_jl)(x'_ik . x_j) + (d_i . d_j)(x'_ik . x'_jl).

x and d of all layers, and their derivatives along all coordinates, come from one forward-mode pass
over a backward pass in which every record stands once for each of its coordinates. ``misfits``
compares them with what was received.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from attacks.gradients import LinearCalls, LinearLayer
from attacks.layer_derivatives import LayerDerivatives, clipped
from attacks.misfits import Misfit, Received, misfit_to
from attacks.observation import Observation
from attacks.transitions import Transitions

Decode: TypeAlias = Callable[[Tensor, Tensor], Transitions]
"""(coordinates (n, K), record (n,)) to n transitions, differentiable, each row by itself.

``record`` numbers the records of all groups, 0 .. G b - 1: rows of one record differ in their
coordinates only.
"""


@dataclass(frozen=True, eq=False)
class Normal:
    """The misfit (half the weighted squared residual), its gradient and Gauss-Newton Hessian.

    Under Laplace noise the misfit is the weighted sum of absolute residuals, and the Hessian, the
    Fisher information, has the same form.

    ``value`` (G,), ``gradient`` (G, b K), ``hessian`` (G, b K, b K), for G groups of b records.
    """

    value: Tensor
    gradient: Tensor
    hessian: Tensor


class NormalEquations:
    """Residual of T targets, each tried at R points of b records at once (target-major)."""

    def __init__(
        self,
        observation: Observation,
        layers: Sequence[LinearLayer],
        received: Received,
        decode: Decode,
        measure: Callable[[Received], Misfit] = misfit_to,
    ) -> None:
        """``observation`` stands for all targets: model, loss and batch size are theirs."""
        self._observation = observation
        self._layers = layers
        self._clips = received.clips
        self._misfit = measure(received)
        self._decode = decode
        self._size = observation.batch_size

    def value(self, points: Tensor) -> Tensor:
        """The misfit (G,) at ``points`` (G, b, K), G = T R."""
        return self._value(self._run(points, derivatives=False))

    def at(self, points: Tensor) -> Normal:
        """Everything that a Gauss-Newton step needs at ``points`` (G, b, K)."""
        layers = self._run(points, derivatives=True)
        gradients, hessians = zip(*(self._misfit.equations(layer) for layer in layers), strict=True)
        return Normal(
            self._value(layers), sum(gradients[1:], gradients[0]), sum(hessians[1:], hessians[0])
        )

    def _value(self, layers: Sequence[LayerDerivatives]) -> Tensor:
        return torch.stack([self._misfit.value(layer) for layer in layers]).sum(dim=0)

    def _run(self, points: Tensor, *, derivatives: bool) -> list[LayerDerivatives]:
        groups, size, width = points.shape
        copies = width if derivatives else 1
        rows = points.reshape(groups * size, width).repeat_interleave(copies, dim=0)
        record = torch.arange(groups * size, device=rows.device).repeat_interleave(copies)
        with forward_mode.dual_level():
            if derivatives:
                directions = torch.eye(width, dtype=rows.dtype, device=rows.device)
                rows = forward_mode.make_dual(rows, directions.repeat(groups * size, 1))
            with LinearCalls([layer.module for layer in self._layers]) as hooks:
                loss = self._observation.loss(self._observation.model, self._decode(rows, record))
            seen = {module: (x, out) for module, x, out in hooks.calls}
            outputs = [seen[layer.module][1] for layer in self._layers]
            # The loss is a mean over all rows; a group's gradient is a mean over its b records.
            deltas = torch.autograd.grad(loss * (len(rows) / size), outputs)
            layers = [
                LayerDerivatives(
                    layer,
                    *_unpack(seen[layer.module][0], groups, size, copies, derivatives),
                    *_unpack(delta, groups, size, copies, derivatives),
                )
                for layer, delta in zip(self._layers, deltas, strict=True)
            ]
        return clipped(layers, self._clips, size)


def _unpack(
    dual: Tensor, groups: int, size: int, copies: int, derivatives: bool
) -> tuple[Tensor, Tensor]:
    """Rows (G b copies, n) to values (G, b, n) and derivatives (G, b, copies or 0, n)."""
    value, tangent = forward_mode.unpack_dual(dual)
    value = value.detach().reshape(groups, size, copies, -1)
    if not derivatives:
        return value[:, :, 0], value[:, :, :0]
    tangent = torch.zeros_like(value) if tangent is None else tangent.detach()
    return value[:, :, 0], tangent.reshape(groups, size, copies, -1)
