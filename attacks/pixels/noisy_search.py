"""Pixels under noise: layer by layer from the features down, each layer with its uncertainty.

What a layer's inputs are believed to be decides which units of the layer below are active. The
doubtful ones count as noise until the inputs that follow without them tell which they are
(``active_rows``). In the last step the inputs are pixels, and the sparse prior of frames takes the
place of the samples' mean and spread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from attacks.observation import Observation
from attacks.pixels.active_rows import settle_rows
from attacks.pixels.conv_equations import GradientEquations
from attacks.pixels.conv_features import HeardFeatures
from attacks.pixels.equations import PixelEquations
from attacks.pixels.layer_beliefs import LayerBelief, Usual, likeliest_inputs
from attacks.pixels.problem import PixelProblem, outputs_of
from attacks.pixels.received_layers import ReceivedLayer, received_layers
from attacks.pixels.sparse_frames import SparsePrior, SparseSearch

ROUNDS = 8
"""Times that a layer's inputs are solved for, at most, each with its units settled by the last."""

ITERATIONS = 80
"""Of the search for pixels, in each of these rounds."""

SETTLED = 0.01
"""Change of every unit's chance to be active below which another round changes nothing."""

HEARD = 0.5
"""Of the samples' spread: the first layer's outputs are known better than from samples alone."""


def images_under_noise(
    problem: PixelProblem, observation: Observation, heard: HeardFeatures, *, seed: int
) -> Tensor:
    """Images (b, C, H, W) in [0, 1] of the records whose features are heard."""
    generator = torch.Generator().manual_seed(seed)
    received = received_layers(problem, observation)
    samples = problem.known if len(problem.known) else problem.average[None]
    before = [Usual.of(z.double()) for z in outputs_of(problem.layers, samples)]
    outputs = heard.features.reshape(-1, *problem.layers[-1].outputs)
    std = heard.std[:, None, None, None].expand_as(outputs)
    belief = LayerBelief.of(outputs, std, heard.deltas.reshape(outputs.shape), before[-1])
    for level in reversed(range(1, len(received))):
        usual = Usual.of(problem.features[level - 1].double())
        inputs, std, belief = _below(received[level], belief, usual, generator)
        outputs, std = usual.without(inputs, std)
        deltas = received[level].layer.backward(belief.sent)
        belief = LayerBelief.of(outputs, std, deltas, before[level - 1])
    return _pixels(problem, received[0], belief)


def _below(
    received: ReceivedLayer, belief: LayerBelief, usual: Usual, generator: torch.Generator
) -> tuple[Tensor, Tensor, LayerBelief]:
    """Mean and standard deviation (b, *inputs) of a layer's inputs, and its belief by then."""
    std = usual.spread

    def solve(equations: GradientEquations, belief: LayerBelief) -> Tensor:
        nonlocal std
        inputs, std = likeliest_inputs(received.layer, equations, belief, usual, generator)
        return inputs

    inputs, belief = _agreed(received, belief, usual.mean, solve)
    return inputs, std, belief


def _pixels(problem: PixelProblem, received: ReceivedLayer, belief: LayerBelief) -> Tensor:
    """Images (b, C, H, W) from what is believed of the first layer's outputs."""
    spread = Usual.of(problem.features[0].double()).spread
    heard = bool(belief.std.mean() < HEARD * spread.mean())
    prior = SparsePrior.of(problem.known, problem.average, robust=heard)
    start = problem.average.expand(len(belief.outputs), *problem.average.shape).clone()
    search = SparseSearch(prior, start)

    def solve(equations: GradientEquations, belief: LayerBelief) -> Tensor:
        pixels = PixelEquations.of(
            [received.layer],
            [],
            [equations],
            belief.outputs.clamp_min(0.0),
            belief.active,
            outputs_std=belief.loose,
            stiffness=prior.unit,
            like=start,
        )
        search.forget()
        search.run(pixels, ITERATIONS)
        return search.images.double().clamp(0.0, 1.0)

    images, _ = _agreed(received, belief, start.double(), solve)
    return images.to(start)


def _agreed(
    received: ReceivedLayer,
    belief: LayerBelief,
    inputs: Tensor,
    solve: Callable[[GradientEquations, LayerBelief], Tensor],
) -> tuple[Tensor, LayerBelief]:
    """Inputs (b, *inputs) of a layer, and its belief with the active units that they agree with."""
    doubt = torch.zeros(len(received.gradient), dtype=torch.float64)
    for _ in range(ROUNDS):
        inputs = solve(received.equations(belief, inputs, doubt), belief)
        chance, doubt = settle_rows(received, belief, inputs)
        moved = float((chance - belief.chance).abs().max())
        belief = replace(belief, chance=chance).strained(received.layer.linear(inputs))
        if moved < SETTLED:
            break
    return inputs, belief
