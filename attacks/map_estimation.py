"""Maximum a posteriori reconstruction: the channel's likelihood, a Gaussian prior, Gauss-Newton.

The Bayes-optimal view of gradient inversion (Balunovic et al., ICLR 2022, arXiv 2111.04706): with
noise of known law, the best point estimate balances the misfit in units of the noise with the
distance to the prior in units of its covariance. Where plain gradient matching stops at the
optimiser's limit, this stops near the Bayesian Cramer-Rao floor (``attacks.bounds``).

A search starts from the closed forms of the first layers (one record), from the prior's mean and
from the known transitions whose gradients fit best. The ReLUs make ledges: first the search softens
them, and under Gaussian noise also leaves open which rows of the gradient they make wrong
(``misfits.StudentMisfit``); then it alternates damped Gauss-Newton steps with draws around the best
point. Under noise the answer is the posterior's mean there, from a random walk: it has the least
mean squared error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attacks.attack import Attack, Reconstruction
from attacks.bayes.problem import Problem
from attacks.bayes.search import MakePosterior, Trail, descend, scatter, walk
from attacks.bayes.smoothed_relu import SmoothedReLU
from attacks.bayes.starts import joint_starts, single_starts
from attacks.gradients.linear_layers import dense_layers
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.registry import register_attack


@register_attack("map", summary="Bayes-optimal Gauss-Newton under the defence's own noise law")
@dataclass(frozen=True)
class MAP(Attack):
    """Bayes-optimal search over (s, a, y); needs a network of dense layers.

    Attributes:
        starts: points that each target's search begins at, at least.
        candidates: known transitions that are tried as starts.
        robust: of the searches, those that are gone on with under the misfit that leaves wrong rows
            open; on Ant under noise of variance 0.1 all of them found the same.
        iterations: Gauss-Newton steps before the draws.
        rounds: of draws around the best point, each followed by a few steps.
        draws: in each round.
        crowd: records of a release beyond which its search is a few plain steps: their cost grows
            with the square of the records, and in what was measured more of them found no more.
        unknowns: of a release, at most: a step takes their cube, and Ant's minibatches of 64
            records, with 2,304 unknowns, it does not read: ``tests/benchmarks/map_minibatches.py``
            shows the known records that the search begins from as near to the true ones as its end.
        chains, steps: of the random walk that gives the mean, steps for each coordinate of a
            record.
        widths: of the smoothed networks, in the unit of the pre-activations; where the first is
            several times that, the networks are nearly linear.
    """

    starts: int = 12
    candidates: int = 256
    robust: int = 6
    iterations: int = 10
    rounds: int = 4
    draws: int = 64
    crowd: int = 8
    unknowns: int = 2000
    chains: int = 8
    steps: int = 120
    widths: tuple[float, ...] = (3.0, 1.0, 0.3, 0.1, 0.03)

    def unsupported(self, observation: Observation) -> str:
        """Needs one gradient, every parameter of it in a dense layer that is called once."""
        if observation.local is not None:
            return "the release sums local steps, the likelihood here is of a single gradient"
        if dense_layers(observation) is None:
            return "released parameters outside dense layers, or layers called more than once"
        unknowns = observation.batch_size * (observation.template.continuous_size + 1)
        if unknowns > self.unknowns:
            return (
                f"{observation.batch_size} records have {unknowns:,} unknowns together, "
                f"more than {self.unknowns:,}"
            )
        channel = observation.channel
        names = {mechanism["mechanism"] for mechanism in channel.mechanisms}
        if observation.batch_size > 1 and channel.clips_sum:
            return "the scale that clipping took from a mean over several records is not modelled"
        if channel.clips_sparse:
            return "the scale that clipping took from a sparse gradient is not modelled"
        if "secagg" in names and names & {"randk", "adaptive-gaussian"}:
            return "coordinates or noises that differ between the clients of a sum are not modelled"
        return ""

    def solve(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """One record gets the whole search; several its first part, from what ``spear`` finds."""
        layers = dense_layers(observations[0])
        assert layers is not None
        problem = Problem.of(observations, layers, prior)
        generator = torch.Generator().manual_seed(seed)
        search = self._joint_search if problem.size > 1 else self._single_search
        return problem.answers(search(problem, generator))

    def _joint_search(self, problem: Problem, generator: torch.Generator) -> Trail:
        starts = joint_starts(problem, generator)
        if problem.size <= self.crowd and problem.received.gaussian:
            return self._descended_robustly(starts, problem, generator)
        return descend(starts, problem.posterior, self.iterations // 2)

    def _single_search(self, problem: Problem, generator: torch.Generator) -> Trail:
        starts = single_starts(problem, self.starts, self.candidates, generator)
        trail = descend(starts, problem.posterior, self.iterations // 2)
        if problem.explained(trail):
            return trail.best(2)
        found = trail.joined(self._descended_smoothly(starts, problem))
        if problem.received.gaussian:
            found = found.joined(self._descended_robustly(trail, problem, generator))
        trail = descend(found.best(2), problem.posterior, self.iterations)
        trail = self._scattered(trail, problem.posterior, generator)
        if not problem.observations[0].channel.random:
            return trail
        steps = self.steps * problem.coordinates.width
        lowest, mean = walk(trail, problem.posterior, self.chains, steps, generator)
        ends = descend(lowest.best(3), problem.posterior, 6)
        return trail.joined(ends).answered_by(mean)

    def _descended_robustly(
        self, trail: Trail, problem: Problem, generator: torch.Generator
    ) -> Trail:
        """Descents and draws that leave open which rows of the gradient a ledge makes wrong."""
        robust = problem.robust_posterior
        trail = descend(problem.rewarded(trail.best(self.robust)), robust, self.iterations)
        trail = self._scattered(trail.best(2), robust, generator)
        return descend(problem.rewarded(trail), problem.posterior, self.iterations)

    def _descended_smoothly(self, starts: Trail, problem: Problem) -> Trail:
        """Descents on ever less smoothed networks, which ledges do not hold up."""
        trail = starts
        for width in self.widths:
            with SmoothedReLU(width):
                trail = descend(problem.rewarded(trail), problem.posterior, self.iterations)
        return descend(problem.rewarded(trail), problem.posterior, self.iterations)

    def _scattered(
        self, trail: Trail, posterior: MakePosterior, generator: torch.Generator
    ) -> Trail:
        for _ in range(self.rounds):
            near = scatter(trail, posterior, self.draws, 2, generator)
            trail = trail.joined(descend(near, posterior, 3)).best(2)
        return trail
