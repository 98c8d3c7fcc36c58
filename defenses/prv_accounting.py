"""Tighter accounting by numerical composition, where it can be afforded.

Gopi, Lee and Wutschitz 2021 (arXiv 2106.02848) convolve the privacy loss variables of all rounds
on a grid. Its points grow with epsilon and with the number of rounds: at the noise that most
policies survive it would take tens of GiB, so the size of the grid is reckoned first and RDP's
epsilon stands where it is too large.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from defenses.accounting import RATE_GRID, Accountant

_COARSE = 3 * RATE_GRID
"""Sampling rates are kept on a 3% geometric grid here: each takes a convolution."""
_LARGEST_GRID = 100_000_000
"""Points of all rates together: under a GiB, and under a minute on one core."""
_LARGEST_LOSS = 500.0
"""Of the privacy loss: its exponential is formed."""
_RELATIVE_ERROR, _LARGEST_ERROR = 0.01, 0.5
"""Error of epsilon that is allowed for, and added: a share of RDP's epsilon, and at most this."""
_DELTA_ERROR = 1e-3
"""Share of delta that is set aside for the loss beyond the grid."""


class _Grid(NamedTuple):
    """The grid on which privacy losses are composed."""

    loss: float
    """It runs from minus this to this."""
    mesh: float
    points: int
    """Of all rates together."""


class PRVAccountant(Accountant):
    """As :class:`Accountant`, with the smaller epsilon of Opacus' PRV analysis where affordable.

    Formal guarantees:
        As :class:`Accountant`. Opacus composes the loss of removing one unit, which is taken to
        dominate that of adding one.

    Edge cases: where the grid would exceed ``_LARGEST_GRID`` points or losses of ``_LARGEST_LOSS``,
    and without rounds or noise, epsilon is RDP's; :meth:`accounted_by` says so.
    """

    def epsilon(self, delta: float) -> float:
        """The smaller of both analyses' bounds on the epsilon spent so far, at delta in (0, 1).

        Raises:
            ValueError: delta is not in (0, 1).
        """
        bound = super().epsilon(delta)
        grid = self._grid(delta, bound)
        return bound if grid is None else min(bound, self._composed(delta, bound, grid))

    def accounted_by(self, delta: float) -> str:
        """The analysis behind :meth:`epsilon`."""
        rdp = super().accounted_by(delta)
        if self._grid(delta, super().epsilon(delta)) is None:
            return f"{rdp}; PRV needs more noise or fewer rounds"
        return "PRV (Opacus)"

    def assumptions(self) -> list[str]:
        """What must hold for epsilon to be valid, one sentence each."""
        return [
            *super().assumptions(),
            "PRV analysis composes the loss of removing a unit, taken to dominate adding one.",
        ]

    def _grid(self, delta: float, bound: float) -> _Grid | None:
        """The grid for an RDP epsilon of ``bound``; None where it is too large."""
        if not self._counts or not bound < _LARGEST_LOSS:
            return None
        spare = _DELTA_ERROR * delta
        # As in Opacus' compute_safe_domain_size, of which only two RDP bounds matter here: losses
        # of one round are largest where the sampling rate is.
        once = Accountant(self.noise_multiplier)
        once.step(max(rate for _, rate in self._counts))
        loss = 3 + max(
            super().epsilon(spare / 4), once.epsilon(spare / (8 * self.steps)), _error(bound)
        )
        mesh = _error(bound) / math.sqrt(self.steps * math.log(12 / spare) / 2)
        points = len(self._rounds()) * 2 * loss / mesh
        fits = points <= _LARGEST_GRID and loss < _LARGEST_LOSS
        return _Grid(loss, mesh, math.ceil(points)) if fits else None

    def _composed(self, delta: float, bound: float, grid: _Grid) -> float:
        """The upper bound on epsilon from all rounds' convolved privacy losses."""
        from opacus.accountants.analysis import prv

        domain = prv.Domain.create_aligned(-grid.loss, grid.loss, grid.mesh)
        rounds = self._rounds()
        # A rate of 1 has no smallest loss: Opacus takes the logarithm of 0 for it.
        with np.errstate(divide="ignore"):
            losses = [
                prv.discretize(
                    prv.TruncatedPrivacyRandomVariable(
                        prv.PoissonSubsampledGaussianPRV(rate, noise), domain.t_min, domain.t_max
                    ),
                    domain,
                )
                for noise, rate in rounds
            ]
        composed = prv.compose_heterogeneous(losses, list(rounds.values()))
        return float(composed.compute_epsilon(delta, _DELTA_ERROR * delta, _error(bound))[2])

    def _rounds(self) -> dict[tuple[float, float], int]:
        """Rounds by (noise multiplier, sampling rate), the rates rounded up to the coarser grid."""
        merged: dict[tuple[float, float], int] = {}
        for (noise, rate), count in self._counts.items():
            step = math.floor(-math.log(rate) / _COARSE + 1e-6)
            at = noise, math.exp(-step * _COARSE)
            merged[at] = merged.get(at, 0) + count
        return merged


def _error(bound: float) -> float:
    return min(_LARGEST_ERROR, max(0.01, _RELATIVE_ERROR * bound))
