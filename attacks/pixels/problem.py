"""What releases of one convolutional model share when their pixels are sought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from attacks.observation import Observation
from attacks.pixels.conv_chains import ConvChain, ConvLayer
from attacks.prior import Prior
from attacks.transitions import Bound, bound_tensor

MOST_KNOWN = 200
"""Samples that are compared with a record's features, at most."""

LEVELS = 255
"""Grey levels in the range of a pixel, less one."""


@dataclass(frozen=True, eq=False)
class PixelProblem:
    """What observations of one model share. Images are float32 in [0, 1], (C, H, W).

    Attributes:
        chain: the model's convolutions.
        layers: those, the first one reading images in [0, 1].
        low, high: what 0 and 1 stand for in a state.
        average: (C, H, W) the prior's mean image.
        known: (n, C, H, W) the prior's samples, maybe none.
        grey: whether pixels are one of 256 levels.
    """

    chain: ConvChain
    layers: tuple[ConvLayer, ...]
    low: float
    high: float
    average: Tensor
    known: Tensor
    grey: bool

    @classmethod
    def of(cls, observation: Observation, chain: ConvChain, prior: Prior) -> PixelProblem:
        """Images of the prior's samples and mean, and how the model sees them."""
        template = observation.template
        states = prior.state_mean.detach().cpu().float().reshape(1, *template.state_shape)
        known = states[:0]
        if prior.known is not None:
            count = len(prior.known)
            chosen = torch.linspace(0, count - 1, min(count, MOST_KNOWN)).long()
            known = prior.known.state[chosen].detach().cpu().float()
        both = torch.cat([states, known])
        low, high = _range(template.state_low, template.state_high, both)
        images = (chain.images(both) - low) / (high - low)
        factor, offset = _scaling(chain, low, high)
        first = chain.layers[0]
        first = replace(
            first,
            weight=first.weight * factor,
            bias=first.bias + offset * first.weight.sum(dim=1),
        )
        layers = (first, *chain.layers[1:])
        average, seen = images[0].clamp(0, 1), images[1:]
        levels = (seen if len(seen) else average[:0]) * LEVELS
        grey = template.state_dtype == torch.uint8 or (
            bool(len(seen)) and float((levels - levels.round()).abs().max()) < 1e-2
        )
        return cls(chain, layers, low, high, average, seen, grey)

    @property
    def likely(self) -> Tensor:
        """Images (n, C, H, W) that records are like: the prior's samples, or their mean."""
        return self.known if len(self.known) else self.average[None]

    @cached_property
    def features(self) -> tuple[Tensor, ...]:
        """Activations of the ``likely`` images, (n, *outputs) by layer."""
        return tuple(features_of(self.layers, self.likely))

    @property
    def scaling(self) -> tuple[float, float]:
        """Factor and offset from images in [0, 1] to what the first convolution sees."""
        return _scaling(self.chain, self.low, self.high)

    def rounded(self, images: Tensor) -> Tensor:
        """The nearest possible images."""
        inside = images.clamp(0.0, 1.0)
        return (inside * LEVELS).round() / LEVELS if self.grey else inside

    def states(self, images: Tensor) -> Tensor:
        """Images (k, C, H, W) in [0, 1] as states (k, *state_shape)."""
        states = self.low + (self.high - self.low) * images
        states = states.round() if self.grey and self.high - self.low == LEVELS else states
        channels, height, width = self.layers[0].inputs
        shape = (height, width, channels) if self.chain.channels_last else self.layers[0].inputs
        return self.chain.states(states, shape)


def features_of(layers: Sequence[ConvLayer], images: Tensor) -> list[Tensor]:
    """Activations (b, *outputs) of each layer, float32."""
    return [z.relu() for z in outputs_of(layers, images)]


def outputs_of(layers: Sequence[ConvLayer], images: Tensor) -> list[Tensor]:
    """The same before the ReLU."""
    found, x = [], images
    for layer in layers:
        z = layer.weight.to(x) @ layer.patches(x) + layer.bias.to(x)[:, None]
        found.append(z.reshape(len(x), *layer.outputs))
        x = found[-1].relu()
    return found


def _scaling(chain: ConvChain, low: float, high: float) -> tuple[float, float]:
    return chain.scale * (high - low), chain.scale * low + chain.shift


def _range(low: Bound, high: Bound, states: Tensor) -> tuple[float, float]:
    """Smallest and largest possible number of a state, or seen in ``states`` if unbounded."""
    least, most = (float(bound_tensor(b, states).min()) for b in (low, high))
    most = float(bound_tensor(high, states).max())
    if not (abs(least) < float("inf") and abs(most) < float("inf")):
        least, most = float(states.min()), float(states.max())
    return least, most if most > least else least + 1.0
