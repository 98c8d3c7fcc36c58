"""Pixels under noise: layer by layer from the features down, each layer with its uncertainty.

What a layer's inputs are believed to be decides which units of the layer below are active. The
doubtful ones count as noise until the inputs that follow without them tell which they are
(``active_rows``). In the last step the inputs are pixels, and the sparse prior of frames takes the
place of the samples' mean and spread. With all units settled the equations of all layers are those
of one chain of affine maps, and the pixels are sought once more by all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.observation import Observation
from attacks.pixels.active_rows import settle_rows
from attacks.pixels.conv_equations import GradientEquations
from attacks.pixels.conv_features import HeardFeatures
from attacks.pixels.equations import PixelEquations
from attacks.pixels.layer_beliefs import InputSystem, LayerBelief, Usual
from attacks.pixels.problem import PixelProblem, outputs_of
from attacks.pixels.received_layers import ReceivedLayer, received_layers
from attacks.pixels.sparse_frames import SparsePrior, SparseSearch

ROUNDS = 8
"""Times that a layer's inputs are solved for, at most, each with its units settled by the last."""

ITERATIONS = 80
"""Of the search for pixels, in each of these rounds and once more by all layers' equations."""

SETTLED = 0.01
"""Change of every unit's chance to be active below which another round changes nothing."""

HEARD = 0.15
"""Share of what is known of the features that is heard, above which pixels are the samples' medians
but where something else is heard; below it their means are the better guess."""


@dataclass(frozen=True, eq=False)
class SolvedLayer:
    """A layer with its likeliest inputs (b, *inputs), and its belief that agrees with them.

    ``doubt`` (m,) is what the rows of its gradient leave unexplained, as noise.
    """

    received: ReceivedLayer
    inputs: Tensor
    belief: LayerBelief
    doubt: Tensor

    def equations(self) -> GradientEquations:
        """Of its inputs."""
        return self.received.equations(self.belief, self.inputs, self.doubt)


def images_under_noise(
    problem: PixelProblem, observation: Observation, heard: HeardFeatures, *, seed: int
) -> Tensor:
    """Images (b, C, H, W) in [0, 1] of the records whose features are heard."""
    generator = torch.Generator().manual_seed(seed)
    received = received_layers(problem, observation)
    before = [Usual.of(z.double()) for z in outputs_of(problem.layers, problem.likely)]
    outputs = heard.features.reshape(-1, *problem.layers[-1].outputs)
    std = heard.std[:, None, None, None].expand_as(outputs)
    spread = Usual.of(problem.features[-1].double()).spread
    robust = float((1 / (1 + (std / spread).square())).mean()) > HEARD
    prior = SparsePrior.of(problem.known, problem.average, robust=robust)
    belief = LayerBelief.of(outputs, std, heard.deltas.reshape(outputs.shape), before[-1])
    solved: list[SolvedLayer] = []
    for level in reversed(range(1, len(received))):
        usual = Usual.of(problem.features[level - 1].double())
        layer, usual = _below(received[level], belief, usual)
        system = InputSystem.of(layer.received.layer, layer.equations(), layer.belief, usual)
        outputs, std = usual.without(layer.inputs, system.std(layer.inputs, generator))
        deltas = layer.received.layer.backward(layer.belief.sent)
        belief = LayerBelief.of(outputs, std, deltas, before[level - 1])
        solved.insert(0, layer)
    start = problem.average.expand(len(outputs), *problem.average.shape).clone()
    solved.insert(0, _pixels(received[0], belief, SparseSearch(prior, start), prior.unit))
    return _jointly(solved, prior)


def _below(received: ReceivedLayer, belief: LayerBelief, usual: Usual) -> tuple[SolvedLayer, Usual]:
    """A layer by what is usual of its inputs, and what of that is left where they deviate."""
    inputs, left = usual.mean, usual

    def solve(equations: GradientEquations, belief: LayerBelief) -> Tensor:
        nonlocal inputs, left
        left = usual.around(inputs)
        inputs = InputSystem.of(received.layer, equations, belief, left).likeliest(inputs)
        return inputs

    return _agreed(received, belief, inputs, solve), left


def _pixels(
    received: ReceivedLayer, belief: LayerBelief, search: SparseSearch, unit: float
) -> SolvedLayer:
    """The first layer, whose inputs are pixels."""

    def solve(equations: GradientEquations, belief: LayerBelief) -> Tensor:
        search.forget()
        search.run(_pixel_equations([received], [equations], [belief], search, unit), ITERATIONS)
        return search.images.double().clamp(0.0, 1.0)

    return _agreed(received, belief, search.images.double(), solve)


def _jointly(solved: Sequence[SolvedLayer], prior: SparsePrior) -> Tensor:
    """Images (b, C, H, W) by all layers' equations at once, with the active units now known.

    Descending, each layer passes on how uncertain every output is, but not which errors go
    together.
    """
    search = SparseSearch(prior, solved[0].inputs.float())
    layers, beliefs = [s.received for s in solved], [s.belief for s in solved]
    equations = [s.equations() for s in solved]
    search.run(_pixel_equations(layers, equations, beliefs, search, prior.unit), ITERATIONS)
    return search.images.clamp(0.0, 1.0)


def _pixel_equations(
    layers: Sequence[ReceivedLayer],
    equations: Sequence[GradientEquations],
    beliefs: Sequence[LayerBelief],
    search: SparseSearch,
    unit: float,
) -> PixelEquations:
    """Of pixels through layers, with what is believed of the last one's outputs."""
    last = beliefs[-1]
    return PixelEquations.of(
        [x.layer for x in layers],
        [b.active.double() for b in beliefs[:-1]],
        equations,
        last.outputs.clamp_min(0.0),
        last.active,
        outputs_std=last.loose,
        stiffness=unit,
        like=search.images,
    )


def _agreed(
    received: ReceivedLayer,
    belief: LayerBelief,
    inputs: Tensor,
    solve: Callable[[GradientEquations, LayerBelief], Tensor],
) -> SolvedLayer:
    """A layer's inputs, solved for until its active units agree with them."""
    doubt = torch.zeros(len(received.gradient), dtype=torch.float64)
    for _ in range(ROUNDS):
        inputs = solve(received.equations(belief, inputs, doubt), belief)
        chance, doubt = settle_rows(received, belief, inputs)
        moved = float((chance - belief.chance).abs().max())
        belief = replace(belief, chance=chance).strained(received.layer.linear(inputs))
        if moved < SETTLED:
            break
    return SolvedLayer(received, inputs, belief, doubt)
