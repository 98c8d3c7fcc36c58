"""Tighter accounting by numerical composition, where it can be afforded.

Gopi, Lee and Wutschitz 2021 (arXiv 2106.02848) convolve the privacy loss variables of all rounds
on a grid. Its points grow with epsilon and with the number of rounds: at the noise that most
policies survive it would take tens of GiB, so the size of the grid is reckoned first and RDP's
epsilon stands where it is too large.
"""

from __future__ import annotations

import math
from functools import lru_cache

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

_Rounds = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sampling rate, number of rounds) of each mechanism."""


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
        composed = _composed(self.rounds, delta)
        return bound if composed is None else min(bound, composed)

    def accounted_by(self, delta: float) -> str:
        """The analysis behind :meth:`epsilon`."""
        composed = _composed(self.rounds, delta)
        if composed is None:
            return "RDP (Opacus; PRV's grid would be too large)"
        return "PRV (Opacus)" if composed < super().epsilon(delta) else "RDP (Opacus)"

    def assumptions(self) -> list[str]:
        """What must hold for epsilon to be valid, one sentence each."""
        return [
            *super().assumptions(),
            "PRV analysis composes the loss of removing a unit, taken to dominate adding one.",
        ]

    @property
    def rounds(self) -> _Rounds:
        """As of :class:`Accountant`, the rates rounded up to a coarser grid."""
        merged: dict[tuple[float, float], int] = {}
        for (noise, rate), count in self._counts.items():
            step = math.floor(-math.log(rate) / _COARSE + 1e-6)
            at = noise, math.exp(-step * _COARSE)
            merged[at] = merged.get(at, 0) + count
        return tuple((noise, rate, count) for (noise, rate), count in merged.items())


@lru_cache(maxsize=64)
def _composed(rounds: _Rounds, delta: float) -> float | None:
    """The upper bound on epsilon from all rounds' convolved losses; None where unaffordable.

    Kept, because the clients of a run share their rounds.
    """
    if not rounds:
        return None
    least_noise = min(noise for noise, _, _ in rounds)
    accountant, once = Accountant(least_noise), Accountant(least_noise)
    accountant.load_state({"noise_multiplier": least_noise, "history": rounds})
    bound = accountant.epsilon(delta)
    if not bound < _LARGEST_LOSS:
        return None
    error = min(_LARGEST_ERROR, max(0.01, _RELATIVE_ERROR * bound))
    spare = _DELTA_ERROR * delta
    # As in Opacus' compute_safe_domain_size, of which only two RDP bounds matter here: losses of
    # one round are largest where the noise is least and the sampling rate highest.
    once.step(max(rate for _, rate, _ in rounds))
    steps = accountant.steps
    loss = 3 + max(accountant.epsilon(spare / 4), once.epsilon(spare / (8 * steps)), error)
    mesh = error / math.sqrt(steps * math.log(12 / spare) / 2)
    if loss >= _LARGEST_LOSS or len(rounds) * 2 * loss / mesh > _LARGEST_GRID:
        return None
    from opacus.accountants.analysis import prv

    domain = prv.Domain.create_aligned(-loss, loss, mesh)
    # A rate of 1 has no smallest loss: Opacus takes the logarithm of 0 for it.
    with np.errstate(divide="ignore"):
        losses = [
            prv.discretize(
                prv.TruncatedPrivacyRandomVariable(
                    prv.PoissonSubsampledGaussianPRV(rate, noise), domain.t_min, domain.t_max
                ),
                domain,
            )
            for noise, rate, _ in rounds
        ]
    composed = prv.compose_heterogeneous(losses, [count for _, _, count in rounds])
    return float(composed.compute_epsilon(delta, spare, error)[2])
