"""Inputs and deltas of a linear layer with their derivatives, and what clipping does to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.channel import Clipping
from attacks.gradients.linear_layers import LinearLayer


@dataclass(frozen=True, eq=False)
class LayerDerivatives:
    """One layer's inputs and deltas, and their derivatives, of G groups of b records.

    ``x`` (G, b, n), ``dx`` (G, b, K, n), ``d`` (G, b, m), ``dd`` (G, b, K, m); K is 0 where no
    derivatives were asked for.
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

    def double(self) -> LayerDerivatives:
        """The same in float64."""
        return replace(
            self, x=self.x.double(), dx=self.dx.double(), d=self.d.double(), dd=self.dd.double()
        )

    def tensors(self) -> list[LayerDerivatives]:
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


def clipped(
    layers: list[LayerDerivatives], clips: Sequence[Clipping], size: int
) -> list[LayerDerivatives]:
    """Deltas of each of a group's ``size`` records scaled as clipping does, derivatives included.

    Where tensors are clipped by themselves, a layer becomes one for each of its tensors.
    """
    for clip in clips:
        if clip.per_tensor:
            tensors = [tensor for layer in layers for tensor in layer.tensors()]
            layers = [scaled for t in tensors for scaled in _scaled([t], clip.limit / size)]
        else:
            layers = _scaled(layers, clip.limit / size)
    return layers


def _scaled(layers: list[LayerDerivatives], limit: float) -> list[LayerDerivatives]:
    """Layers of records whose joint norm is scaled down to ``limit``."""
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
    factor = (limit / square.sqrt()).clamp_max(1.0)[..., None]
    slope = torch.stack(slopes).sum(dim=0) / square[..., None]
    change = torch.where(factor < 1, -factor * slope, 0.0)[..., None]
    return [
        replace(
            layer,
            d=factor * layer.d,
            dd=factor[..., None] * layer.dd + change * layer.d[:, :, None],
        )
        for layer in layers
    ]
