"""From the features of convolutions down: each layer's inputs, for as long as they are determined.

The records of a batch are not equally loud: a gradient is the sum of theirs, each in proportion to
its temporal-difference error, and of the faintest little more than rounding is heard. Where only
some records' inputs follow from a layer's equations, the descent goes on with these alone, and what
the others add to the layers below counts as noise.
"""

from __future__ import annotations

from torch import Tensor

from attacks.pixels.conv_equations import EXACT, Inverted, invert_layer
from attacks.pixels.knowledge import PixelKnowledge
from attacks.pixels.sparse_features import invert_sparsely

FIRST_STEPS, MORE_STEPS = 300, 3000
"""Of conjugate gradients for a layer's inputs; more where the first do not settle them."""

FAINT = 0.1
"""Loudness of a record, relative to the loudest, below which it has to wait for the others."""


def descend(known: PixelKnowledge) -> list[PixelKnowledge]:
    """What is known at ``known``, then one layer further down each, maybe with fewer records.

    The last is at the lowest layer whose outputs can be solved for.
    """
    path = [known]
    while known.depth > 1 and known.alone:
        solved = _solve(known)
        chosen = solved.errors <= EXACT
        if not bool(chosen.any()):
            break
        if not solved.exact:
            loudness = known.deltas.flatten(1).norm(dim=1) * chosen
            chosen &= loudness >= FAINT * loudness.max()
        known = known.below(solved.inputs, settle=bool(chosen.all())).among(chosen)
        path.append(known)
    return path


def contradictions(known: PixelKnowledge) -> Tensor:
    """How far each record's outputs are from what the likeliest inputs of their layer give, (b,).

    Zero but for rounding where they are one record's and follow from the layer's equations. A
    ReLU's outputs for the mean of several inputs are not the mean of its outputs for each.
    """
    return _solve(known).errors


def _solve(known: PixelKnowledge) -> Inverted:
    """The inputs of the layer whose outputs are known."""
    level = known.depth - 1
    layer, below = known.problem.layers[level], level - 1
    equations = known.equations(level, known.deltas * (known.outputs > 0))
    guess = known.guesses[below]
    possible = known.possible(below, guess)
    solved = invert_layer(
        layer, equations, known.outputs, guess * possible, free=possible, iterations=FIRST_STEPS
    )
    if solved.exact:
        return solved
    seen = known.seen(level)
    free = possible & ~seen.same
    usual = seen.inputs.double() * possible
    solved = invert_layer(layer, equations, known.outputs, usual, free=free, iterations=MORE_STEPS)
    if solved.exact or bool((solved.errors <= EXACT).any()):
        return solved
    return invert_sparsely(layer, equations, known.outputs, usual, free)
