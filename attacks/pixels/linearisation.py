"""The pixels' equations at guessed images: the units that these activate, and what is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.pixels.active_units import settle_active
from attacks.pixels.equations import PixelEquations
from attacks.pixels.knowledge import REPRODUCED, PixelKnowledge
from attacks.pixels.problem import features_of, outputs_of

EXPLAINED = 1e-5
"""Relative misfit below which rounded pixels are the true ones: a wrong one leaves more."""

NOISE_SLACK = 2.0
"""Times its estimate that noise from other records may be without counting as unexplained."""

NEAR = 1e-2
"""How far from zero a unit's activity at guessed pixels may be wrong, relative to the largest
activation."""


@dataclass(frozen=True, eq=False)
class Linearised:
    """Active units at some images, gradients at all outputs there, and what is unexplained.

    Attributes:
        fires: (b, *outputs) of the last layer considered; ``masks`` of those below.
        deltas: gradients at each layer's outputs, after its ReLU.
        left: root mean square of each layer's gradient that noise does not explain, then of the
            outputs.
    """

    fires: Tensor
    masks: list[Tensor]
    deltas: list[Tensor]
    left: list[float]


def linearise(known: PixelKnowledge, images: Tensor) -> Linearised:
    """The units that ``images`` activate where it is not known which are, and what is left."""
    layers = known.problem.layers[: known.depth]
    before = outputs_of(layers, images)
    activations = [z.relu() for z in before]
    fires = known.outputs > 0
    masks: list[Tensor] = []
    deltas = [known.deltas * fires]
    for level in reversed(range(len(layers) - 1)):
        below = layers[level + 1].backward(deltas[0])
        received, active = known.biases[level], before[level] > 0
        if known.alone and received is not None:
            z, near = before[level].double(), NEAR * float(activations[level].amax())
            active, _ = settle_active(z, below, received, active, near)
        masks.insert(0, active.double())
        deltas.insert(0, below * active)
    left = []
    for level, (x, delta) in enumerate(zip([images, *activations], deltas, strict=False)):
        formed = (delta.flatten(2) @ layers[level].patches(x).double().mT).sum(dim=0)
        gradient, std = known.gradient(level, delta)
        missing = float((formed - gradient).square().mean())
        noise = 0.0 if known.alone else (NOISE_SLACK * std) ** 2
        left.append(max(missing - noise, 0.0) ** 0.5)
    left.append(float((activations[-1] - known.outputs).square().mean().sqrt()))
    return Linearised(fires, masks, deltas, left)


def pixel_equations(
    known: PixelKnowledge, linear: Linearised, like: Tensor, unit: float, damping: float
) -> PixelEquations:
    """At given active units. Wrong ones make wrong equations, which must not be met.

    How wrong is seen in what the images leave unexplained: a share of it counts as noise, the
    damping of the Levenberg-Marquardt method, and is gone once the images are the true ones.
    """
    exact = known.depth == 1 and known.alone
    extra = [0.0 if exact else damping * left for left in linear.left]
    return PixelEquations.of(
        known.problem.layers[: known.depth],
        linear.masks,
        [known.equations(i, d, extra[i]) for i, d in enumerate(linear.deltas)],
        known.outputs,
        linear.fires,
        outputs_std=extra[-1],
        stiffness=0.0 if exact else unit,
        like=like,
    )


def explains(known: PixelKnowledge, images: Tensor, equations: PixelEquations) -> bool:
    """Whether images meet the equations, at the active units that these were formed for.

    Where the gradients have unknown parts, that they have the features has to do.
    """
    if not known.alone:
        return bool((known.reproduced(images) <= REPRODUCED).all())
    if equations.misfit(images) > EXPLAINED:
        return False
    activations = features_of(known.problem.layers[: known.depth], images)
    agree = (
        torch.equal(a.flatten(2) > 0, mask > 0)
        for a, mask in zip(activations, equations.active, strict=False)
    )
    return all(agree)
