"""From known features of convolutions down to the pixels of each record."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.active_units import settle_active
from attacks.conv_chains import ConvLayer
from attacks.conv_equations import GradientEquations, invert_layer
from attacks.conv_features import HeardFeatures, hear_features
from attacks.grey_levels import polish_levels, settle_levels
from attacks.observation import Observation
from attacks.pixel_equations import PixelEquations
from attacks.pixel_problem import LEVELS, PixelProblem, features_of, outputs_of
from attacks.posterior import received_by
from attacks.sparse_features import SeenBefore, invert_sparsely, seen_before
from attacks.sparse_frames import SparsePrior, SparseSearch

EXPLAINED = 1e-5
"""Relative misfit below which rounded pixels are the true ones: a wrong one leaves more."""

ROUNDING = 1e-6
"""Of activations solved for from float32, relative to the largest, at least."""

LEAST_ERRORS, MOST_ERRORS = 1.5, 10.0
"""Where a unit starts to count as active, and how far from zero that may be wrong, in errors."""

NEAR = 1e-2
"""The same for units at guessed pixels, relative to the largest activation."""

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
    search = _Search.of(problem, observation, heard)
    if not noisy:
        search = search.descend()
    images, done = search.run(iterations)
    note = "" if noisy or done else "the pixels do not explain the gradient"
    return Pixels(problem.states(images), heard.actions, note)


@dataclass(frozen=True, eq=False)
class _Search:
    """One observation's state of knowledge.

    Attributes:
        gradients: (m, n) of each layer's weight, for images in [0, 1].
        biases: (m,) gradients of each layer's biases; None where they were not received.
        noise: standard deviation of the weights' entries, by layer.
        depth: number of layers whose last one's outputs are known.
        outputs: (b, *outputs) of that layer after its ReLU.
        outputs_std: their standard deviation.
        certain: (m,) channels of that layer whose active units are known for sure.
        deltas: gradients of the loss with respect to them, before the ReLU is passed.
        guesses: (b, *outputs) activations of all layers, as far as they can be guessed.
        nearest: (b, C, H, W) the samples whose features are nearest.
    """

    problem: PixelProblem
    gradients: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    noise: tuple[float, ...]
    depth: int
    outputs: Tensor
    outputs_std: float
    certain: Tensor
    deltas: Tensor
    guesses: tuple[Tensor, ...]
    nearest: Tensor

    @classmethod
    def of(cls, problem: PixelProblem, observation: Observation, heard: HeardFeatures) -> _Search:
        layers = problem.layers
        outputs = heard.features.reshape(-1, *layers[-1].outputs)
        distance = torch.cdist(outputs.flatten(1), problem.features[-1].flatten(1).double())
        index = distance.argmin(dim=1)
        images = problem.known if len(problem.known) else problem.average[None]
        received = received_by([observation])
        noisy = observation.channel.random
        search = cls(
            problem=problem,
            gradients=tuple(
                observation.gradient[x.name].detach().cpu().double().flatten(1) for x in layers
            ),
            biases=tuple(_bias_gradient(observation, x) for x in layers),
            noise=tuple(float(received.precision[x.name]) ** -0.5 for x in layers),
            depth=len(layers),
            outputs=outputs,
            outputs_std=float(heard.std.square().mean().sqrt()) if noisy else 0.0,
            certain=torch.ones(layers[-1].outputs[0], dtype=torch.bool),
            deltas=heard.deltas.reshape(outputs.shape),
            guesses=tuple(f[index].double() for f in problem.features),
            nearest=images[index],
        )
        if noisy:
            return replace(search, outputs=outputs.clamp_min(0.0))
        outputs, certain = search._rectified(outputs, search.deltas, len(layers) - 1)
        return replace(search, outputs=outputs, certain=certain)

    def descend(self) -> _Search:
        """Solves layer after layer for its inputs, while they are determined."""
        search = self
        while search.depth > 1:
            layer = search.problem.layers[search.depth - 1]
            delta = search.deltas * (search.outputs > 0)
            equations = search._equations(search.depth - 1, delta)
            guess = search.guesses[search.depth - 2]
            possible = search._possible(search.depth - 2, guess)
            start = guess * possible
            solved = invert_layer(layer, equations, search.outputs, start, free=possible)
            if not solved.exact:
                seen = search._seen()
                free = possible & ~seen.same
                usual = seen.inputs.double() * possible
                solved = invert_layer(layer, equations, search.outputs, usual, free=free)
                if not solved.exact:
                    solved = invert_sparsely(layer, equations, search.outputs, usual, free)
            if not solved.exact:
                return search
            below = layer.backward(delta)
            inputs, certain = search._rectified(solved.inputs, below, search.depth - 2)
            guesses = list(search.guesses)
            guesses[search.depth - 2] = inputs
            search = replace(
                search,
                depth=search.depth - 1,
                outputs=inputs,
                certain=certain,
                deltas=below,
                guesses=tuple(guesses),
            )
        return search

    def _possible(self, level: int, like: Tensor) -> Tensor:
        """Units (b, *outputs) of a layer that may be active: a dead channel's bias has none."""
        received = self.biases[level]
        if received is None:
            return torch.ones_like(like, dtype=torch.bool)
        return (received != 0)[None, :, None, None].expand(like.shape)

    def _seen(self) -> SeenBefore:
        """What the samples tell of the inputs of the layer whose outputs are known."""
        problem, level = self.problem, self.depth - 1
        images = problem.known if len(problem.known) else problem.average[None]
        return seen_before(
            problem.layers[level],
            self.outputs,
            problem.features[level - 1].double() if level else images.double(),
            problem.features[level].double(),
        )

    def _rectified(self, values: Tensor, deltas: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Activations (b, *outputs) of a layer, zero where inactive, and the channels sure."""
        # Inactive units are solved for as zero, so that negative values are errors; of each record.
        error = -values.amin(dim=(1, 2, 3), keepdim=True)
        scaled = values / error.clamp_min(ROUNDING * values.amax()).clamp_min(1e-300)
        active, received = scaled > LEAST_ERRORS, self.biases[level]
        certain = torch.ones(values.shape[1], dtype=torch.bool)
        if received is not None:
            active, certain = settle_active(scaled, deltas, received, active, MOST_ERRORS)
        tiny = torch.finfo(values.dtype).tiny
        return torch.where(active, values.clamp_min(tiny), 0.0), certain

    def run(self, iterations: int) -> tuple[Tensor, bool]:
        """Images (b, C, H, W) in [0, 1], and whether they explain all that is known."""
        problem, exact = self.problem, self.outputs_std == 0
        prior = SparsePrior.of(problem.known, problem.average, robust=exact)
        start = self.nearest if exact else problem.average.expand_as(self.nearest).clone()
        settled = self.depth == 1 and exact
        free = None
        if settled:
            seen_before = self._seen()
            free = ~seen_before.same.expand_as(start)
            start = torch.where(free, start, seen_before.inputs.to(start))
        search = SparseSearch(prior, start, free)
        damping, best = FIRST_DAMPING, math.inf
        kept = problem.rounded(start) if exact else start
        for spent in range(0, iterations, ROUND):
            if not settled or spent == 0:
                seen = problem.rounded(search.images) if exact else search.images.clamp(0, 1)
                linear = self._linearise(seen)
                if linear.unexplained < best:
                    best, kept = linear.unexplained, seen
                    damping = damping * EASED if spent else damping
                else:
                    damping = damping * STIFFENED
                    search.images = kept
                    linear = self._linearise(kept)
                equations = self._pixel_equations(linear, kept, prior.unit, damping)
                search.forget()

            def done(images: Tensor, equations: PixelEquations = equations) -> bool:
                return exact and self._explains(problem.rounded(images), equations)

            found = None
            if search.run(equations, min(ROUND, iterations - spent), done):
                found = problem.rounded(search.images)
            elif exact and problem.grey:
                guess = settle_levels(search.images, equations, LEVELS)
                found = guess if self._explains(guess, equations) else None
            if found is not None:
                return polish_levels(found, equations, LEVELS) if problem.grey else found, True
        images = search.images.clamp(0.0, 1.0)
        images = problem.rounded(images) if exact else images
        if not settled and self._linearise(images).unexplained > best:
            images = kept
        return images, False

    def _gradient(self, level: int, delta: Tensor) -> tuple[Tensor, float]:
        """Of one layer's weight, and its noise, as if the first layer saw images in [0, 1]."""
        gradient, std = self.gradients[level], self.noise[level]
        if level == 0:
            chain, problem = self.problem.chain, self.problem
            factor = chain.scale * (problem.high - problem.low)
            offset = chain.scale * problem.low + chain.shift
            shifted = gradient - offset * delta.sum(dim=(0, 2, 3))[:, None]
            gradient, std = shifted / factor, std / abs(factor)
        return gradient, std

    def _equations(self, level: int, delta: Tensor, extra_std: float = 0.0) -> GradientEquations:
        """Of one layer, from gradients at its outputs (b, *outputs)."""
        gradient, std = self._gradient(level, delta)
        if level == self.depth - 1:
            delta, gradient = delta[:, self.certain], gradient[self.certain]
        return GradientEquations.of(delta.flatten(2), gradient, max(std, extra_std))

    def _linearise(self, images: Tensor) -> _Linearised:
        """The units that ``images`` activate where it is not known which are, and what is left."""
        layers = self.problem.layers[: self.depth]
        before = outputs_of(layers, images)
        activations = [z.relu() for z in before]
        exact = self.outputs_std == 0
        fires = self.outputs > 0 if exact else activations[-1] > 0
        masks: list[Tensor] = []
        deltas = [self.deltas * fires]
        for level in reversed(range(len(layers) - 1)):
            below = layers[level + 1].backward(deltas[0])
            received, active = self.biases[level], before[level] > 0
            if exact and received is not None:
                z, near = before[level].double(), NEAR * float(activations[level].amax())
                active, _ = settle_active(z, below, received, active, near)
            masks.insert(0, active.double())
            deltas.insert(0, below * active)
        left, shares = [], []
        for level, (x, delta) in enumerate(zip([images, *activations], deltas, strict=False)):
            formed = (delta.flatten(2) @ layers[level].patches(x).double().mT).sum(dim=0)
            gradient, _ = self._gradient(level, delta)
            left.append(float((formed - gradient).square().mean().sqrt()))
            shares.append(left[-1] / float(gradient.square().mean().sqrt().clamp_min(1e-300)))
        left.append(float((activations[-1] - self.outputs).square().mean().sqrt()))
        shares.append(left[-1] / float(self.outputs.square().mean().sqrt().clamp_min(1e-300)))
        unexplained = sum(share**2 for share in shares) ** 0.5
        return _Linearised(fires, masks, deltas, left, unexplained)

    def _pixel_equations(
        self, linear: _Linearised, like: Tensor, unit: float, damping: float
    ) -> PixelEquations:
        """At given active units. Wrong ones make wrong equations, which must not be met.

        How wrong is seen in what the images leave unexplained: a share of it counts as noise, the
        damping of the Levenberg-Marquardt method, and is gone once the images are the true ones.
        """
        exact = self.depth == 1 and self.outputs_std == 0
        extra = [0.0 if exact else damping * left for left in linear.left]
        return PixelEquations.of(
            self.problem.layers[: self.depth],
            linear.masks,
            [self._equations(i, d, extra[i]) for i, d in enumerate(linear.deltas)],
            self.outputs,
            linear.fires,
            outputs_std=max(self.outputs_std, extra[-1]),
            stiffness=0.0 if exact else unit,
            like=like,
        )

    def _explains(self, images: Tensor, equations: PixelEquations) -> bool:
        if equations.misfit(images) > EXPLAINED:
            return False
        activations = features_of(self.problem.layers[: self.depth], images)
        agree = (
            torch.equal(a.flatten(2) > 0, mask > 0)
            for a, mask in zip(activations, equations.active, strict=False)
        )
        return all(agree)


@dataclass(frozen=True, eq=False)
class _Linearised:
    """Active units at some images, gradients at all outputs there, and what is unexplained.

    Attributes:
        fires: (b, *outputs) of the last layer considered; ``masks`` of those below.
        deltas: gradients at each layer's outputs, after its ReLU.
        left: root mean square of each layer's unexplained gradient, then of the outputs.
        unexplained: of all, relative to what was received.
    """

    fires: Tensor
    masks: list[Tensor]
    deltas: list[Tensor]
    left: list[float]
    unexplained: float


def _bias_gradient(observation: Observation, layer: ConvLayer) -> Tensor | None:
    found = observation.gradient.get(layer.name.removesuffix("weight") + "bias")
    return None if found is None else found.detach().cpu().double()
