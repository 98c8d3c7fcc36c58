"""Gauss-Newton normal equations of dense networks, without forming Jacobians.

A layer's gradient of b records is sum_i d_i x_i^T. Along one coordinate k of record i it changes by
d'_ik x_i^T + d_i x'_ik^T, so every inner product of two such changes is made of inner products of
small vectors:

    <J_ik, J_jl> = (d'_ik . d'_jl)(x_i . x_j) + (d'_ik . d_j)(x_i . x'_jl)
                 + (d_i . d'_jl)(x'_ik . x_j) + (d_i . d_j)(x'_ik . x'_jl).

x and d of all layers, and their derivatives along all coordinates, come from one forward-mode pass
over a backward pass. ``misfits`` compares them with what was received.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.utils.hooks import RemovableHandle

from attacks.bayes.layer_derivatives import LayerDerivatives, clipped
from attacks.bayes.misfit_choice import misfit_to
from attacks.bayes.misfits import Misfit, Received
from attacks.gradients.linear_layers import LinearLayer
from attacks.observation import Observation
from attacks.transitions import Transitions

MOST_UNKNOWNS = 10_000
"""Coordinates of all records together: a matrix of them, of which there are several, is 0.8 GB."""

_Sides: TypeAlias = tuple[list[Tensor], ...]
"""Deltas and inputs of all layers, (G b, .) each."""

Decode: TypeAlias = Callable[[Tensor, Tensor], Transitions]
"""(coordinates (n, K), record (n,)) to n transitions, differentiable, each row by itself.

``record`` numbers the records of all groups, 0 .. G b - 1.
"""


@dataclass(frozen=True, eq=False)
class Normal:
    """The misfit's gradient (G, b K) and Gauss-Newton Hessian (G, b K, b K), G groups of b records.

    The misfit is half the weighted squared residual; under Laplace noise the weighted sum of
    absolute residuals, and the Hessian, the Fisher information, has the same form.
    """

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
        layers = self._run(points, derivatives=False)
        return torch.stack([self._misfit.value(layer) for layer in layers]).sum(dim=0)

    def at(self, points: Tensor) -> Normal:
        """What a Gauss-Newton step needs at ``points`` (G, b, K)."""
        first, *others = self._run(points, derivatives=True)
        gradient, hessian = self._misfit.equations(first)
        for layer in others:
            slope, bend = self._misfit.equations(layer)
            gradient, hessian = gradient.add_(slope), hessian.add_(bend)
        return Normal(gradient, hessian)

    def _run(self, points: Tensor, *, derivatives: bool) -> list[LayerDerivatives]:
        groups, size, width = points.shape
        rows = points.reshape(groups * size, width)
        sides = self._sides(rows)
        changes: _Sides = tuple([x.new_zeros(0, *x.shape) for x in side] for side in sides)
        if derivatives:

            def along(direction: Tensor) -> _Sides:
                return jvp(self._sides, (rows,), (direction.expand_as(rows),))[1]

            # Only the changes differ from one coordinate to the next; values are computed once.
            directions = torch.eye(width, dtype=rows.dtype, device=rows.device)
            changes = vmap(along, randomness="same")(directions)
        deltas, inputs = ([x.detach().unflatten(0, (groups, size)) for x in s] for s in sides)
        dd, dx = (
            [x.detach().unflatten(1, (groups, size)).movedim(0, 2) for x in side]
            for side in changes
        )
        layers = [
            LayerDerivatives(*parts)
            for parts in zip(self._layers, inputs, dx, deltas, dd, strict=True)
        ]
        return clipped(layers, self._clips, size)

    def _sides(self, rows: Tensor) -> _Sides:
        """Each layer's deltas and inputs, (G b, .), at coordinates (G b, K)."""
        modules = [layer.module for layer in self._layers]
        record = torch.arange(len(rows), device=rows.device)

        def total(offsets: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            with _Offsets(dict(zip(modules, offsets, strict=True))) as seen:
                loss = self._observation.loss(self._observation.model, self._decode(rows, record))
            # The loss is a mean over all rows; a group's gradient is a mean over its b records.
            return loss * (len(rows) / self._size), [seen.inputs[module] for module in modules]

        offsets = [rows.new_zeros(len(rows), module.out_features) for module in modules]
        return grad(total, has_aux=True)(offsets)


class _Offsets:
    """Context manager that adds to layers' outputs, whose gradients are the deltas then.

    Calls without gradient are left alone: there the layer computes a constant, such as a target.
    """

    def __init__(self, offsets: Mapping[nn.Module, Tensor]) -> None:
        self._offsets = offsets
        self._handles: list[RemovableHandle] = []
        self.inputs: dict[nn.Module, Tensor] = {}

    def __enter__(self) -> _Offsets:
        self._handles = [module.register_forward_hook(self._moved) for module in self._offsets]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _moved(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        self.inputs[module] = inputs[0]
        return output + self._offsets[module]
