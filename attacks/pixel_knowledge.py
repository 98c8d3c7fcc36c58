"""What is known of one pixel observation: layers' gradients, and outputs as far as solved for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.active_units import settle_active
from attacks.conv_chains import ConvLayer
from attacks.conv_equations import GradientEquations
from attacks.conv_features import HeardFeatures
from attacks.observation import Observation
from attacks.pixel_problem import PixelProblem
from attacks.posterior import received_by
from attacks.sparse_features import SeenBefore, seen_before

ROUNDING = 1e-6
"""Of activations solved for from float32, relative to the largest, at least."""

LEAST_ERRORS, MOST_ERRORS = 1.5, 10.0
"""Where a unit starts to count as active, and how far from zero that may be wrong, in errors."""


@dataclass(frozen=True, eq=False)
class PixelKnowledge:
    """One observation's state of knowledge, from the last layer's outputs down.

    Attributes:
        gradients: (m, n) of each layer's weight, for images in [0, 1].
        biases: (m,) gradients of each layer's biases; None where they were not received.
        noise: standard deviation of the weights' entries, by layer.
        depth: number of layers whose last one's outputs are known.
        outputs: (b, *outputs) of that layer after its ReLU.
        outputs_std: their standard deviation.
        certain: (m,) channels of that layer whose active units are known for sure.
        deltas: gradients of the loss with respect to them, before the ReLU is passed.
        guesses: (b, *outputs) activations of all layers, as far as they can be guessed.
        nearest: (b, C, H, W) the samples whose features are nearest.
    """

    problem: PixelProblem
    gradients: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    noise: tuple[float, ...]
    depth: int
    outputs: Tensor
    outputs_std: float
    certain: Tensor
    deltas: Tensor
    guesses: tuple[Tensor, ...]
    nearest: Tensor

    @classmethod
    def of(
        cls, problem: PixelProblem, observation: Observation, heard: HeardFeatures
    ) -> PixelKnowledge:
        """What the release and the dense layers' ``heard`` features say."""
        layers = problem.layers
        outputs = heard.features.reshape(-1, *layers[-1].outputs)
        distance = torch.cdist(outputs.flatten(1), problem.features[-1].flatten(1).double())
        index = distance.argmin(dim=1)
        images = problem.known if len(problem.known) else problem.average[None]
        received = received_by([observation])
        noisy = observation.channel.random
        known = cls(
            problem=problem,
            gradients=tuple(
                observation.gradient[x.name].detach().cpu().double().flatten(1) for x in layers
            ),
            biases=tuple(_bias_gradient(observation, x) for x in layers),
            noise=tuple(float(received.precision[x.name]) ** -0.5 for x in layers),
            depth=len(layers),
            outputs=outputs,
            outputs_std=float(heard.std.square().mean().sqrt()) if noisy else 0.0,
            certain=torch.ones(layers[-1].outputs[0], dtype=torch.bool),
            deltas=heard.deltas.reshape(outputs.shape),
            guesses=tuple(f[index].double() for f in problem.features),
            nearest=images[index],
        )
        if noisy:
            return replace(known, outputs=outputs.clamp_min(0.0))
        outputs, certain = known.rectified(outputs, known.deltas, len(layers) - 1)
        return replace(known, outputs=outputs, certain=certain)

    def possible(self, level: int, like: Tensor) -> Tensor:
        """Units (b, *outputs) of a layer that may be active: a dead channel's bias has none."""
        received = self.biases[level]
        if received is None:
            return torch.ones_like(like, dtype=torch.bool)
        return (received != 0)[None, :, None, None].expand(like.shape)

    def seen(self) -> SeenBefore:
        """What the samples tell of the inputs of the layer whose outputs are known."""
        problem, level = self.problem, self.depth - 1
        images = problem.known if len(problem.known) else problem.average[None]
        return seen_before(
            problem.layers[level],
            self.outputs,
            problem.features[level - 1].double() if level else images.double(),
            problem.features[level].double(),
        )

    def rectified(self, values: Tensor, deltas: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Activations (b, *outputs) of a layer, zero where inactive, and the channels sure."""
        # Inactive units are solved for as zero, so that negative values are errors; of each record.
        error = -values.amin(dim=(1, 2, 3), keepdim=True)
        scaled = values / error.clamp_min(ROUNDING * values.amax()).clamp_min(1e-300)
        active, received = scaled > LEAST_ERRORS, self.biases[level]
        certain = torch.ones(values.shape[1], dtype=torch.bool)
        if received is not None:
            active, certain = settle_active(scaled, deltas, received, active, MOST_ERRORS)
        tiny = torch.finfo(values.dtype).tiny
        return torch.where(active, values.clamp_min(tiny), 0.0), certain

    def gradient(self, level: int, delta: Tensor) -> tuple[Tensor, float]:
        """Of one layer's weight, and its noise, as if the first layer saw images in [0, 1]."""
        gradient, std = self.gradients[level], self.noise[level]
        if level == 0:
            chain, problem = self.problem.chain, self.problem
            factor = chain.scale * (problem.high - problem.low)
            offset = chain.scale * problem.low + chain.shift
            shifted = gradient - offset * delta.sum(dim=(0, 2, 3))[:, None]
            gradient, std = shifted / factor, std / abs(factor)
        return gradient, std

    def equations(self, level: int, delta: Tensor, extra_std: float = 0.0) -> GradientEquations:
        """Of one layer, from gradients at its outputs (b, *outputs)."""
        gradient, std = self.gradient(level, delta)
        if level == self.depth - 1:
            delta, gradient = delta[:, self.certain], gradient[self.certain]
        return GradientEquations.of(delta.flatten(2), gradient, max(std, extra_std))


def _bias_gradient(observation: Observation, layer: ConvLayer) -> Tensor | None:
    found = observation.gradient.get(layer.name.removesuffix("weight") + "bias")
    return None if found is None else found.detach().cpu().double()
