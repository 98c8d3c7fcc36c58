"""Records drawn from the adversary's prior, their gradients, and what the channel makes of them.

A stream of simulated releases is never held in memory: it is drawn again, equal bit for bit, each
time it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.bayes.posterior import Coordinates
from attacks.gradients.layer_calls import LayerCalls
from attacks.gradients.linear_layers import LinearLayer
from attacks.learning.channel_simulation import ChannelSimulation
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.transitions import Transitions, flatten_state_action, unflatten_state_action

CHUNK = 128
"""Releases that are in memory at once."""


@dataclass(frozen=True, eq=False)
class PriorDraws:
    """Records as an adversary with few samples expects them: a smoothed bootstrap.

    A draw is a known record shrunk towards the mean and moved by the prior's Gaussian, so that the
    covariance lies between the samples' and the prior's shrunk one (West 1993). The bandwidth is
    Silverman's: with few samples in many dimensions draws are nearly Gaussian, with many they
    follow the samples.
    """

    coordinates: Coordinates
    prior: Prior
    points: Tensor
    actions: Tensor | None

    @classmethod
    def of(
        cls,
        observation: Observation,
        layers: Sequence[LinearLayer],
        coordinates: Coordinates,
        prior: Prior,
    ) -> PriorDraws:
        """Draws around the prior's known transitions, which must exist."""
        assert prior.known is not None
        like = coordinates.mean
        known = prior.known.to(dtype=like.dtype, device=like.device)
        rewards = coordinates.equivalent_rewards(observation, layers, known)
        points = coordinates.encode(known, rewards)
        return cls(coordinates, prior, points, known.action if prior.template.discrete else None)

    def draw(self, count: int, generator: torch.Generator) -> Transitions:
        """``count`` records inside the template's ranges."""
        known, width = self.points.shape
        bandwidth = min(1.0, (4 / (known * (width + 2))) ** (1 / (width + 4)))
        chosen = torch.randint(known, (count,), generator=generator)
        noise = torch.randn(count, width, generator=generator, dtype=torch.float64)
        center = self.points[chosen]
        rows = (1 - bandwidth**2) ** 0.5 * center + bandwidth * noise.to(center)
        actions = None if self.actions is None else self.actions[chosen]
        with torch.no_grad():
            inside = self.prior.template.clamp(self.coordinates.decode(rows, actions))
            return complete(self.coordinates, inside.state, inside.action, rows[:, -1])


def complete(
    coordinates: Coordinates, state: Tensor, action: Tensor, deviation: Tensor
) -> Transitions:
    """Records from (s, a) and the deviation (n,) of their equivalent reward; s' is predicted."""
    prior = coordinates.prior
    reward = prior.predicted_reward(state, action) + coordinates.reward_offset
    reward = reward + coordinates.reward_std * deviation
    next_state = prior.transition(state, action)
    return Transitions(state, action, reward, next_state, torch.zeros_like(reward))


def record_gradients(
    observation: Observation, layers: Sequence[LinearLayer], z: Transitions
) -> Tensor:
    """(n, P): the flat gradient of each record alone, from one pass over all."""
    with LayerCalls([layer.module for layer in layers]) as hooks:
        loss = observation.loss(observation.model, z) * len(z)
    seen = {module: (x, out) for module, x, out in hooks.calls}
    deltas = torch.autograd.grad(loss, [seen[layer.module][1] for layer in layers])
    formed: dict[str | None, Tensor] = {}
    for layer, d in zip(layers, deltas, strict=True):
        x = seen[layer.module][0].detach()
        if layer.weight is not None:
            formed[layer.weight] = (d[:, :, None] * x[:, None, :]).flatten(1)
        formed[layer.bias] = d
    return torch.cat([formed[name] for name in observation.parameters], dim=1)


@dataclass(frozen=True, eq=False)
class SimulatedReleases:
    """Records and their releases, in chunks."""

    observation: Observation
    layers: Sequence[LinearLayer]
    simulation: ChannelSimulation
    records: Transitions
    seeds: Tensor

    @classmethod
    def of(
        cls,
        observation: Observation,
        layers: Sequence[LinearLayer],
        draws: PriorDraws,
        count: int,
        generator: torch.Generator,
    ) -> SimulatedReleases:
        """``count`` records, each sent once through the observation's channel."""
        sizes = [p.numel() for p in observation.parameters.values()]
        records = draws.draw(count, generator)
        seeds = torch.randint(2**62, (-(-count // CHUNK),), generator=generator)
        simulation = ChannelSimulation(observation.channel, sizes)
        return cls(observation, layers, simulation, records, seeds)

    def __iter__(self) -> Iterator[Tensor]:
        """Releases (<= CHUNK, P), in the order of ``records``."""
        for index, seed in enumerate(self.seeds.tolist()):
            rows = slice(index * CHUNK, (index + 1) * CHUNK)
            clean = record_gradients(self.observation, self.layers, self.records[rows])
            generator = torch.Generator(device=clean.device).manual_seed(seed)
            yield self.simulation.draw(clean, generator)

    def signals(self, count: int) -> Tensor:
        """(count, P): the first records' gradients under the channel without its noise."""
        parts = [
            self.simulation.signal(
                record_gradients(self.observation, self.layers, self.records[i : i + CHUNK])
            )
            for i in range(0, count, CHUNK)
        ]
        return torch.cat(parts)[:count]


def standardised(z: Transitions, prior: Prior) -> Tensor:
    """(n, D): [s, a] from the prior's mean in its deviations; discrete actions one-hot."""
    rows = flatten_state_action(z, prior.template)
    return (rows - prior.joint_mean.to(rows)) / prior.joint_std.to(rows)


def unstandardised(rows: Tensor, prior: Prior) -> tuple[Tensor, Tensor]:
    """Inverse of ``standardised``: states and actions; a discrete action is its largest weight."""
    flat = prior.joint_mean.to(rows) + prior.joint_std.to(rows) * rows
    return unflatten_state_action(flat, prior.template)
