"""Privacy accounting for one client whose replay grows while it trains."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import Any, Literal

Unit = Literal["transition", "trajectory"]
"""What may be added to or removed from one client's data."""

RATE_GRID = math.log(1.01)
"""Sampling rates and falling noise multipliers are kept on a geometric grid of 1%."""


class Accountant:
    """Accumulates the privacy loss of one client over all rounds of a run.

    Each round is one Poisson-subsampled Gaussian mechanism whose rate q_t = batch_size / n_t falls
    while the replay grows. Rates are rounded **up** to a 1% geometric grid, so that 100,000 rounds
    are a few hundred numbers; this can only overstate epsilon. Noise that falls by a factor every
    round is rounded **down** likewise. The numbers are those of Opacus'
    ``RDPAccountant`` (Mironov, Talwar and Zhang 2019, arXiv 1908.10530; conversion by Balle et al.
    2020, Theorem 21).

    Formal guarantees:
        (epsilon, delta)-DP of everything the client sent, against an adversary who sees all rounds,
        for one transition (or one trajectory) added to or removed from one client's data, if what
        :meth:`assumptions` lists holds. Nothing is said about anything larger.

    Edge cases: no round yet gives epsilon 0; noise multiplier 0 gives infinity.
    """

    def __init__(
        self,
        noise_multiplier: float,
        factor: float = 1.0,
        per: Unit = "transition",
        every: int = 1,
    ) -> None:
        """An accountant with no round yet.

        Args:
            noise_multiplier: Standard deviation of the first round's noise on the sum of clipped
                gradients, divided by the clipping norm; >= 0.
            factor: Each fall's noise multiplier over that before it, in (0, 1].
            per: What each round samples and clips by itself: transitions, or trajectories that give
                one transition each.
            every: Rounds between two falls of the noise.

        Raises:
            ValueError: one of them is out of range.
        """
        if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
            raise ValueError(f"noise multiplier must be finite and >= 0, not {noise_multiplier}")
        if not 0 < factor <= 1:
            raise ValueError(f"the noise's factor must be in (0, 1], not {factor}")
        self.noise_multiplier = noise_multiplier
        self.factor = factor
        self.per = per
        self.every = every
        self._counts: dict[tuple[float, float], int] = {}
        """Rounds by (noise multiplier, sampling rate)."""

    @property
    def unit(self) -> str:
        """What epsilon protects."""
        return f"{self.per} (add or remove one), one client"

    @property
    def steps(self) -> int:
        """Rounds so far."""
        return sum(self._counts.values())

    @property
    def rounds(self) -> tuple[tuple[float, float, int], ...]:
        """(noise multiplier, sampling rate, number of rounds) of each kind of round so far."""
        return tuple((noise, rate, count) for (noise, rate), count in self._counts.items())

    def accounted_by(self, delta: float) -> str:
        """The analysis behind the epsilon at ``delta``."""
        return "RDP (Opacus)"

    def step(self, sample_rate: float) -> None:
        """Adds one round in which each unit took part with probability ``sample_rate``.

        Raises:
            ValueError: the rate is not in (0, 1].
        """
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample rate must be in (0, 1], not {sample_rate}")
        at = self._noise_now(), round_up(sample_rate)
        self._counts[at] = self._counts.get(at, 0) + 1

    def delta(self, records: int) -> float:
        """The delta to state epsilon at: 1 / ``records`` (units), of the client with the fewest."""
        return 1 / records

    def epsilon(self, delta: float) -> float:
        """The epsilon spent so far at ``delta`` in (0, 1).

        Raises:
            ValueError: delta is not in (0, 1).
        """
        if not 0 < delta < 1:
            raise ValueError(f"delta must be in (0, 1), not {delta}")
        if not self._counts:
            return 0.0
        if self.noise_multiplier == 0:
            return math.inf
        # Opacus takes a second to import; only the numbers need it.
        from opacus.accountants import RDPAccountant

        # Every order gives a valid bound, and over the orders the bound falls, then rises: bisect
        # for its minimum, since computing all 151 orders takes half a minute for a long run.
        orders = RDPAccountant.DEFAULT_ALPHAS
        low, high = 0, len(orders) - 1
        while low < high:
            middle = (low + high) // 2
            if self._bound(orders[middle], delta) <= self._bound(orders[middle + 1], delta):
                high = middle
            else:
                low = middle + 1
        return self._bound(orders[low], delta)

    def _bound(self, order: float, delta: float) -> float:
        """The epsilon that follows from the Rényi divergence at one order."""
        from opacus.accountants.analysis.rdp import get_privacy_spent

        rdp = sum(
            count * _rdp_of_one_round(noise_multiplier, rate, order)
            for (noise_multiplier, rate), count in self._counts.items()
        )
        with warnings.catch_warnings():
            # Opacus advises to pass several orders whenever the best is the first or last one.
            warnings.filterwarnings("ignore", message="Optimal order is the")
            return float(get_privacy_spent(orders=[order], rdp=[rdp], delta=delta)[0])

    def _noise_now(self) -> float:
        """The coming round's noise multiplier, rounded down where it falls."""
        if self.factor == 1 or self.noise_multiplier == 0:
            return self.noise_multiplier
        falls = self.steps // self.every
        steps = math.ceil(-falls * math.log(self.factor) / RATE_GRID)
        return self.noise_multiplier * math.exp(-steps * RATE_GRID)

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {
            "noise_multiplier": self.noise_multiplier,
            "history": [[noise, rate, count] for (noise, rate), count in self._counts.items()],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from what :meth:`state` returned.

        Raises:
            ValueError: the state belongs to another noise multiplier.
        """
        if state["noise_multiplier"] != self.noise_multiplier:
            raise ValueError(
                f"state of noise multiplier {state['noise_multiplier']} "
                f"does not fit {self.noise_multiplier}"
            )
        self._counts = {
            (float(noise), float(rate)): int(count) for noise, rate, count in state["history"]
        }

    def assumptions(self) -> list[str]:
        """What must hold for epsilon to be valid, one sentence each."""
        sampling = {
            "transition": "Poisson sampling: each round takes each stored transition independently "
            "with probability batch size / replay size; that size is public.",
            "trajectory": "Poisson sampling: each round takes each stored trajectory independently "
            "with probability batch size / number of trajectories, and one transition of each that "
            "is taken; that number is public.",
        }
        return [
            f"Unit: one {self.per} added to or removed from one client's data.",
            sampling[self.per],
            "The sum of gradients is divided by a constant, never by the realised batch size.",
            "Critic and actor gradients are released together, as one clipped and noised vector.",
            "One-step TD targets from frozen networks: a transition enters one sample's loss only.",
            "No statistic of the data (such as an observation normaliser) is shared without noise.",
            "The adversary sees every round of the client and knows the mechanism.",
            f"What the client collects is taken as given: influence of one {self.per} on what the "
            "policy collects later is not counted.",
            "Noise comes from a seeded generator, for reproducibility; a deployment needs a "
            "secret seed or a cryptographic source.",
        ]


@lru_cache(maxsize=65536)
def _rdp_of_one_round(noise_multiplier: float, rate: float, order: float) -> float:
    """Rényi divergence of one round at one order; kept, because clients share rates."""
    from opacus.accountants.analysis.rdp import compute_rdp

    rdp = compute_rdp(q=rate, noise_multiplier=noise_multiplier, steps=1, orders=[order])
    return float(rdp[0])


def round_up(rate: float) -> float:
    """The smallest rate >= ``rate`` in (0, 1] on the 1% geometric grid that ends at 1."""
    index = math.floor(math.log(rate) / RATE_GRID)
    while math.exp(index * RATE_GRID) < rate:
        index += 1
    return min(1.0, math.exp(index * RATE_GRID))
