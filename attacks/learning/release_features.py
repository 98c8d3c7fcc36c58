"""A few hundred numbers of a dense network's release that its record can be told from.

Every layer's gradient is [dW | db] = d (x, 1)^T for one record, so what the release says of it is:
where it lies in the subspace that such gradients fill (principal components of simulated ones, for
which noise averages out over thousands of coordinates), its input x by least squares and by the top
singular pair, and how large its tensors are: a quantiser's scale is exact however coarse its codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.gradients.first_layers import FirstLayer
from attacks.gradients.linear_layers import LinearLayer
from attacks.observation import Observation
from attacks.prior import Prior

COMPONENTS = 48
POWER_ITERATIONS = 8
LIMIT = 6.0
"""Standardised numbers are cut off here: a ratio of noises has no variance."""


@dataclass(frozen=True, eq=False)
class _Part:
    """One layer's places in the flat gradient, and the components of its simulated gradients."""

    weight: slice | None
    bias: slice | None
    inputs: int
    columns: Tensor | None
    """Where its inputs are coordinates of [state, action]: their numbers."""
    basis: Tensor
    """(P_layer, components)."""
    scale: Tensor


class ReleaseFeatures:
    """A map of flat releases (n, P) to features (n, F)."""

    def __init__(
        self,
        observation: Observation,
        layers: Sequence[LinearLayer],
        first: Sequence[FirstLayer],
        prior: Prior,
        signals: Tensor,
    ) -> None:
        """``signals`` (m, P): simulated gradients whose principal components are taken."""
        places, start = {}, 0
        for name, parameter in observation.parameters.items():
            places[name] = slice(start, start + parameter.numel())
            start += parameter.numel()
        columns = {id(f.layer.module): f.columns for f in first}
        self._tensors = list(places.values())
        self._mean = prior.joint_mean.to(signals)
        self._std = prior.joint_std.to(signals)
        self._parts = []
        for layer in layers:
            weight = None if layer.weight is None else places[layer.weight]
            bias = None if layer.bias is None else places[layer.bias]
            basis, scale = _components(_joined(signals, weight, bias))
            self._parts.append(
                _Part(
                    weight,
                    bias,
                    layer.module.in_features,
                    columns.get(id(layer.module)),
                    basis,
                    scale,
                )
            )

    def __call__(self, releases: Tensor) -> Tensor:
        """(n, P) to (n, F)."""
        found = [self._sizes(releases)]
        for part in self._parts:
            found.append(self._projections(releases, part))
            if part.columns is not None and part.weight is not None and part.bias is not None:
                found.append(self._inputs(releases, part))
        return torch.cat(found, dim=1)

    def _sizes(self, releases: Tensor) -> Tensor:
        """Logarithms of each tensor's largest entry and norm; a single number keeps its sign."""
        found = []
        for place in self._tensors:
            tensor = releases[:, place]
            largest = tensor.abs().amax(dim=1).clamp_min(1e-12)
            found += [largest.log(), tensor.norm(dim=1).clamp_min(1e-12).log()]
            if tensor.shape[1] == 1:
                found += [tensor[:, 0].sign(), tensor[:, 0].asinh()]
        return torch.stack(found, dim=1)

    def _projections(self, releases: Tensor, part: _Part) -> Tensor:
        """Principal components: as they are, and free of the layer's size and sign."""
        raw = _joined(releases, part.weight, part.bias) @ part.basis
        size = raw.norm(dim=1, keepdim=True).clamp_min(1e-12)
        sign = torch.where(raw[:, :1] < 0, -1.0, 1.0)
        direction = raw * (sign / size) * raw.shape[1] ** 0.5
        return torch.cat([(raw / part.scale).clamp(-LIMIT, LIMIT), direction, size.log()], dim=1)

    def _inputs(self, releases: Tensor, part: _Part) -> Tensor:
        """x of a first layer in the prior's deviations, by both closed forms."""
        assert part.columns is not None
        bias = releases[:, part.bias]
        weight = releases[:, part.weight].unflatten(1, (-1, part.inputs))
        rows = torch.cat([weight, bias[:, :, None]], dim=2)
        gram = torch.bmm(rows.mT, rows)
        tiny = torch.finfo(gram.dtype).tiny
        sent = (weight != 0) & (bias != 0)[:, :, None]
        squared = (sent * bias.square()[:, :, None]).sum(dim=1)
        least_squares = gram[:, :-1, -1] / squared.clamp_min(tiny)
        vector = gram[:, :, -1]
        for _ in range(POWER_ITERATIONS):
            vector = torch.bmm(gram, vector[:, :, None]).squeeze(-1)
            vector = vector / vector.norm(dim=1, keepdim=True).clamp_min(tiny)
        last = vector[:, -1:]
        singular = vector[:, :-1] / torch.where(last.abs() < 1e-6, 1e-6, last)
        mean, std = self._mean[part.columns], self._std[part.columns]
        both = [((x - mean) / std).clamp(-LIMIT, LIMIT) for x in (least_squares, singular)]
        return torch.cat([*both, last.abs().clamp_min(1e-6).log()], dim=1)


def _joined(releases: Tensor, weight: slice | None, bias: slice | None) -> Tensor:
    return torch.cat([releases[:, place] for place in (weight, bias) if place is not None], dim=1)


def _components(signals: Tensor) -> tuple[Tensor, Tensor]:
    """Leading uncentred principal components (P, k) of (m, P), and their deviations (k,)."""
    # Heavy tails of the TD error would let a few records take all components.
    size = signals.norm(dim=1, keepdim=True)
    unit = signals / size.clamp_min(torch.finfo(signals.dtype).tiny)
    values, vectors = torch.linalg.eigh((unit @ unit.T).double())
    kept = values > 1e-9 * values[-1]
    values, vectors = (x[..., kept].flip(-1)[..., :COMPONENTS] for x in (values, vectors))
    basis = unit.T @ (vectors / values.sqrt()).to(unit)
    deviation = (signals @ basis).square().mean(dim=0).sqrt()
    return basis, deviation.clamp_min(1e-12)
