"""What is known of one pixel observation: layers' gradients, and outputs as far as solved for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.observation import Observation
from attacks.pixels.active_units import settle_active
from attacks.pixels.conv_equations import GradientEquations
from attacks.pixels.conv_features import HeardFeatures
from attacks.pixels.like_places import averaged
from attacks.pixels.problem import PixelProblem, features_of
from attacks.pixels.received_layers import received_layers
from attacks.pixels.sparse_features import SeenBefore, seen_before

ROUNDING = 1e-6
"""Of activations solved for from float32, relative to the largest, at least."""

REPRODUCED = 5e-6
"""Relative misfit of one record's features below which its images are the true ones: the least
visible pixel that is wrong by one level leaves some 3e-5, float32 some 4e-7."""

LEAST_ERRORS, MOST_ERRORS = 1.5, 10.0
"""Where a unit starts to count as active, and how far from zero that may be wrong, in errors."""


class Formed(NamedTuple):
    """A layer's gradients by record: of its weight (k, m, n), of its biases (k, m)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class PixelKnowledge:
    """What is known of b records of one observation, from the last layer's outputs down.

    Attributes:
        records: (b,) which of the release's records these are.
        gradients: (m, n) of each layer's weight, as received, less what others are known to add.
        biases: (m,) the same of each layer's biases; None where they were not received.
        noise: standard deviation of the weights' entries, by layer.
        depth: number of layers whose last one's outputs are known.
        outputs: (b, *outputs) of that layer after its ReLU.
        certain: (m,) channels of that layer whose active units are known for sure.
        deltas: gradients of the loss with respect to them, before the ReLU is passed.
        features: (b, *outputs) of the last layer of all, after its ReLU.
        images: (b, C, H, W) guessed: the samples whose features are nearest, at first.
        guesses: (b, *outputs) activations of all layers for these.
        alone: whether no other records have an unknown part in the gradients.
    """

    problem: PixelProblem
    records: Tensor
    gradients: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    noise: tuple[float, ...]
    depth: int
    outputs: Tensor
    certain: Tensor
    deltas: Tensor
    features: Tensor
    images: Tensor
    guesses: tuple[Tensor, ...]
    alone: bool

    @classmethod
    def of(
        cls, problem: PixelProblem, observation: Observation, heard: HeardFeatures
    ) -> PixelKnowledge:
        """What the release and the dense layers' ``heard`` features say."""
        layers = problem.layers
        outputs = heard.features.reshape(-1, *layers[-1].outputs)
        distance = torch.cdist(outputs.flatten(1), problem.features[-1].flatten(1).double())
        index = distance.argmin(dim=1)
        received = received_layers(problem, observation)
        known = cls(
            problem=problem,
            records=torch.arange(len(outputs)),
            gradients=tuple(x.gradient for x in received),
            biases=tuple(x.bias for x in received),
            noise=tuple(x.noise for x in received),
            depth=len(layers),
            outputs=outputs,
            certain=torch.ones(layers[-1].outputs[0], dtype=torch.bool),
            deltas=heard.deltas.reshape(outputs.shape),
            features=outputs,
            images=problem.likely[index],
            guesses=tuple(f[index].double() for f in problem.features),
            alone=True,
        )
        last = len(layers) - 1
        scaled = known._in_errors(outputs)
        outputs, certain = known._rectified(outputs, scaled, known.deltas, last, settle=True)
        return replace(known, outputs=outputs, certain=certain, features=outputs)

    def guessing(self, images: Tensor) -> PixelKnowledge:
        """With other guesses (b, C, H, W)."""
        guesses = tuple(f.double() for f in features_of(self.problem.layers, images))
        return replace(self, images=images, guesses=guesses)

    def reproduced(self, images: Tensor) -> Tensor:
        """How far images (b, C, H, W) are from their records' features, (b,), relative."""
        formed = features_of(self.problem.layers, images)[-1].double()
        size = self.features.flatten(1).norm(dim=1).clamp_min(1e-300)
        return (formed - self.features).flatten(1).norm(dim=1) / size

    def among(self, chosen: Tensor) -> PixelKnowledge:
        """Of some records (b,) alone: successive interference cancellation, as in radio.

        What the others add to the gradients from the known outputs down is taken away as it follows
        from their guesses. By how much that would change with the units that the guesses activate
        instead of the outputs that are known, or as much as the guesses miss their features, it is
        doubtful: noise.
        """
        if bool(chosen.all()):
            return self
        others = ~chosen
        missed = self.reproduced(self.images)[others]
        gradients, biases, noise = list(self.gradients), list(self.biases), list(self.noise)
        known = self._formed(others, self.outputs[others])
        guessed = self._formed(others, self.guesses[self.depth - 1][others])
        for level, (formed, like) in enumerate(zip(known, guessed, strict=True)):
            gradients[level] = gradients[level] - formed.weight.sum(dim=0)
            bias = biases[level]
            if bias is not None:
                biases[level] = bias - formed.bias.sum(dim=0)
            doubt = (formed.weight - like.weight).square().mean(dim=(1, 2))
            doubt = torch.maximum(doubt, missed**2 * formed.weight.square().mean(dim=(1, 2)))
            noise[level] = (noise[level] ** 2 + float(doubt.sum())) ** 0.5
        return replace(
            self._picked(chosen),
            gradients=tuple(gradients),
            biases=tuple(biases),
            noise=tuple(noise),
            alone=self.alone and bool((missed <= REPRODUCED).all()),
        )

    def _picked(self, index: Tensor | slice) -> PixelKnowledge:
        return replace(
            self,
            records=self.records[index],
            outputs=self.outputs[index],
            deltas=self.deltas[index],
            features=self.features[index],
            images=self.images[index],
            guesses=tuple(g[index] for g in self.guesses),
        )

    def _formed(self, chosen: Tensor, outputs: Tensor) -> list[Formed]:
        """What k ``chosen`` records add to each layer's gradients, with ``outputs`` (k, ...)."""
        layers, found = self.problem.layers, list[Formed]()
        delta = self.deltas[chosen] * (outputs > 0)
        for level in reversed(range(self.depth)):
            x = (self.guesses[level - 1] if level else self.images.double())[chosen]
            weight, bias = delta.flatten(2) @ layers[level].patches(x).mT, delta.sum(dim=(2, 3))
            if level == 0:
                factor, offset = self.problem.scaling
                weight = factor * weight + offset * bias[:, :, None]
            found.insert(0, Formed(weight, bias))
            delta = layers[level].backward(delta) * (x > 0) if level else delta
        return found

    def doubting(self, factor: float) -> PixelKnowledge:
        """With that many times the noise, where others' parts in the gradients are guesses."""
        noise = self.noise if self.alone else tuple(factor * std for std in self.noise)
        return replace(self, noise=noise)

    def only(self, index: int) -> PixelKnowledge:
        """Of one record, from its outputs alone."""
        return self._picked(slice(index, index + 1)).of_outputs()

    def of_outputs(self) -> PixelKnowledge:
        """Without what the gradients say."""
        return replace(self, noise=(math.inf,) * len(self.noise), alone=False)

    def at_features(self) -> PixelKnowledge:
        """As before any layer was solved for; of outputs alone."""
        return replace(
            self,
            depth=len(self.problem.layers),
            outputs=self.features,
            deltas=torch.zeros_like(self.features),
            certain=torch.ones(self.features.shape[1], dtype=torch.bool),
        )

    def possible(self, level: int, like: Tensor) -> Tensor:
        """Units (b, *outputs) of a layer that may be active: a dead channel's bias has none."""
        received = self.biases[level]
        if received is None:
            return torch.ones_like(like, dtype=torch.bool)
        return (received != 0)[None, :, None, None].expand(like.shape)

    def seen(self, level: int) -> SeenBefore:
        """What the samples tell of a layer's inputs, from the outputs that are known."""
        problem = self.problem
        return seen_before(
            problem.layers[level : self.depth],
            self.outputs,
            problem.features[level - 1].double() if level else problem.likely.double(),
            problem.features[self.depth - 1].double(),
        )

    def below(self, inputs: Tensor, *, settle: bool) -> PixelKnowledge:
        """One layer further down, with inputs (b, ...) as solved for, errors and all.

        ``settle`` which units are active by the biases' gradients, which takes all records' inputs;
        otherwise units that may or may not be active count as noise in the layers' gradients.
        """
        layer, level = self.problem.layers[self.depth - 1], self.depth - 2
        deltas = layer.backward(self.deltas * (self.outputs > 0))
        scaled = self._in_errors(inputs)
        outputs, certain = self._rectified(inputs, scaled, deltas, level, settle=settle)
        found = replace(self, depth=level + 1, outputs=outputs, certain=certain, deltas=deltas)
        if settle:
            return found
        doubtful = (scaled > LEAST_ERRORS / 2) & (scaled < 2 * LEAST_ERRORS)
        everyone = torch.ones(len(inputs), dtype=torch.bool)
        formed = found._formed(everyone, doubtful)
        doubts = [float(f.weight.square().mean(dim=(1, 2)).sum()) for f in formed]
        noise = [std**2 for std in self.noise]
        noise[: level + 1] = [n + d for n, d in zip(noise, doubts, strict=False)]
        return replace(found, noise=tuple(n**0.5 for n in noise))

    def _rectified(
        self, values: Tensor, scaled: Tensor, deltas: Tensor, level: int, *, settle: bool
    ) -> tuple[Tensor, Tensor]:
        """Activations (b, *outputs) of a layer, zero where inactive, and the channels sure.

        ``scaled`` are the ``values`` in units of their largest errors.
        """
        active, received = scaled > LEAST_ERRORS, self.biases[level]
        certain = torch.ones(values.shape[1], dtype=torch.bool)
        if received is not None and settle:
            active, certain = settle_active(scaled, deltas, received, active, MOST_ERRORS)
        tiny = torch.finfo(values.dtype).tiny
        return torch.where(active, values.clamp_min(tiny), 0.0), certain

    @staticmethod
    def _in_errors(values: Tensor) -> Tensor:
        """Activations (b, *outputs) solved for, in units of their largest errors."""
        # Inactive units are solved for as zero, so that negative values are errors; of each record.
        rounding = max(ROUNDING * float(values.amax()), 1e-300)
        negative = values.clamp_max(0.0).flatten(1)
        usual = negative.norm(dim=1) / (negative < 0).sum(dim=1).clamp_min(1).sqrt()
        usual = usual.clamp_min(rounding)
        means, stds = averaged(values, usual)
        largest = (-values.amin(dim=(1, 2, 3))).clamp_min(rounding)
        return means / (stds * (largest / usual)[:, None, None, None])

    def gradient(self, level: int, delta: Tensor) -> tuple[Tensor, float]:
        """Of one layer's weight, and its noise, as if the first layer saw images in [0, 1]."""
        gradient, std = self.gradients[level], self.noise[level]
        if level == 0:
            factor, offset = self.problem.scaling
            shifted = gradient - offset * delta.sum(dim=(0, 2, 3))[:, None]
            gradient, std = shifted / factor, std / abs(factor)
        return gradient, std

    def equations(self, level: int, delta: Tensor, extra_std: float = 0.0) -> GradientEquations:
        """Of one layer, from gradients at its outputs (b, *outputs)."""
        gradient, std = self.gradient(level, delta)
        if level == self.depth - 1:
            delta, gradient = delta[:, self.certain], gradient[self.certain]
        if math.isinf(std):
            return GradientEquations.none(delta.flatten(2), gradient)
        return GradientEquations.of(delta.flatten(2), gradient, max(std, extra_std))
