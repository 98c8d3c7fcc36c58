"""From known features of convolutions down to the pixels of each record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.observation import Observation
from attacks.pixels.conv_equations import EXACT
from attacks.pixels.conv_features import hear_features
from attacks.pixels.descent import contradictions, descend
from attacks.pixels.equations import PixelEquations
from attacks.pixels.grey_levels import correct_levels, polish_levels, settle_levels
from attacks.pixels.knowledge import REPRODUCED, PixelKnowledge
from attacks.pixels.linearisation import explains, linearise, pixel_equations
from attacks.pixels.noisy_search import images_under_noise
from attacks.pixels.problem import LEVELS, PixelProblem
from attacks.pixels.sparse_frames import SparsePrior, SparseSearch

ROUND = 40
"""Iterations of the search before active units are taken anew."""

NEARLY = 2e-3
"""Relative misfit of a record's features up to which single pixels are corrected."""

PASS = 5 * ROUND
"""Iterations before records that are found are held, and what they leave open is solved anew."""

CONTRADICTED = 5e-4
"""Relative misfit to the first layer's equations that a search is left with if some are wrong."""

PROGRESS = 0.7
"""Share of a record's misfit to its features that a search worth continuing leaves at most."""

TRUST, DOUBT = 0.1, 10.0
"""Factors of the estimated noise that others' unknown parts of the gradients make: at first, and
with every search in vain. The estimate is rough, and too much of it costs what is known."""


@dataclass(frozen=True, eq=False)
class Pixels:
    """States (k, *state_shape) of k records, at most those asked for, their actions, and notes."""

    states: Tensor
    actions: Tensor | None
    notes: tuple[str, ...]


def solve_pixels(
    problem: PixelProblem, observation: Observation, *, iterations: int, seed: int
) -> Pixels:
    """The pixels of each record that the dense layers tell apart, and of those that share one's.

    Records with the same action whose units are active alike all through the dense layers come as
    one weighted mean, and contradict the layer's other equations most: its image is theirs.
    """
    heard = hear_features(observation, problem.chain, problem.features[-1].flatten(1), seed=seed)
    told, wanted = len(heard.features), observation.batch_size
    notes = [f"{told} of {wanted} records told apart"] if told < wanted else []
    if not told:
        return Pixels(problem.states(problem.average[None][:0]), None, tuple(notes))
    if observation.channel.random:
        images = images_under_noise(problem, observation, heard, seed=seed)
        return Pixels(problem.states(images), heard.actions, tuple(notes))
    known = PixelKnowledge.of(problem, observation, heard)
    images, done = _settle(known, iterations)
    if not done:
        notes.insert(0, "the pixels do not explain the gradient")
    actions = heard.actions
    off = contradictions(known) if told < wanted else torch.zeros(told)
    if float(off.max()) > EXACT:
        shared = torch.cat([torch.arange(told), off.argmax().repeat(wanted - told)])
        images, actions = images[shared], None if actions is None else actions[shared]
    return Pixels(problem.states(images), actions, tuple(notes))


class Found(NamedTuple):
    """What a search ends with.

    Attributes:
        images: (b, C, H, W) in [0, 1].
        explained: whether they explain all that is known.
        contradicted: whether the equations contradict each other; the images are those at first.
        iterations: spent.
    """

    images: Tensor
    explained: bool
    contradicted: bool
    iterations: int


def _settle(known: PixelKnowledge, iterations: int) -> tuple[Tensor, bool]:
    """Images (b, C, H, W) in [0, 1] without noise, and whether they explain all that is known.

    Records whose images reproduce their features are taken out of the gradients, which leaves the
    others fewer unknowns. A search that brings none of them nearer is followed by one from a layer
    further up, since what was solved for below may be wrong, and the one from the features by the
    lowest layer again, with ever more doubt about what others add.
    """
    images, rest = known.images, known
    settled = torch.zeros(len(images), dtype=torch.bool)
    path, spent = _path(rest), 0
    images = _guessed(path, images)
    level, idle = len(path) - 1, 0
    while spent < iterations:
        tried = path[level]
        sure = tried.alone and tried.depth == 1
        tried = tried.guessing(images[tried.records])
        found = _search(tried, iterations - spent if sure else min(PASS, iterations - spent))
        before, misfit = tried.reproduced(tried.images), tried.reproduced(found.images)
        nearer = misfit < before
        idle = 0 if bool(nearer.any()) else idle + 1
        images = images.index_copy(0, tried.records[nearer], found.images[nearer])
        if found.explained and tried.alone:
            return images.index_copy(0, tried.records, found.images), True
        settled = settled.index_fill(0, tried.records[misfit <= REPRODUCED], True)
        if bool(settled.all()):
            return images, True
        if bool(settled[rest.records].any()):
            rest = known.guessing(images).among(~settled)
            path, spent = _path(rest), 0
            images = _guessed(path, images)
            level, idle = len(path) - 1, 0
        elif found.contradicted or not bool((misfit < PROGRESS * before).any()):
            if level == 0:
                path = [rest, *(form.doubting(DOUBT) for form in path[1:])]
            level, spent = (level - 1) % len(path), spent + found.iterations
            if idle == len(path) and all(form.alone for form in path):
                break  # Nothing has changed, and nothing would.
    return images, False


def _path(rest: PixelKnowledge) -> list[PixelKnowledge]:
    """From what is left of a release down to its lowest layer that can be solved for."""
    first, *further = descend(rest)
    return [first, *(form.doubting(TRUST) for form in further)]


def _guessed(path: Sequence[PixelKnowledge], images: Tensor) -> Tensor:
    """Images (b, C, H, W) of all records with those guessed on the way down."""
    for form in path:
        images = images.index_copy(0, form.records, form.images)
    return images


def _search(known: PixelKnowledge, iterations: int) -> Found:
    """Up to so many iterations, or until the pixels contradict the equations for good."""
    problem, start = known.problem, known.images
    prior = SparsePrior.of(problem.known, problem.average, robust=True)
    settled = known.depth == 1
    seen = known.seen(0)
    free = ~seen.same.expand_as(start)
    start = torch.where(free, start, seen.inputs.to(start))
    search = SparseSearch(prior, start, free)
    spent = 0
    while spent < iterations:
        if not settled or spent == 0:
            images = problem.rounded(search.images)
            linear = linearise(known, images)
            equations = pixel_equations(known, linear, images, prior.unit, damping=1.0)
            search.forget()

        def done(images: Tensor, equations: PixelEquations = equations) -> bool:
            return explains(known, problem.rounded(images), equations)

        steps = min(ROUND, iterations - spent)
        found = None
        if search.run(equations, steps, done):
            found = problem.rounded(search.images)
        elif problem.grey:
            guess = settle_levels(search.images, equations, LEVELS)
            found = guess if explains(known, guess, equations) else None
        spent += steps
        if found is not None:
            polished = problem.grey and known.alone
            found = polish_levels(found, equations, LEVELS) if polished else found
            return Found(found, True, False, spent)
        if settled and spent == PASS and equations.misfit(search.images) > CONTRADICTED:
            return Found(start, False, True, spent)
    images = problem.rounded(search.images)
    if problem.grey:
        images = torch.cat([_corrected(known.only(i), images[[i]]) for i in range(len(images))])
    return Found(images, False, False, spent)


def _corrected(known: PixelKnowledge, images: Tensor) -> Tensor:
    """One record's image with wrong levels made right by its outputs, then by its features."""
    forms = [known, known.at_features()]
    misfit, tried = known.reproduced(images), 0
    while tried < len(forms) and REPRODUCED < misfit < NEARLY:
        form = forms[tried]
        equations = pixel_equations(form, linearise(form, images), images, 1.0, damping=0.0)
        better = correct_levels(images, equations, LEVELS)
        left = known.reproduced(better)
        if left < misfit / 2:
            images, misfit, tried = better, left, 0
        else:
            tried += 1
    return images
