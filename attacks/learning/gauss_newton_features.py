"""One Gauss-Newton step from an estimate, as features of a release.

The first-order statistic of a release at an estimate z is J(z)^T W (g - g(z)): where the gradient
says that the record lies, seen from z. Regressing the record on the step that it implies, for
simulated releases, learns how far the step can be trusted (supervised descent; Xiong and De la
Torre, CVPR 2013). The weights W are one over the mean squared residual of each tensor, which holds
the channel's noise and the error of the linearisation alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.bayes.misfits import Received
from attacks.bayes.normal_equations import NormalEquations
from attacks.bayes.posterior import Coordinates
from attacks.gradients.linear_layers import LinearLayer
from attacks.learning.channel_simulation import clipped_as
from attacks.learning.simulated_releases import (
    complete,
    record_gradients,
    standardised,
    unstandardised,
)
from attacks.observation import Observation
from attacks.transitions import Transitions

LIMIT = 8.0
"""Steps end at most this many deviations from the prior's mean."""


@dataclass(frozen=True, eq=False)
class GaussNewtonFeatures:
    """A map of flat releases (n, P) and estimates (n, D + 1) to features (n, F).

    An estimate is [s, a] in the prior's deviations, discrete actions as weights, and the deviation
    of the equivalent reward.
    """

    observation: Observation
    layers: Sequence[LinearLayer]
    coordinates: Coordinates

    def __call__(self, releases: Tensor, estimate: Tensor) -> Tensor:
        """Chunks of a stream fit in memory."""
        prior, template = self.coordinates.prior, self.coordinates.template
        state, action = unstandardised(estimate[:, :-1], prior)
        here = complete(self.coordinates, state, action, estimate[:, -1])
        received, residual = self._received(releases, here)
        discrete = action if template.discrete else None
        points = self.coordinates.encode(here, here.reward)

        def decode(rows: Tensor, record: Tensor) -> Transitions:
            return self.coordinates.decode(rows, None if discrete is None else discrete[record])

        equations = NormalEquations(self.observation, self.layers, received, decode)
        normal = equations.at(points[:, None])
        # Whitened coordinates: the prior adds the identity.
        hessian = normal.hessian.double()
        hessian = hessian + torch.eye(hessian.shape[1], dtype=hessian.dtype, device=hessian.device)
        gradient = normal.gradient.double() + points.double()
        factor, _ = torch.linalg.cholesky_ex(hessian)
        step = torch.cholesky_solve(gradient[:, :, None], factor).squeeze(-1)
        moved = (points.double() - step).nan_to_num().clamp(-LIMIT, LIMIT).to(points)
        spread = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2).clamp_min(1e-12)
        reached = standardised(self.coordinates.decode(moved, discrete), prior)
        return torch.cat(
            [estimate, reached, moved[:, -1:], residual, spread.log().to(points)], dim=1
        ).detach()

    def _received(self, releases: Tensor, here: Transitions) -> tuple[Received, Tensor]:
        """The releases with their precisions at an estimate; logarithms of the residuals."""
        expected = record_gradients(self.observation, self.layers, here)
        channel, start = self.observation.channel, 0
        sizes = [parameter.numel() for parameter in self.observation.parameters.values()]
        expected = clipped_as(channel.clips, expected, sizes)
        releases = releases / channel.gain(releases.shape[1])
        gradient, precision, sent, shares = {}, {}, {}, []
        for name, parameter in self.observation.parameters.items():
            place = slice(start, start + parameter.numel())
            start += parameter.numel()
            value = releases[:, place]
            gradient[name] = value.reshape(-1, *parameter.shape)
            error = value - expected[:, place]
            arrived = torch.ones_like(value)
            if channel.zeroed:
                arrived = (value != 0).to(value)
                sent[name] = arrived.reshape(-1, *parameter.shape)
            count = arrived.sum(dim=1).clamp_min(1.0)
            variance = (error.square() * arrived).sum(dim=1) / count
            energy = value.square().sum(dim=1) / count
            precision[name] = 1 / variance.clamp_min(1e-12 * energy).clamp_min(1e-30)
            shares.append(((variance + 1e-30) / (energy + 1e-30)).clamp(1e-6, 1e6).log())
        received = Received(gradient, precision, sent or None, channel.clips)
        return received, torch.stack(shares, dim=1)
