"""From known features of convolutions down to the pixels of each record."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.conv_equations import invert_layer
from attacks.conv_features import hear_features
from attacks.grey_levels import polish_levels, settle_levels
from attacks.observation import Observation
from attacks.pixel_equations import PixelEquations
from attacks.pixel_knowledge import PixelKnowledge
from attacks.pixel_linearisation import explains, linearise, pixel_equations
from attacks.pixel_problem import LEVELS, PixelProblem
from attacks.sparse_features import invert_sparsely
from attacks.sparse_frames import SparsePrior, SparseSearch

ROUND = 40
"""Iterations of the search before active units are taken anew."""

FIRST_DAMPING, EASED, STIFFENED = 1.0, 0.6, 3.0
"""Share of what is unexplained that counts as noise while active units are uncertain, at first, and
its changes after a round that explains more and one that does not."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """States (k, *state_shape) of the k records told apart, their actions, and a note."""

    states: Tensor
    actions: Tensor | None
    notes: str


def solve_pixels(
    problem: PixelProblem, observation: Observation, *, iterations: int, seed: int
) -> Pixels:
    """The pixels of each record that the dense layers tell apart."""
    heard = hear_features(observation, problem.chain, problem.features[-1].flatten(1), seed=seed)
    if not len(heard.features):
        return Pixels(problem.states(problem.average[None][:0]), None, "")
    noisy = observation.channel.random
    known = PixelKnowledge.of(problem, observation, heard)
    if not noisy:
        known = _descend(known)
    images, done = _search(known, iterations)
    note = "" if noisy or done else "the pixels do not explain the gradient"
    return Pixels(problem.states(images), heard.actions, note)


def _descend(known: PixelKnowledge) -> PixelKnowledge:
    """Solves layer after layer for its inputs, while they are determined."""
    while known.depth > 1:
        layer = known.problem.layers[known.depth - 1]
        delta = known.deltas * (known.outputs > 0)
        equations = known.equations(known.depth - 1, delta)
        guess = known.guesses[known.depth - 2]
        possible = known.possible(known.depth - 2, guess)
        start = guess * possible
        solved = invert_layer(layer, equations, known.outputs, start, free=possible)
        if not solved.exact:
            seen = known.seen()
            free = possible & ~seen.same
            usual = seen.inputs.double() * possible
            solved = invert_layer(layer, equations, known.outputs, usual, free=free)
            if not solved.exact:
                solved = invert_sparsely(layer, equations, known.outputs, usual, free)
        if not solved.exact:
            return known
        below = layer.backward(delta)
        inputs, certain = known.rectified(solved.inputs, below, known.depth - 2)
        guesses = list(known.guesses)
        guesses[known.depth - 2] = inputs
        known = replace(
            known,
            depth=known.depth - 1,
            outputs=inputs,
            certain=certain,
            deltas=below,
            guesses=tuple(guesses),
        )
    return known


def _search(known: PixelKnowledge, iterations: int) -> tuple[Tensor, bool]:
    """Images (b, C, H, W) in [0, 1], and whether they explain all that is known."""
    problem, exact = known.problem, known.outputs_std == 0
    prior = SparsePrior.of(problem.known, problem.average, robust=exact)
    start = known.nearest if exact else problem.average.expand_as(known.nearest).clone()
    settled = known.depth == 1 and exact
    free = None
    if settled:
        seen_before = known.seen()
        free = ~seen_before.same.expand_as(start)
        start = torch.where(free, start, seen_before.inputs.to(start))
    search = SparseSearch(prior, start, free)
    damping, best = FIRST_DAMPING, math.inf
    kept = problem.rounded(start) if exact else start
    for spent in range(0, iterations, ROUND):
        if not settled or spent == 0:
            seen = problem.rounded(search.images) if exact else search.images.clamp(0, 1)
            linear = linearise(known, seen)
            if linear.unexplained < best:
                best, kept = linear.unexplained, seen
                damping = damping * EASED if spent else damping
            else:
                damping = damping * STIFFENED
                search.images = kept
                linear = linearise(known, kept)
            equations = pixel_equations(known, linear, kept, prior.unit, damping)
            search.forget()

        def done(images: Tensor, equations: PixelEquations = equations) -> bool:
            return exact and explains(known, problem.rounded(images), equations)

        found = None
        if search.run(equations, min(ROUND, iterations - spent), done):
            found = problem.rounded(search.images)
        elif exact and problem.grey:
            guess = settle_levels(search.images, equations, LEVELS)
            found = guess if explains(known, guess, equations) else None
        if found is not None:
            return polish_levels(found, equations, LEVELS) if problem.grey else found, True
    images = search.images.clamp(0.0, 1.0)
    images = problem.rounded(images) if exact else images
    if not settled and linearise(known, images).unexplained > best:
        images = kept
    return images, False
