"""Privacy accounting for one client whose every round carries the full noise."""

from __future__ import annotations

import math
import warnings
from typing import Any


class ClientAccountant:
    """Accumulates the privacy loss of one whole client over all rounds of a run.

    Each round is one Gaussian mechanism at sampling rate 1: the client takes part whether or not
    its data are there, so nothing is gained by subsampling. The numbers are those of Opacus'
    ``RDPAccountant``: the Rényi divergence of T rounds at order a is T a / (2 z^2).

    Formal guarantees:
        (epsilon, delta)-DP of everything that the client ever sent, against an adversary who sees
        the sums of all rounds, when all of its contributions are replaced by zeros; if what
        :meth:`assumptions` lists holds.

    Edge cases: no round yet gives epsilon 0; noise multiplier 0 gives infinity.
    """

    unit = "client (all it ever sends, or zeros instead)"

    def __init__(self, noise_multiplier: float) -> None:
        """An accountant with no round yet.

        Args:
            noise_multiplier: z: the standard deviation of the noise on the sum over clients,
                divided by the L2 norm that one client can add to it; >= 0.

        Raises:
            ValueError: it is negative or not finite.
        """
        if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
            raise ValueError(f"noise multiplier must be finite and >= 0, not {noise_multiplier}")
        self.noise_multiplier = noise_multiplier
        self.steps = 0
        """Rounds so far."""

    @property
    def rounds(self) -> tuple[tuple[float, float, int], ...]:
        """(noise multiplier, sampling rate, number of rounds): the client takes part in all."""
        return ((self.noise_multiplier, 1.0, self.steps),) if self.steps else ()

    def accounted_by(self, delta: float) -> str:
        """The analysis behind the epsilon at ``delta``."""
        return "RDP (Opacus)"

    def step(self, sample_rate: float) -> None:
        """Adds one round; how the client samples its own records makes no difference to it."""
        self.steps += 1

    def delta(self, records: int) -> float:
        """The delta to state epsilon at: 1e-5, however many ``records`` the client holds.

        The convention 1 / (number of units) says nothing useful of a handful of clients.
        """
        return 1e-5

    def epsilon(self, delta: float) -> float:
        """The epsilon spent so far at ``delta`` in (0, 1).

        Raises:
            ValueError: delta is not in (0, 1).
        """
        if not 0 < delta < 1:
            raise ValueError(f"delta must be in (0, 1), not {delta}")
        if not self.steps:
            return 0.0
        if self.noise_multiplier == 0:
            return math.inf
        # Opacus takes a second to import; only the numbers need it.
        from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

        per_order = self.steps / (2 * self.noise_multiplier**2)
        # The best order is near 1 + sqrt(log(1 / delta) / (T / (2 z^2))); every order is valid.
        near = math.sqrt(math.log(1 / delta) / per_order)
        orders = [1 + near * 1.05**k for k in range(-60, 61)]
        rdp = compute_rdp(
            q=1.0, noise_multiplier=self.noise_multiplier, steps=self.steps, orders=orders
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Optimal order is the")
            return float(get_privacy_spent(orders=orders, rdp=rdp, delta=delta)[0])

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {"noise_multiplier": self.noise_multiplier, "steps": self.steps}

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
        self.steps = int(state["steps"])

    @staticmethod
    def assumptions() -> list[str]:
        """What must hold for epsilon to be valid, one sentence each."""
        return [
            "Unit: one client; everything it sends in all rounds, or zeros in its place. How many "
            "clients take part, and which, is public.",
            "Honest clients: in every sum at least the threshold of clients add their noise and "
            "keep it from the server. Clients that collude with it, or that it made up (sybils), "
            "count as having added none: with h honest clients in a sum of threshold t the noise "
            "left is sqrt(h / t) of what is accounted.",
            "Secure aggregation: the server sees sums only (an honest-but-curious server, which "
            "does not lie about who dropped out).",
            "Each client clips its whole release, critic and actor together, before it encodes it.",
            "No statistic of the data (such as an observation normaliser) is shared without noise.",
            "The adversary sees every round and knows the mechanism.",
            "Noise comes from a seeded generator, for reproducibility; a deployment needs a "
            "secret seed or a cryptographic source.",
        ]
