"""Stacked frames whose deviations from what is usual are few: the prior, and the search under it.

Backgrounds stand still, frames of a stack share most pixels, sprites and roads have edges only. So
four kinds of numbers are sparse: a pixel's deviation, and the deviations of its differences to the
next frame, to the right and below. Each is taken as Laplace with the centre and scale that the
adversary's samples show, so nothing is tuned to a game; and reweighted (Candes, Wakin, Boyd 2008,
J. Fourier Anal. Appl. 14), which comes near to counting the deviations.

The search is the alternating direction method of multipliers (Boyd et al. 2011, Found. Trends Mach.
Learn. 3(1)): equations, inactive units, the range of pixels and the sparse numbers are each met on
copies of their own, which a few steps of conjugate gradients then bring together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

from attacks.pixels.conv_equations import conjugate_gradients

SMALLEST_SCALE = 0.02
"""Five grey levels: what never moved in the samples may move after all."""

BLIND_SCALE = 0.25
"""Scale of all numbers for an adversary without samples."""

MOST_SAMPLES = 96
"""Samples that the prior is taken from, at most."""

FIRST_PENALTY = 20.0
"""Of a copy's distance; with weights around one, steps of a twentieth of the range."""

LAST_PENALTY = 300.0
"""Small steps settle the last digits; at the start they would get nowhere."""

GROWTH = 1.6
"""Of the penalty, with every reweighting."""

EQUATIONS = 40.0
"""How much heavier the equations' copies are than the others."""

INNER = 6
"""Steps of conjugate gradients an iteration: they start from the last iterate."""

REWEIGHT_EVERY = 40
CHECK_EVERY = 10


@dataclass(frozen=True, eq=False)
class SparsePrior:
    """Centres and weights of the four kinds of numbers, each (4, 1, C, H, W), pixels in [0, 1].

    Attributes:
        centre: where each number usually is.
        weight: reciprocal of its usual distance from there, relative to ``unit``.
        unit: median of these reciprocals.
    """

    centre: Tensor
    weight: Tensor
    unit: float
    highest = 1.0
    smallest = SMALLEST_SCALE

    @classmethod
    def of(cls, frames: Tensor, average: Tensor, *, robust: bool) -> SparsePrior:
        """From samples (n, C, H, W), maybe none, and the mean image (C, H, W).

        ``robust`` centres are medians, where a background is exactly; others are means, the best
        answer where nothing is known.
        """
        if not len(frames):
            centre = differences(average[None])
            return cls(centre, torch.ones_like(centre), 1 / BLIND_SCALE)
        chosen = frames[torch.linspace(0, len(frames) - 1, min(len(frames), MOST_SAMPLES)).long()]
        seen = differences(chosen)
        centre = (seen.median(dim=1).values if robust else seen.mean(dim=1))[:, None]
        scale = (seen - centre).abs().mean(dim=1, keepdim=True) + SMALLEST_SCALE
        unit = float((1 / scale).median())
        return cls(centre, 1 / (scale * unit), unit)

    @staticmethod
    def numbers(x: Tensor) -> Tensor:
        """The four kinds of numbers (4, b, C, H, W) of images."""
        return differences(x)

    @staticmethod
    def gathered(u: Tensor) -> Tensor:
        """The adjoint of ``numbers``."""
        return gathered(u)


class Numbers(Protocol):
    """Linear functions of images of which few differ from their centres."""

    @property
    def centre(self) -> Tensor:
        """Of each number (k, b or 1, C, H, W)."""
        ...

    @property
    def weight(self) -> Tensor:
        """Price of a deviation from it."""
        ...

    @property
    def highest(self) -> float:
        """Pixels are from 0 to this."""
        ...

    @property
    def smallest(self) -> float:
        """Deviations below this are priced alike when they are reweighted."""
        ...

    def numbers(self, x: Tensor) -> Tensor:
        """The numbers (k, b, C, H, W) of images (b, C, H, W)."""
        ...

    def gathered(self, u: Tensor) -> Tensor:
        """The adjoint of ``numbers``."""
        ...


class Equations(Protocol):
    """What is known of images (b, C, H, W), as affine functions of them."""

    def apply(self, images: Tensor) -> list[Tensor]:
        """The linear parts."""
        ...

    def adjoint(self, blocks: Sequence[Tensor]) -> Tensor:
        """Transpose of ``apply``."""
        ...

    def nearest(self, blocks: Sequence[Tensor], penalty: float) -> list[Tensor]:
        """Each block moved to where it fits best what is known, for a price of moving."""
        ...


def differences(x: Tensor) -> Tensor:
    """(b, C, H, W) to (4, b, C, H, W): pixels, next frame, right, below; zero past the end."""
    frames = F.pad(x[:, 1:] - x[:, :-1], (0, 0, 0, 0, 0, 1))
    right = F.pad(x[..., 1:] - x[..., :-1], (0, 1))
    below = F.pad(x[:, :, 1:] - x[:, :, :-1], (0, 0, 0, 1))
    return torch.stack([x, frames, right, below])


def gathered(u: Tensor) -> Tensor:
    """The adjoint of ``differences``."""
    x = u[0].clone()
    x[:, 1:] += u[1, :, :-1]
    x[:, :-1] -= u[1, :, :-1]
    x[..., 1:] += u[2, ..., :-1]
    x[..., :-1] -= u[2, ..., :-1]
    x[:, :, 1:] += u[3, :, :, :-1]
    x[:, :, :-1] -= u[3, :, :, :-1]
    return x


class SparseSearch:
    """Images with the fewest deviations that fit the equations; ``run`` continues."""

    def __init__(self, prior: Numbers, start: Tensor, free: Tensor | None = None) -> None:
        """``start`` (b, C, H, W) also says the type of all numbers.

        Where ``free`` (b, C, H, W) is given and false, images stay as they start.
        """
        self.images = start
        self._prior = prior
        self._free = torch.ones_like(start) if free is None else free.to(start)
        self._centre = prior.centre.to(start)
        self._first = prior.weight.to(start).clamp(0.3, 3.0)
        self._weight = prior.weight.to(start)
        self._sparse_dual = torch.zeros_like(prior.numbers(start))
        self._range_dual = torch.zeros_like(start)
        self._duals: list[Tensor] | None = None
        self._penalty = FIRST_PENALTY
        self._steps = 0

    def forget(self) -> None:
        """The equations are about to change: what held them in place no longer counts."""
        self._duals = None

    def run(
        self, equations: Equations, iterations: int, done: Callable[[Tensor], bool] | None = None
    ) -> bool:
        """Iterates; whether ``done`` said so, asked every ten iterations."""
        prior, free = self._prior, self._free
        x, sparse = self.images, prior.numbers(self.images)
        blocks = equations.apply(x)
        duals = self._duals or [torch.zeros_like(b) for b in blocks]

        def normal(p: Tensor) -> Tensor:
            known = equations.adjoint(equations.apply(p))
            return free * (prior.gathered(prior.numbers(p)) + EQUATIONS * known + p)

        held = x * (1 - free)
        settled = normal(held)
        for _ in range(iterations):
            self._steps += 1
            moved = sparse + self._sparse_dual - self._centre
            shrunk = moved.sign() * (moved.abs() - self._weight / self._penalty).clamp_min(0)
            self._sparse_dual = moved - shrunk
            summed = [b + d for b, d in zip(blocks, duals, strict=True)]
            fitted = equations.nearest(summed, EQUATIONS * self._penalty)
            duals = [s - f for s, f in zip(summed, fitted, strict=True)]
            wide = x + self._range_dual
            inside = wide.clamp(0.0, prior.highest)
            self._range_dual = wide - inside
            pulls = [f - d for f, d in zip(fitted, duals, strict=True)]
            right = prior.gathered(self._centre + shrunk - self._sparse_dual)
            right = right + EQUATIONS * equations.adjoint(pulls) + inside - self._range_dual
            right, near = free * right - settled, free * x
            near = conjugate_gradients(normal, right, near, iterations=INNER, tolerance=1e-9)
            x = held + near
            sparse, blocks = prior.numbers(x), equations.apply(x)
            if self._steps % REWEIGHT_EVERY == 0:
                distance = (sparse - self._centre).abs()
                self._weight = self._first * prior.smallest / (distance + prior.smallest)
                grown = min(GROWTH * self._penalty, LAST_PENALTY)
                shrink, self._penalty = self._penalty / grown, grown
                self._sparse_dual *= shrink
                self._range_dual *= shrink
                duals = [shrink * d for d in duals]
            if done is not None and self._steps % CHECK_EVERY == 0 and done(x):
                break
        else:
            self.images, self._duals = x, duals
            return False
        self.images, self._duals = x, duals
        return True
