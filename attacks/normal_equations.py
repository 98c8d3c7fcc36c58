"""Gauss-Newton normal equations of dense networks, without forming gradients or Jacobians.

A layer's gradient of b records is sum_i d_i x_i^T. Along one coordinate k of record i it changes by
d'_ik x_i^T + d_i x'_ik^T, so every inner product of two such changes is made of inner products of
small vectors:

    <J_ik, J_jl> = (d'_ik . d'_jl)(x_i . x_j) + (d'_ik . d_j)(x_i . x'_jl)
                 + (d_i . d'_jl)(x'_ik . x_j) + (d_i . d_j)(x'_ik . x'_jl).

x and d of all layers, and their derivatives along all coordinates, come from one forward-mode pass
over a backward pass in which every record stands once for each of its coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor

from attacks.channel import Clipping
from attacks.gradients import LinearCalls, LinearLayer
from attacks.observation import Observation
from attacks.transitions import Transitions

Decode: TypeAlias = Callable[[Tensor, Tensor], Transitions]
"""(coordinates (n, K), record (n,)) to n transitions, differentiable, each row by itself.

``record`` numbers the records of all groups, 0 .. G b - 1: rows of one record differ in their
coordinates only.
"""


@dataclass(frozen=True, eq=False)
class Received:
    """What T releases of one model, batch size and channel say about the gradient.

    Attributes:
        gradient: name -> (T, *shape).
        precision: name -> (T,), one over the variance of the noise on each coordinate.
        sent: name -> (T, *shape) of 0 and 1 where coordinates were left out; None: all were sent.
        clips: each record's gradient, or each tensor of it, divided by b, was scaled down to at
            most limit / b, in this order.
        laplace: the noise is Laplace, of scale 1 / sqrt(precision), instead of Gaussian.
    """

    gradient: Mapping[str, Tensor]
    precision: Mapping[str, Tensor]
    sent: Mapping[str, Tensor] | None = None
    clips: tuple[Clipping, ...] = ()
    laplace: bool = False


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


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer's inputs and deltas, and their derivatives, of G groups of b records.

    ``x`` (G, b, n), ``dx`` (G, b, K, n), ``d`` (G, b, m), ``dd`` (G, b, K, m).
    """

    layer: LinearLayer
    x: Tensor
    dx: Tensor
    d: Tensor
    dd: Tensor

    def gradients(self) -> dict[str, Tensor]:
        """The groups' gradients of the layer's released parameters, (G, *shape) by name."""
        formed = {}
        if self.layer.weight is not None:
            formed[self.layer.weight] = torch.bmm(self.d.mT, self.x)
        if self.layer.bias is not None:
            formed[self.layer.bias] = self.d.sum(dim=1)
        return formed

    def tensors(self) -> list[_Layer]:
        """The same as one layer for each released parameter."""
        weight, bias = self.layer.weight, self.layer.bias
        return [
            replace(self, layer=replace(self.layer, weight=w, bias=b))
            for w, b in ((weight, None), (None, bias))
            if w is not None or b is not None
        ]

    def squared_inputs(self) -> Tensor:
        """(G, b): a record's squared gradient norm is this times its squared delta."""
        square = self.x.square().sum(-1) if self.layer.weight is not None else 0.0
        return square + torch.full_like(self.d[..., 0], float(self.layer.bias is not None))


class NormalEquations:
    """Residual of T targets, each tried at R points of b records at once (target-major)."""

    def __init__(
        self,
        observation: Observation,
        layers: Sequence[LinearLayer],
        received: Received,
        decode: Decode,
    ) -> None:
        """``observation`` stands for all targets: model, loss and batch size are theirs."""
        self._observation = observation
        self._layers = layers
        self._received = received
        self._decode = decode
        self._size = observation.batch_size
        self._targets = len(next(iter(received.gradient.values())))

    def value(self, points: Tensor) -> Tensor:
        """The misfit (G,) at ``points`` (G, b, K), G = T R."""
        layers = self._clipped(self._run(points, derivatives=False))
        return torch.stack([self._value(layer) for layer in layers]).sum(dim=0)

    def at(self, points: Tensor) -> Normal:
        """Everything that a Gauss-Newton step needs at ``points`` (G, b, K)."""
        layers = self._clipped(self._run(points, derivatives=True))
        sparse = self._received.sent is not None
        parts = [(self._over_sent if sparse else self._gram)(layer) for layer in layers]
        gradients, hessians = zip(*parts, strict=True)
        value = torch.stack([self._value(layer) for layer in layers]).sum(dim=0)
        return Normal(value, sum(gradients[1:], gradients[0]), sum(hessians[1:], hessians[0]))

    def _run(self, points: Tensor, *, derivatives: bool) -> list[_Layer]:
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
            return [
                _Layer(
                    layer,
                    *_unpack(seen[layer.module][0], groups, size, copies, derivatives),
                    *_unpack(delta, groups, size, copies, derivatives),
                )
                for layer, delta in zip(self._layers, deltas, strict=True)
            ]

    def _clipped(self, layers: list[_Layer]) -> list[_Layer]:
        """Scales each record's deltas as clipping does, derivatives included."""
        for clip in self._received.clips:
            if clip.per_tensor:
                tensors = [tensor for layer in layers for tensor in layer.tensors()]
                layers = [scaled for t in tensors for scaled in self._scaled([t], clip.limit)]
            else:
                layers = self._scaled(layers, clip.limit)
        return layers

    def _scaled(self, layers: list[_Layer], limit: float) -> list[_Layer]:
        """Layers of records whose joint norm is scaled down to ``limit`` / b."""
        squares, slopes = [], []
        for layer in layers:
            inputs, deltas = layer.squared_inputs(), layer.d.square().sum(-1)
            squares.append(inputs * deltas)
            slope = inputs[..., None] * torch.einsum("gikm,gim->gik", layer.dd, layer.d)
            if layer.layer.weight is not None:
                along = torch.einsum("gikn,gin->gik", layer.dx, layer.x)
                slope = slope + deltas[..., None] * along
            slopes.append(slope)
        square = torch.stack(squares).sum(dim=0)
        square = square.clamp_min(torch.finfo(square.dtype).tiny)
        factor = (limit / self._size / square.sqrt()).clamp_max(1.0)[..., None]
        slope = torch.stack(slopes).sum(dim=0) / square[..., None]
        change = torch.where(factor < 1, -factor * slope, 0.0)[..., None]
        return [
            _Layer(
                layer.layer,
                layer.x,
                layer.dx,
                factor * layer.d,
                factor[..., None] * layer.dd + change * layer.d[:, :, None],
            )
            for layer in layers
        ]

    def _value(self, layer: _Layer) -> Tensor:
        groups = len(layer.d)
        parts = [
            self._misfit(error.flatten(1), self._precision(name, groups))
            for name, error in self._residual(layer).items()
        ]
        return sum(parts[1:], parts[0])

    def _gram(self, layer: _Layer) -> tuple[Tensor, Tensor]:
        """The layer's part of gradient (G, b K) and Hessian (G, b K, b K)."""
        groups, width = len(layer.d), layer.dd.shape[2]
        d, x = layer.d, layer.x
        dd, dx = layer.dd.flatten(1, 2), layer.dx.flatten(1, 2)  # (G, b K, .)
        residual = self._scores(layer)
        changes = torch.bmm(dd, dd.mT)
        gradient = dd.new_zeros(groups, dd.shape[1])
        hessian = torch.zeros_like(changes)
        if layer.layer.bias is not None:
            weight = self._precision(layer.layer.bias, groups)
            error = residual[layer.layer.bias]
            gradient = gradient + weight[:, None] * torch.bmm(dd, error[:, :, None]).squeeze(-1)
            hessian = hessian + weight[:, None, None] * changes
        if layer.layer.weight is not None:
            weight = self._precision(layer.layer.weight, groups)
            error = residual[layer.layer.weight]  # (G, m, n)
            slope = (torch.bmm(dd, error).unflatten(1, (-1, width)) * x[:, :, None]).sum(-1)
            slope = slope + (torch.bmm(d, error)[:, :, None] * layer.dx).sum(-1)
            gradient = gradient + weight[:, None] * slope.flatten(1)
            cross = _stretched(torch.bmm(dd, d.mT), 1, width)
            cross = cross * _stretched(torch.bmm(dx, x.mT), 1, width).mT
            term = changes * _stretched(torch.bmm(x, x.mT), width, width) + cross + cross.mT
            term = term + _stretched(torch.bmm(d, d.mT), width, width) * torch.bmm(dx, dx.mT)
            hessian = hessian + weight[:, None, None] * term
        return gradient, hessian

    def _over_sent(self, layer: _Layer) -> tuple[Tensor, Tensor]:
        """The same from the Jacobian of the sent coordinates, group by group."""
        groups, size, width = layer.dd.shape[:3]
        assert self._received.sent is not None
        gradient = layer.dd.new_zeros(groups, size * width)
        hessian = layer.dd.new_zeros(groups, size * width, size * width)
        for name, error in self._scores(layer).items():
            precision = self._precision(name, groups)
            for target, sent in enumerate(self._received.sent[name]):
                where = sent.nonzero(as_tuple=True)
                for group in range(target * groups // self._targets, groups):
                    if group // (groups // self._targets) != target:
                        break
                    jacobian = layer.dd[group][:, :, where[0]]
                    if name == layer.layer.weight:
                        x, dx = layer.x[group], layer.dx[group]
                        jacobian = jacobian * x[:, None, where[1]]
                        jacobian = jacobian + layer.d[group][:, None, where[0]] * dx[..., where[1]]
                    jacobian = jacobian.flatten(0, 1)
                    gradient[group] += precision[group] * (jacobian @ error[group][where])
                    hessian[group] += precision[group] * (jacobian @ jacobian.T)
        return gradient, hessian

    def _residual(self, layer: _Layer) -> dict[str, Tensor]:
        """Gradient minus received one, (G, *shape) by name; zero where nothing was sent."""
        errors = {}
        for name, gradient in layer.gradients().items():
            error = gradient.unflatten(0, (self._targets, -1))
            error = error - self._received.gradient[name][:, None]
            if self._received.sent is not None:
                error = error * self._received.sent[name][:, None]
            errors[name] = error.flatten(0, 1)
        return errors

    def _misfit(self, error: Tensor, precision: Tensor) -> Tensor:
        """Minus log likelihood (G,) of residuals (G, n), up to a constant."""
        if self._received.laplace:
            return precision.sqrt() * error.abs().sum(dim=1)
        return 0.5 * precision * error.square().sum(dim=1)

    def _scores(self, layer: _Layer) -> dict[str, Tensor]:
        """The misfit's derivative by the gradient over the precision: Gaussian, the residual."""
        errors = self._residual(layer)
        if not self._received.laplace:
            return errors
        groups = len(layer.d)
        return {
            name: error.sign() / _like(self._precision(name, groups).sqrt(), error)
            for name, error in errors.items()
        }

    def _precision(self, name: str, groups: int) -> Tensor:
        return self._received.precision[name].repeat_interleave(groups // self._targets)


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


def _like(numbers: Tensor, tensor: Tensor) -> Tensor:
    """(G,) in a shape that multiplies ``tensor`` (G, ...)."""
    return numbers.reshape(-1, *[1] * (tensor.dim() - 1))


def _stretched(products: Tensor, rows: int, columns: int) -> Tensor:
    """Every entry of (G, p, q) repeated: (G, p rows, q columns)."""
    return products.repeat_interleave(rows, dim=1).repeat_interleave(columns, dim=2)
