"""Inputs of a layer that its equations alone leave open: few differ from what is usual.

A batch, or a network whose channels have died, has fewer equations than inputs. But inputs above a
ReLU are not negative, about half of them are zero, and most of the others are those of a frame that
the adversary has seen, at least at that place: what moves covers little of a frame. So the inputs
with the fewest deviations are sought (``sparse_frames``), and those that deviate, or are not zero,
are then the least-squares solution of all equations. With fewer of these than equations, solutions
that no equation contradicts are the true ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

from attacks.pixels.conv_chains import ConvLayer
from attacks.pixels.conv_equations import GradientEquations, Inverted, invert_layer
from attacks.pixels.equations import PixelEquations
from attacks.pixels.sparse_frames import SparseSearch

ROUNDS = 4
"""Searches, each followed by an attempt at the exact solution."""

ROUND = 50
"""Iterations of a search."""

SAME = 5e-4
"""Share of the largest input within which one is taken to be zero, or as usual."""

SMALLEST_DEVIATION = 0.02
"""Deviations below this share of the largest input count like it when they are reweighted."""

MATCH = 1e-4
"""Share of the largest output up to which those of one place count as equal."""

WITNESSES = 4
"""Active outputs of a place, at least, whose being equal shows that its inputs are."""


@dataclass(frozen=True, eq=False)
class SeenBefore:
    """Inputs (b, *inputs) of layers as samples had them, by place the sample with nearest outputs.

    ``same`` (b, 1, H, W) is true where some place that reads them has the sample's outputs exactly.
    """

    inputs: Tensor
    same: Tensor


def seen_before(
    layers: Sequence[ConvLayer], outputs: Tensor, known: Tensor, known_outputs: Tensor
) -> SeenBefore:
    """What samples tell of the first layer's inputs.

    Args:
        layers: one after the other.
        outputs: (b, *outputs) of the last, after its ReLU.
        known: (n, *inputs) of the samples, and their outputs (n, *outputs).
    """
    found, same = [], []
    for one in outputs:
        away = (known_outputs - one).flatten(2)
        told = (one > 0).flatten(1).sum(dim=0) >= WITNESSES
        equal = (away.abs().amax(dim=1) <= MATCH * outputs.max()) & told  # (n, P)
        matches = _spread(layers, equal.to(outputs))
        nearness = -_spread(layers, away.square().sum(dim=1))
        certain = (matches > 0).any(dim=0)
        index = torch.where(certain, matches.argmax(dim=0), nearness.argmax(dim=0))
        index = index.expand(1, layers[0].inputs[0], -1, -1)
        found.append(known.gather(0, index)[0])
        same.append(certain[None])
    return SeenBefore(torch.stack(found), torch.stack(same))


def _spread(layers: Sequence[ConvLayer], places: Tensor) -> Tensor:
    """Numbers (n, P) of the last layer's places summed at the inputs that each reads, (n, H, W)."""
    for layer in reversed(layers):
        area = layer.kernel[0] * layer.kernel[1]
        places = F.fold(
            places.flatten(1)[:, None].expand(-1, area, -1),
            layer.inputs[1:],
            layer.kernel,
            layer.dilation,
            layer.padding,
            layer.stride,
        )[:, 0]
    return places


@dataclass(frozen=True, eq=False)
class FeaturePrior:
    """Inputs of a layer as numbers of a ``SparseSearch``; they have no upper limit.

    Attributes:
        centre: (1, b, C, H, W).
        weight: the same for all.
    """

    centre: Tensor
    weight: Tensor
    highest = float("inf")
    smallest = SMALLEST_DEVIATION

    @staticmethod
    def numbers(x: Tensor) -> Tensor:
        """(b, C, H, W) to (1, b, C, H, W)."""
        return x[None]

    @staticmethod
    def gathered(u: Tensor) -> Tensor:
        """The adjoint of ``numbers``."""
        return u[0]


def invert_sparsely(
    layer: ConvLayer,
    equations: GradientEquations,
    outputs: Tensor,
    usual: Tensor,
    free: Tensor,
) -> Inverted:
    """Inputs of a layer with few deviations from ``usual`` (b, *inputs), none where not ``free``.

    Args:
        outputs: (b, *outputs) after the ReLU.
    """
    scale = float(usual.max().clamp_min(1e-12))
    start = (usual / scale).float()
    search = SparseSearch(FeaturePrior(start[None], torch.ones_like(start)[None]), start, free)
    problem = PixelEquations.of(
        [replace(layer, weight=layer.weight * scale)],
        [],
        [GradientEquations(equations.mixing, equations.values / scale, equations.std / scale)],
        outputs,
        outputs > 0,
        outputs_std=0.0,
        stiffness=0.0,
        like=start,
    )
    solved = Inverted(usual, torch.full((len(usual),), torch.inf), False)
    for _ in range(ROUNDS):
        search.run(problem, ROUND)
        x = search.images.to(usual) * scale
        zero, as_usual = x <= SAME * scale, (x - usual).abs() <= SAME * scale
        held = torch.where(zero, 0.0, usual)
        sought = free & ~zero & ~as_usual
        guess = torch.where(sought, x, torch.where(free, held, usual))
        solved = invert_layer(layer, equations, outputs, guess, free=sought)
        if solved.exact:
            return solved
    return solved
