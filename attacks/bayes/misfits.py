"""Misfits of dense layers' gradients to received ones, with their Gauss-Newton equations.

``GramMisfit`` never forms a gradient. With a layer's inputs X (b, n) and deltas D (b, m) of one
group and its received gradient G,

    ||D^T X - G||^2 = sum((D D^T) * (X X^T)) - 2 sum(D * (X G^T)) + ||G||^2,

in float64, which loses nothing to the difference of large numbers while the noise is well above
float64's rounding of G. See ``formed_misfit`` for gradients that are formed, ``misfit_choice`` for
which of them is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from attacks.bayes.layer_derivatives import LayerDerivatives
from attacks.channel import Clipping

FREEDOM = 1.0
"""Degrees of freedom of ``StudentMisfit``."""


class Misfit(Protocol):
    """What ``NormalEquations`` asks of a misfit: it is a sum over layers."""

    def value(self, layer: LayerDerivatives) -> Tensor:
        """(G,) of one layer."""

    def equations(self, layer: LayerDerivatives) -> tuple[Tensor, Tensor]:
        """Gradient (G, b K) and Hessian (G, b K, b K) of one layer."""


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

    @property
    def gaussian(self) -> bool:
        """Whether all coordinates arrived with Gaussian noise, or none."""
        return not self.laplace and self.sent is None

    @property
    def targets(self) -> int:
        """T."""
        return len(next(iter(self.gradient.values())))


class GramMisfit:
    """Half the squared residual in units of Gaussian noise, from inner products, float64."""

    def __init__(self, received: Received) -> None:
        self._targets = received.targets
        self._gradient = {name: value.double() for name, value in received.gradient.items()}
        self._precision = {name: value.double() for name, value in received.precision.items()}

    def value(self, layer: LayerDerivatives) -> Tensor:
        """(G,) of one layer."""
        return 0.5 * self.rows(layer).sum(dim=1)

    def equations(self, layer: LayerDerivatives) -> tuple[Tensor, Tensor]:
        """Gradient (G, b K) and Hessian (G, b K, b K) of one layer."""
        return self.weighted_equations(layer, torch.ones_like(layer.d[:, 0], dtype=torch.float64))

    def rows(self, layer: LayerDerivatives) -> Tensor:
        """(G, m): squared residual of what belongs to each of the layer's outputs."""
        x, d = layer.x.double(), layer.d.double()
        total = torch.zeros_like(d[:, 0])
        if layer.layer.weight is not None:
            squares = (torch.bmm(torch.bmm(x, x.mT), d) * d).sum(dim=1)
            shared = (d * self._applied(layer.layer.weight, x)).sum(dim=1)
            total = total + self._squares(layer.layer.weight, squares, shared)
        if layer.layer.bias is not None:
            sums = d.sum(dim=1)
            shared = sums * self._each(self._gradient[layer.layer.bias], len(d))
            total = total + self._squares(layer.layer.bias, sums.square(), shared)
        return total

    def weighted_equations(self, layer: LayerDerivatives, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The equations where the squares of :meth:`rows` count ``rows`` (G, m) times."""
        layer, groups = layer.double(), len(layer.d)
        x, d = layer.x, layer.d
        weighted = rows[:, None] * d
        precision = {n: self._each(p, groups) for n, p in self._precision.items()}
        slope = layer.dd.new_zeros(layer.dd.shape[:3])
        if layer.layer.bias is not None:
            error = d.sum(dim=1) - self._each(self._gradient[layer.layer.bias], groups)
            pulled = torch.einsum("gikm,gm->gik", layer.dd, rows * error)
            slope = slope + precision[layer.layer.bias][:, None, None] * pulled
        if layer.layer.weight is not None:
            name = layer.layer.weight
            # E x_i and d_i E of the residual E = D^T X - G.
            outputs = rows[:, None] * (torch.bmm(torch.bmm(x, x.mT), d) - self._applied(name, x))
            inputs = torch.bmm(torch.bmm(weighted, d.mT), x) - self._pulled_back(name, weighted)
            pulled = torch.einsum("gikm,gim->gik", layer.dd, outputs)
            pulled = pulled + torch.einsum("gikn,gin->gik", layer.dx, inputs)
            slope = slope + precision[name][:, None, None] * pulled
        root = rows.sqrt()
        scaled = replace(layer, d=root[:, None] * d, dd=root[:, None, None] * layer.dd)
        return slope.flatten(1), gram_hessian(scaled, precision)

    def _applied(self, name: str, x: Tensor) -> Tensor:
        """G x, (G, b, m): each group's inputs (G, b, n) through its target's gradient."""
        rows = x.reshape(self._targets, -1, x.shape[-1])
        return torch.bmm(rows, self._gradient[name].mT).reshape(*x.shape[:2], -1)

    def _pulled_back(self, name: str, d: Tensor) -> Tensor:
        """d G, (G, b, n): each group's deltas (G, b, m) through its target's gradient."""
        rows = d.reshape(self._targets, -1, d.shape[-1])
        return torch.bmm(rows, self._gradient[name]).reshape(*d.shape[:2], -1)

    def _squares(self, name: str, squares: Tensor, shared: Tensor) -> Tensor:
        """(G, m) from ||row of D^T X||^2 and its product with the received row."""
        groups, outputs = squares.shape
        received = self._gradient[name].reshape(self._targets, outputs, -1).square().sum(dim=2)
        left = (squares - 2 * shared + self._each(received, groups)).clamp_min(0.0)
        return self._each(self._precision[name], groups)[:, None] * left

    def _each(self, numbers: Tensor, groups: int) -> Tensor:
        return numbers.repeat_interleave(groups // self._targets, dim=0)


class StudentMisfit:
    """Gaussian noise that each output's row of a layer may exceed by an unknown factor.

    A search's point has some ReLUs on that were off, and their rows of the gradient are wrong by
    far more than the noise. Where every row has a variance of its own under an inverse gamma law of
    ``FREEDOM`` degrees, the misfit is multivariate Student's t,

        (n + v) / 2 log(1 + s / v)    for a row of n numbers with squared residual s,

    and rows that are wrong hold a search back no more than rows that are right. The Hessian is that
    of the iteratively reweighted squares, which lie above the misfit everywhere.
    """

    def __init__(self, received: Received) -> None:
        self._squares = GramMisfit(received)

    def value(self, layer: LayerDerivatives) -> Tensor:
        """(G,) of one layer."""
        rows = self._squares.rows(layer)
        return 0.5 * (_row_size(layer) + FREEDOM) * (rows / FREEDOM).log1p().sum(dim=1)

    def equations(self, layer: LayerDerivatives) -> tuple[Tensor, Tensor]:
        """Gradient (G, b K) and Hessian (G, b K, b K) of one layer."""
        rows = self._squares.rows(layer)
        weights = (_row_size(layer) + FREEDOM) / (rows + FREEDOM)
        return self._squares.weighted_equations(layer, weights)


def _row_size(layer: LayerDerivatives) -> int:
    """n, the released numbers that belong to one of the layer's outputs."""
    inputs = layer.x.shape[-1] if layer.layer.weight is not None else 0
    return inputs + (layer.layer.bias is not None)


def gram_hessian(layer: LayerDerivatives, precision: Mapping[str, Tensor]) -> Tensor:
    """(G, b K, b K) from inner products of small vectors, with each tensor's precision (G,).

    See ``normal_equations`` for the identity.
    """
    groups, size, width = layer.dd.shape[:3]
    d, x = layer.d, layer.x
    dd, dx = layer.dd.flatten(1, 2), layer.dx.flatten(1, 2)  # (G, b K, .)

    def products(left: Tensor, right: Tensor) -> Tensor:
        """Of all pairs, (G, b, K or 1, b, K or 1)."""
        found = torch.bmm(left, right.mT)
        return found.reshape(groups, size, found.shape[1] // size, size, found.shape[2] // size)

    # Matrices of all pairs are large: each is passed over as seldom as can be.
    alike = torch.zeros_like(layer.d[:, :1, :1, None, None])
    if layer.layer.bias is not None:
        alike = alike + _like(precision[layer.layer.bias], alike)
    if layer.layer.weight is None:
        return (alike * products(dd, dd)).reshape(groups, size * width, size * width)
    scale = _like(precision[layer.layer.weight], alike)
    hessian = products(dd, dd).mul_(alike + scale * products(x, x))
    hessian.addcmul_(scale * products(d, d), products(dx, dx))
    left, right = scale * products(dd, d), products(x, dx)
    hessian.addcmul_(left, right)
    hessian.addcmul_(left.permute(0, 3, 4, 1, 2), right.permute(0, 3, 4, 1, 2))
    return hessian.reshape(groups, size * width, size * width)


def _like(numbers: Tensor, tensor: Tensor) -> Tensor:
    """(G,) in a shape that multiplies ``tensor`` (G, ...)."""
    return numbers.reshape(-1, *[1] * (tensor.dim() - 1))
