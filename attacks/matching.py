"""Gradient matching: distances between gradients, and the loop that shrinks them.

Everything works on T targets times R restarts of b records each at once: G = T R groups, and fakes
are one batch of G b rows in target-major order. Groups are independent, because the model treats
rows independently and Adam treats coordinates independently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from attacks.attack import Reconstruction
from attacks.fake_tuples import FakeTuples
from attacks.gradients.choice import GroupGradients, choose_gradients
from attacks.gradients.replay import record
from attacks.observation import Observation, gradient_matching_error
from attacks.prior import MODEL_LIMIT, Prior
from attacks.transitions import Transitions

Distance: TypeAlias = Literal["l2", "cosine"]
Penalty: TypeAlias = Callable[[Transitions], Tensor]
"""Fake transitions (n rows, relaxed actions) to one penalty for each row (n,)."""

LARGE_ITERATIONS = 60
"""Most steps on states of more than ``MODEL_LIMIT`` coordinates, all from one start: one through
convolutions costs a hundred times one through the small networks that the settings are meant for.
"""
LARGE_SPREAD, LARGE_PACE = 0.1, 0.3
"""Factors on the draws and on the learning rate there, if a prior gives both their units: Adam
moves each pixel on its own, and has not the steps to take noise out of tens of thousands that the
gradient hardly tells. On Pong at initialisation larger ones ended farther from the gradient."""
CROWD = 16
"""Records of a release from which one start has to do: the cost of a step grows with them, and of
the coordinates in minibatches of 64 (Ant) four starts read no more than one, less than guessing."""
BLOCK = 32
"""Iterates that are kept until the best is looked for among them."""
WORTH_RECORDING = 40
"""Evaluations from which on a recording pays for itself."""


def match(
    observations: Sequence[Observation],
    *,
    distance: Distance,
    iterations: int,
    restarts: int,
    learning_rate: float,
    seed: int,
    penalty: Penalty | None = None,
    scale: Prior | None = None,
    direction_share: float = 0.0,
) -> list[Reconstruction]:
    """Fits fake transitions to the received gradients with Adam, from N(0, 1) draws.

    Per group the objective is ||g~ - g||^2 / ||g||^2 ("l2") or 1 - cos(g~, g) ("cosine"), plus the
    penalty's mean over the group's rows. The learning rate falls to zero along a cosine. Each
    group keeps its best iterate, each target the restart with the best objective. Fakes are taken
    as non-terminal, and ``terminated`` is answered NaN. Where the channel drops coordinates, only
    the surviving ones are compared. Whatever the arguments, large states get ``LARGE_ITERATIONS``
    steps from one start, and ``CROWD`` records or more one start.

    Args:
        observations: releases that share model, loss, batch size, template and channel.
        distance: how gradients are compared.
        iterations: Adam steps.
        restarts: random starts of each target; the same draws for every target.
        learning_rate: Adam's first step size, in the units of states and rewards.
        seed: of the draws.
        penalty: regulariser of the fakes.
        scale: if given, fakes are optimised in units of this prior's deviations from its mean, and
            the N(0, 1) draws and the learning rate mean these units.
        direction_share: share of the iterations, at the start, that use the cosine distance in any
            case. Far from the solution ||g~ - g|| is first of all reduced by shrinking g~, which
            leads to TD errors of zero or of the wrong sign, and it stays there.
    """
    first = observations[0]
    size = first.batch_size
    large = first.template.state_size > MODEL_LIMIT
    if large:
        iterations = min(iterations, LARGE_ITERATIONS)
    if large or size >= CROWD:
        restarts = 1
    like = next(iter(first.parameters.values()))
    codec = FakeTuples(first.template, scale, like)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(restarts * size, codec.width, generator=generator, dtype=like.dtype)
    if large and scale is not None:
        draws *= LARGE_SPREAD
        learning_rate *= LARGE_PACE
    fakes = draws.to(like.device).repeat(len(observations), 1).requires_grad_(True)
    elsewhere = torch.randn(fakes.shape, generator=generator, dtype=like.dtype).to(like.device)
    adam = _Adam(fakes)
    best = _Best(fakes.detach().view(len(observations) * restarts, -1))
    directions = int(direction_share * iterations)
    phases: list[tuple[Distance, range]] = [
        ("cosine", range(directions)),
        (distance, range(directions, iterations)),
    ]

    with choose_gradients(observations, restarts) as gradients:
        for kind, steps in phases:
            objective = _Objective(gradients, codec, kind, penalty, size)
            evaluate = _fastest(objective, fakes, elsewhere, len(steps))
            best.restart()  # values of two distances do not compare
            with torch.inference_mode():
                for step in steps:
                    value, slope = evaluate()
                    best.note(value)
                    rate = learning_rate * 0.5 * (1 + math.cos(math.pi * step / iterations))
                    adam.step(slope, rate)

    values = best.values().reshape(len(observations), restarts)
    answers = best.points().reshape(len(observations), restarts, size, codec.width)
    return [_reconstruction(o, codec, answers[t], values[t]) for t, o in enumerate(observations)]


@dataclass(frozen=True)
class _Objective:
    """Values (G,) of all groups at optimised rows (G b, width), and the slope of their sum."""

    gradients: GroupGradients
    codec: FakeTuples
    distance: Distance
    penalty: Penalty | None
    batch_size: int

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        z = self.codec.decode(rows)
        dot, square = self.gradients.terms(z)
        value = _distance(self.distance, dot, square, self.gradients.target_square)
        if self.penalty is not None:
            value = value + self.penalty(z).reshape(-1, self.batch_size).mean(dim=1)
        (slope,) = torch.autograd.grad(value.sum(), [rows])
        return value.detach(), slope


def _fastest(
    objective: _Objective, rows: Tensor, elsewhere: Tensor, evaluations: int
) -> Callable[[], Sequence[Tensor]]:
    """The objective at what ``rows`` hold when it is called; ``elsewhere`` is for ``record``."""
    if evaluations >= WORTH_RECORDING:
        replay = record(objective, rows, elsewhere)
        if replay is not None:
            return replay

    def evaluate() -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):
            return objective(rows)

    return evaluate


class _Best:
    """The best iterate of each of G groups. Iterates are kept and compared a block at a time."""

    def __init__(self, x: Tensor) -> None:
        """``x`` (G, n) is the memory of the iterates."""
        self._x = x
        self._best, self._value = x.clone(), x.new_full((len(x),), math.inf)
        self._points, self._values = x.new_empty(BLOCK, *x.shape), x.new_empty(BLOCK, len(x))
        self._noted = 0

    def restart(self) -> None:
        """Whatever comes next is better than what was."""
        self._noted = 0
        self._value.fill_(math.inf)

    def note(self, value: Tensor) -> None:
        """The current iterate has this value (G,)."""
        self._points[self._noted].copy_(self._x)
        self._values[self._noted].copy_(value)
        self._noted += 1
        if self._noted == BLOCK:
            self._compare()

    def points(self) -> Tensor:
        """(G, n)."""
        if self._noted:
            self._compare()
        return self._best

    def values(self) -> Tensor:
        """(G,)."""
        if self._noted:
            self._compare()
        return self._value

    def _compare(self) -> None:
        """Of values that differ by rounding alone the last is best: steps get smaller."""
        values = self._values[: self._noted].nan_to_num(nan=math.inf)
        lowest = torch.cat([self._value[None], values]).cummin(dim=0).values
        better = values <= lowest[:-1] + _rounding(values)
        steps = torch.arange(1, self._noted + 1, device=values.device)[:, None]
        last = (steps * better).amax(dim=0)
        chosen = self._points[last - 1, torch.arange(len(last), device=last.device)]
        self._best.copy_(torch.where((last > 0)[:, None], chosen, self._best))
        self._value.copy_(lowest[-1])
        self._noted = 0


class _Adam:
    """Adam (Kingma and Ba, 2015) on one tensor, as torch computes it, without its overhead."""

    def __init__(self, x: Tensor) -> None:
        self._x = x.detach()
        self._mean = torch.zeros_like(self._x)
        self._square = torch.zeros_like(self._x)
        self._root = torch.zeros_like(self._x)
        self._decay = torch.tensor(0.999).to(self._x)
        self._steps = 0

    def step(self, slope: Tensor, rate: float) -> None:
        """Moves the tensor in place."""
        self._steps += 1
        decay, square_decay = 0.9, 0.999
        self._mean.lerp_(slope, 1 - decay)
        self._square.mul_(self._decay).addcmul_(slope, slope, value=1 - square_decay)
        # The bias of the squares' mean belongs to the rate: m / (sqrt(v) / c + e) = c m / (...).
        bias = math.sqrt(1 - square_decay**self._steps)
        torch.sqrt(self._square, out=self._root)
        self._root.add_(1e-8 * bias)
        self._x.addcdiv_(self._mean, self._root, value=-rate * bias / (1 - decay**self._steps))


def _distance(kind: Distance, dot: Tensor, square: Tensor, target_square: Tensor) -> Tensor:
    """(G,) distances from <g~, g>, ||g~||^2 and ||g||^2."""
    tiny = torch.finfo(square.dtype).tiny
    if kind == "l2":
        return (square - 2 * dot + target_square) / target_square.clamp_min(tiny)
    # The Gram form of ||g~||^2 can round below zero.
    return 1 - dot / (square.clamp_min(tiny) * target_square.clamp_min(tiny)).sqrt()


def _reconstruction(
    observation: Observation, codec: FakeTuples, answers: Tensor, values: Tensor
) -> Reconstruction:
    """Chooses among one target's restarts: answers (R, b, width), values (R,)."""
    restarts = [codec.finish(a) for a in answers]
    alike = (values <= values.min() + _rounding(values)).nonzero().flatten().tolist()
    errors = {k: gradient_matching_error(observation, _non_terminal(restarts[k])) for k in alike}
    chosen = min(alike, key=lambda k: errors[k])
    z = restarts[chosen]
    unknown = torch.full_like(z.terminated, math.nan)
    restarts = [_with_terminated(r, unknown) for r in restarts]
    return Reconstruction(
        transitions=restarts[chosen],
        objective=float(values[chosen]),
        gme=errors[chosen],
        restarts=restarts,
        notes="terminated assumed 0",
    )


def _rounding(like: Tensor) -> float:
    """Error of distances near zero: the Gram form takes them from differences of larger numbers."""
    return 8 * torch.finfo(like.dtype).eps


def _non_terminal(z: Transitions) -> Transitions:
    return _with_terminated(z, torch.zeros_like(z.terminated))


def _with_terminated(z: Transitions, terminated: Tensor) -> Transitions:
    return Transitions(z.state, z.action, z.reward, z.next_state, terminated)
