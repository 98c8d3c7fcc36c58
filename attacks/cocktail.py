"""Un-mixes the records of a batch, one by one, from the row spaces of all dense layers.

The Cocktail Party Attack (Kariyappa et al., ICML 2023, arXiv 2209.05578) reads a dense layer's
gradient D^T X as a mixture of b records and un-mixes it by independent component analysis. This
attack starts from the same reading and does not use independence, which does not tell the records
of reinforcement learning apart. Their inputs have some tens of correlated coordinates, not
thousands of pixels, so the output gradients D are the better sources, one sample a unit; but those
of different records share the critic's weights and are far from orthogonal, and once whitened they
are nearly Gaussian. ``tests/benchmarks/cocktail_ica.py`` prints how few FastICA finds.

What tells a record is that its inputs must lie in the row spaces of all layers at once
(``batches.row_spaces``): a layer with n inputs gives n + 1 - b equations, and one record is a point
of some tens of coordinates. So each record is searched for alone (``batches.subspace_search``),
from draws of the prior, until the records found explain the gradients. Sparse or binary factors,
which ``spear`` needs, have no part in it: any activation, norm or head will do. Records whose part
of the gradient is drowned in noise are not guessed but answered by the prior's mean.

The search may miss records that few starts lead to: without noise and LayerNorm, batches of eight
and more come out in part where ``spear`` is exact. ``tests/benchmarks/cocktail_batches.py`` prints
accuracy by batch size and noise beside ``spear`` and the prior's mean.

Next states and rewards are completed as in ``rewards``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attack import Attack, Reconstruction
from attacks.batches.row_spaces import RowSpace, mixing_layers
from attacks.batches.subspace_search import Inputs, Whitened, choose, least_explained, search
from attacks.gradients.linear_layers import LinearLayer
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.registry import register_attack
from attacks.rewards import explain, reconstruction, taken_actions
from attacks.transitions import Transitions, unflatten_state_action

POPULATION = 256
"""Draws of the prior that the size of typical inputs is taken from."""

CANDIDATES = 2000
"""Draws of the prior among which a new round's starts are chosen."""

EXPLAINED = 1.5
"""Mean square left of a gradient, in units of the noise, at which nothing more is looked for."""

PROGRESS = 0.98
"""A round that leaves more of this share of what was left gained nothing; two of them end it."""


@register_attack("cocktail", summary="un-mixes batches by the row spaces of all dense layers")
@dataclass(frozen=True)
class Cocktail(Attack):
    """Searches for single records that fit every layer's row space.

    Attributes:
        starts: of the search in each round.
        iterations: Levenberg-Marquardt steps from each start.
        rounds: at most; each starts where the records found so far explain least.
    """

    starts: int = 64
    iterations: int = 25
    rounds: int = 6

    def unsupported(self, observation: Observation) -> str:
        """Needs several records, and layers whose row spaces outnumber a record's coordinates."""
        size = observation.batch_size
        if size == 1:
            return "one record is not mixed: analytic reads it in closed form"
        if observation.local is not None:
            return "the release sums local steps, whose layers' inputs change from step to step"
        if observation.channel.zeroed:
            return "coordinates that were not sent leave the layers' gradients without low rank"
        layers = mixing_layers(observation)
        if not layers:
            return f"no released dense layer with bias and at least {size} outputs is called once"
        template = observation.template
        unknown = template.state_size + (0 if template.discrete else template.action_size)
        room = sum(max(0, layer.module.in_features + 1 - size) for layer in layers)
        if room < unknown:
            return (
                f"the layers' row spaces give {room} equations for the {unknown} coordinates "
                f"of one of {size} records"
            )
        return ""

    def solve(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """Each observation alone, from the same draws."""
        layers = mixing_layers(observations[0])
        return [self._solve(observation, layers, prior, seed) for observation in observations]

    def _solve(
        self, observation: Observation, layers: list[LinearLayer], prior: Prior, seed: int
    ) -> Reconstruction:
        generator = torch.Generator().manual_seed(seed)
        like = next(iter(observation.parameters.values()))
        whitened = Whitened.of(prior, observation.template, like)
        population = whitened.draws(prior, POPULATION, generator)
        typical = Inputs(observation, whitened, layers).at(population)
        read = [RowSpace.of(observation, x, h) for x, h in zip(layers, typical, strict=True)]
        spaces = [space for space in read if space is not None]
        points = population[:0]
        if spaces:
            inputs = Inputs(observation, whitened, [space.layer for space in spaces])
            points = self._search(observation, prior, spaces, inputs, generator)
        return _completed(observation, whitened, points, prior)

    def _search(
        self,
        observation: Observation,
        prior: Prior,
        spaces: Sequence[RowSpace],
        inputs: Inputs,
        generator: torch.Generator,
    ) -> Tensor:
        """At most b points (k, K), all different."""
        starts = inputs.whitened.draws(prior, self.starts, generator)
        points = starts[:0]
        before, idle = math.inf, 0
        for _ in range(self.rounds):
            found, _ = search(starts, spaces, inputs, self.iterations)
            points = torch.cat([points, found])
            values = inputs.at(points)
            chosen = choose(values, spaces, observation.batch_size)
            left = max(s.unexplained(x[chosen]) for x, s in zip(values, spaces, strict=True))
            idle = idle + 1 if left > PROGRESS * before else 0
            before = min(left, before)
            if left <= EXPLAINED or idle == 2:
                break
            fresh = inputs.whitened.draws(prior, CANDIDATES, generator)
            starts = least_explained(fresh, spaces, inputs, points[chosen], self.starts)
        return points[chosen]


def _completed(
    observation: Observation, whitened: Whitened, points: Tensor, prior: Prior
) -> Reconstruction:
    """The answer from points (k, K); records that were not found are the prior's mean."""
    template, size = observation.template, observation.batch_size
    like = next(iter(observation.parameters.values()))
    told = len(points)
    padded = torch.cat([points, points.new_zeros(size - told, points.shape[1])])
    rows = whitened.rows(padded).to(like)
    zero = torch.zeros_like(rows[:, 0])
    if template.discrete:
        state = rows.reshape(size, *template.state_shape)
        state = template.clamp(Transitions(state, zero, zero, state, zero)).state
        index, action = taken_actions(observation, state, prior)
        repeated = torch.arange(size, device=like.device) % len(index)
        state, action = state[index[repeated]], action[repeated]
    else:
        state, action = unflatten_state_action(rows, template)
    inside = template.clamp(Transitions(state, action, zero, state, zero))
    explained = explain(observation, inside.state, inside.action, prior)
    notes = [f"{told} of {size} records told apart"] if told < size else []
    return reconstruction(observation, explained, notes)
