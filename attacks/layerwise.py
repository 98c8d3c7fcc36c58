"""Inverts convolutional Q-networks layer by layer, down to the pixels.

The dense layer above the convolutions gives each record's features exactly
(``pixels.conv_features``). Then each convolution's inputs are the least-squares solution of its
weight's gradient and its active outputs (R-GAP's recursion, Zhu and Blaschko, ICLR 2021, arXiv
2010.07733, as one well-conditioned system a layer: ``pixels.conv_equations``), for as long as those
determine them. From the last layer that they do the rest is solved for in pixels, where few deviate
from what is usual (``pixels.sparse_frames``); the units that are active in between follow the
pixels and are taken anew in rounds. Pixels are multiples of a grey level, so that a rounded answer
either explains everything known or is not yet the true one.

The records of a batch differ in loudness by their temporal-difference errors. Where only the loud
ones follow from a layer's equations, these go down alone; images that reproduce their features are
then taken out of the gradients, and the others are sought in what is left: successive interference
cancellation.

Where a batch is too large for a layer's equations, that layer is not solved on its own: its outputs
are equations of the pixels.

With noise each layer's inputs are what is likeliest given the outputs, the received gradient and
the samples, each by its uncertainty (``pixels.layer_beliefs``); which units are active follows from
the rows of the gradient (``pixels.active_rows``), whose hundreds of numbers tell it long after
single outputs do not. Nothing heard leaves the prior's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attacks.attack import Attack, Reconstruction
from attacks.observation import Observation
from attacks.pixels.conv_chains import find_chain
from attacks.pixels.conv_features import features_capacity
from attacks.pixels.problem import PixelProblem
from attacks.pixels.search import solve_pixels
from attacks.prior import Prior
from attacks.registry import register_attack
from attacks.rewards import explain, reconstruction


@register_attack("layerwise", summary="inverts convolutional Q-networks to the pixel")
@dataclass(frozen=True)
class Layerwise(Attack):
    """Exact at batch size one without noise; batches as far as their features can be told apart.

    Attributes:
        iterations: of the search for pixels, at most, and in vain where there are several records.
    """

    iterations: int = 1000

    def unsupported(self, observation: Observation) -> str:
        """Needs convolutions and ReLUs from the state to a dense layer, and discrete actions."""
        if observation.local is not None:
            return "the release sums local steps, which the layers' equations take for one gradient"
        if observation.channel.zeroed:
            return "coordinates that were not sent leave the layers' equations open"
        if not observation.template.discrete:
            return "actions are not discrete: the loss is no Q-network's"
        chain, reason = find_chain(observation)
        if chain is None:
            return reason
        most = features_capacity(observation, chain)
        if observation.batch_size > most:
            return f"{observation.batch_size} records: the dense layers tell at most {most} apart"
        return ""

    def solve(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """Each observation alone; ``seed`` starts the un-mixing of batches, and noise of errors."""
        chain, reason = find_chain(observations[0])
        assert chain is not None, reason
        problem = PixelProblem.of(observations[0], chain, prior)
        return [self._solve(o, problem, prior, seed) for o in observations]

    def _solve(
        self, observation: Observation, problem: PixelProblem, prior: Prior, seed: int
    ) -> Reconstruction:
        found = solve_pixels(problem, observation, iterations=self.iterations, seed=seed)
        like = next(iter(observation.parameters.values()))
        blind = prior.mean_transitions(observation.batch_size, observation.template)
        state = blind.state.to(like).clone()
        action = blind.action.to(like.device).clone()
        told = len(found.states)
        state[:told] = found.states.to(like)
        if found.actions is not None:
            action[:told] = found.actions.to(like.device)
        return reconstruction(observation, explain(observation, state, action, prior), found.notes)
