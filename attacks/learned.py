"""The posterior's mean, learned from releases that the adversary makes itself.

Wu, Chen, Guo and Weinberger (UAI 2023, arXiv 2210.10880) train a network on (defended gradient,
record) pairs of an auxiliary data set. Here the pairs are simulated: the adversary knows model,
loss and channel, and its prior's draws are as many as it likes, so any channel that can be run can
be inverted in the mean-square sense, with or without a likelihood. Least squares on such pairs
tends to E[record | release], the answer of least mean squared error under that prior.

Instead of the whole gradient the regression sees a few hundred features of it
(``learning.release_features``), then the Gauss-Newton step from its own estimate
(``learning.gauss_newton_features``); a second such step costs as much again and, on the channels
that this is for, finds no more. All of it is fitted on simulated releases alone and shared by the
targets of a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attack import Attack, Reconstruction
from attacks.bayes.posterior import Coordinates
from attacks.gradients.first_layers import first_layers
from attacks.gradients.linear_layers import dense_layers
from attacks.learning.channel_simulation import not_simulated
from attacks.learning.gauss_newton_features import GaussNewtonFeatures
from attacks.learning.regression import CrossFitted
from attacks.learning.release_features import ReleaseFeatures
from attacks.learning.simulated_releases import (
    CHUNK,
    PriorDraws,
    SimulatedReleases,
    complete,
    standardised,
    unstandardised,
)
from attacks.observation import Observation, gradient_matching_error
from attacks.prior import Prior
from attacks.registry import register_attack
from attacks.transitions import Transitions


@register_attack(
    "learned",
    summary="posterior mean learned from simulated releases, for any channel (arXiv 2210.10880)",
    needs=("samples",),
)
@dataclass(frozen=True)
class Learned(Attack):
    """Learned inversion of one record's release; needs a network of dense layers.

    Attributes:
        samples: simulated releases; a sixth of them is held out to choose what is trusted.
        pilots: of them, those whose principal components are the features.
        refinements: Gauss-Newton steps that are learned after the first estimate.
    """

    samples: int = 3072
    pilots: int = 768
    refinements: int = 1

    def unsupported(self, observation: Observation) -> str:
        """Needs one record, dense layers, and a channel that can be simulated."""
        if observation.batch_size != 1:
            return (
                f"the regression answers for one record, the release mixes {observation.batch_size}"
            )
        if observation.channel.sums:
            return "the release is a sum over clients, the regression answers for one record"
        if not_simulated(observation.channel):
            return not_simulated(observation.channel)
        if dense_layers(observation) is None:
            return "released parameters outside dense layers, or layers called more than once"
        return ""

    def solve(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """The targets take no part in the fits."""
        first = observations[0]
        layers = dense_layers(first)
        assert layers is not None
        generator = torch.Generator().manual_seed(seed)
        coordinates = Coordinates.of(first, layers, prior)
        draws = PriorDraws.of(first, layers, coordinates, prior)
        simulated = SimulatedReleases.of(first, layers, draws, self.samples, generator)
        like = coordinates.mean
        received = torch.stack([o.flat_gradient() for o in observations]).to(like).split(CHUNK)

        records = simulated.records
        deviations = coordinates.encode(records, records.reward)[:, -1:]
        outputs = torch.cat([standardised(records, prior), deviations], dim=1)
        pilots = simulated.signals(self.pilots)
        features = ReleaseFeatures(first, layers, first_layers(first), prior, pilots)
        seen = torch.cat([features(chunk) for chunk in simulated])
        asked = torch.cat([features(chunk) for chunk in received])
        fitted = CrossFitted.fit(seen, outputs, generator)
        step = GaussNewtonFeatures(first, layers, coordinates)
        for _ in range(self.refinements):
            seen = torch.cat(list(_steps(step, simulated, fitted.estimates)))
            asked = torch.cat(list(_steps(step, received, fitted(asked))))
            fitted = CrossFitted.fit(seen, outputs, generator)
        error = float(fitted.error[:-1].mean())
        estimates = fitted(asked)
        return [
            _answer(observation, coordinates, estimates[k : k + 1], error)
            for k, observation in enumerate(observations)
        ]


def _steps(
    step: GaussNewtonFeatures, releases: Iterable[Tensor], estimates: Tensor
) -> Iterator[Tensor]:
    for chunk, estimate in zip(releases, estimates.split(CHUNK), strict=True):
        yield step(chunk, estimate)


def _answer(
    observation: Observation, coordinates: Coordinates, estimate: Tensor, error: float
) -> Reconstruction:
    """The estimate (1, D + 1) as a record; its s' and reward are those that the prior predicts."""
    state, action = unstandardised(estimate[:, :-1], coordinates.prior)
    with torch.no_grad():
        z = complete(coordinates, state, action, estimate[:, -1])
    gme = gradient_matching_error(observation, z)
    z = observation.template.clamp(z)
    unknown = torch.full_like(z.reward, math.nan)
    return Reconstruction(
        transitions=Transitions(z.state, z.action, z.reward, z.next_state, unknown),
        objective=gme,
        gme=gme,
        notes=f"next state predicted by the prior; simulated error {error:.2g} of its variance",
    )
