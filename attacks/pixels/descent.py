"""From the features of convolutions down: each layer's inputs, for as long as they are determined.

The records of a batch are not equally loud: a gradient is the sum of theirs, each in proportion to
its temporal-difference error, and of the faintest little more than rounding is heard. Where only
some records' inputs follow from a layer's equations, the descent goes on with these alone, and what
the others add to the layers below counts as noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.pixels.conv_equations import EXACT, Inverted, invert_layer
from attacks.pixels.equations import PixelEquations
from attacks.pixels.knowledge import PixelKnowledge
from attacks.pixels.linearisation import linearise
from attacks.pixels.sparse_features import invert_sparsely
from attacks.pixels.sparse_frames import SparsePrior, SparseSearch

FIRST_STEPS, MORE_STEPS = 300, 3000
"""Of conjugate gradients for a layer's inputs; more where the first do not settle them."""

SKETCH = 40
"""Iterations of the search for images that fit roughly known inputs; more fit the errors."""

FAINT = 0.1
"""Loudness of a record, relative to the loudest, below which it has to wait for the others."""


def descend(known: PixelKnowledge) -> list[PixelKnowledge]:
    """What is known at ``known``, then one layer further down each, maybe with fewer records.

    The last is at the lowest layer whose outputs can be solved for. Images that inputs which are
    known roughly make likely are the guesses from there on.
    """
    path = [known]
    while known.depth > 1 and known.alone:
        solved = _solve(known)
        if not solved.exact:
            known = path[-1] = known.guessing(sketch(known, solved))
        chosen = solved.errors <= EXACT
        if not bool(chosen.any()):
            break
        if not solved.exact:
            loudness = known.deltas.flatten(1).norm(dim=1) * chosen
            chosen &= loudness >= FAINT * loudness.max()
        known = known.below(solved.inputs, settle=bool(chosen.all())).among(chosen)
        path.append(known)
    return path


def sketch(known: PixelKnowledge, solved: Inverted) -> Tensor:
    """Images (b, C, H, W) from a layer's inputs as far as they are known, each with its errors.

    Where these do not bring a record nearer to its features, it is what it was.
    """
    problem, images = known.problem, known.images
    rough = known.below(solved.inputs, settle=False).of_outputs()
    linear = linearise(rough, images)
    prior = SparsePrior.of(problem.known, problem.average, robust=True)
    stds = solved.errors * solved.inputs.amax()
    equations = PixelEquations.of(
        problem.layers[: rough.depth],
        linear.masks,
        [rough.equations(i, d) for i, d in enumerate(linear.deltas)],
        rough.outputs,
        linear.fires,
        outputs_std=stds[:, None, None, None],
        stiffness=prior.unit,
        like=images,
    )
    search = SparseSearch(prior, images)
    search.run(equations, SKETCH)
    drawn = problem.rounded(search.images)
    nearer = known.reproduced(drawn) < known.reproduced(images)
    return torch.where(nearer[:, None, None, None], drawn, images)


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
