"""Distributed differential privacy: every client adds its share of the noise inside the ring.

Within secure aggregation the server sees nothing but a sum, so the noise that protects a client may
come from all clients together: with n clients, each adds 1/n of the variance that central noise
would need, where local noise would add all of it n times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defenses.aggregation import Aggregate
from defenses.client_accounting import ClientAccountant
from defenses.registry import DefenseError, register_defense
from defenses.secagg_protocol.encoding import RING_BITS, FixedPoint, Words
from defenses.secagg_protocol.groups import MaskedSums, answers_needed, check_participation
from defenses.secure_aggregation import decoded
from defenses.stages import Payload

_RESOLUTION = 32
"""A step of the encoding is at most 2^-32 of the clipping norm and of the noise: so fine that a
rounded Gaussian is a discrete one for every purpose, and coarse enough for a float64 draw."""
_TAIL = 16.0
"""Noise is cut off at this many standard deviations: float64 generators end before it."""


@register_defense(
    "distributed-dp",
    stage="aggregation",
    level="noise multiplier",
    grid=(0.001, 0.01, 0.1),
    minimum=0.0,
    maximum=1e4,
    private_end="high",
    summary="secagg over all clients; each clips its whole gradient and adds a share of the noise",
    guarantee="(epsilon, delta)-DP per client, if enough clients are honest",
    in_default_sweep=False,
)
@dataclass(frozen=True)
class DistributedDP:
    """Whole-client clipping and rounded Gaussian noise under secure aggregation over all clients.

    A client scales its release g to an L2 norm of at most C = ``clip``, encodes it in fixed point
    and adds round(N(0, s^2)) to every word, s = z C / sqrt(t) in steps of the encoding, where z is
    the noise multiplier and t the number of clients that must answer. Any t clients that do carry
    noise of variance (z C)^2 in their sum; more carry more.

    Rounding is the discrete Gaussian's in effect. With integer k, |k| <= 16 s, the probability of a
    rounded Gaussian is that of a discrete one times exp(x) with -1/(8 s^2) <= x <= k^2/(24 s^4)
    (the mean of exp(-k u / s^2 - u^2 / (2 s^2)) over u in [-1/2, 1/2]), and s >= 2^32 here: over a
    million coordinates and a hundred clients |x| adds up to less than 1e-10. For sums of discrete
    Gaussians, Kairouz, Liu and Steinke 2021 (arXiv 2102.06387, theorem 1) give the privacy of one
    Gaussian of the summed variance, up to 10 sum_k exp(-2 pi^2 s^2 k / (k + 1)), which is zero in
    any floating point. Clipping leaves room for the rounding of the release itself, sqrt(P) / 2
    steps.

    Formal guarantees:
        (epsilon, delta)-DP of a whole client over all rounds; see
        ``defenses.client_accounting.ClientAccountant`` for epsilon and all assumptions. A client's
        sensitivity is ``clip`` on the sum.

    Edge cases: noise multiplier 0 only clips (epsilon infinite); a non-finite release counts as
    zeros; a share of noise below about ``clip`` times clients / 2^29 does not fit into the words
    beside a release and is refused.

    Raises:
        DefenseError: an option is out of range.
    """

    noise_multiplier: float
    clip: float = 1.0
    """C: largest L2 norm of a client's release."""
    dropout: float = 0.0
    """Probability that a client leaves a round; as in ``SecureAggregation``."""
    threshold: float = 2 / 3
    """Share of the clients, rounded up, that must answer and whose noise is counted on."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise DefenseError(
                f"distributed-dp@clip={self.clip}: the clipping norm must be above 0, e.g. 1.0"
            )
        check_participation("distributed-dp", self.dropout, self.threshold)

    def describe(self, batch_size: int, clients: int | None = None) -> dict[str, Any]:
        """Plain data; ``noise_std`` is per coordinate of one client's share.

        Without the number of clients their shares are open, and the entry says what the sum holds.
        """
        total = self.noise_multiplier * self.clip
        described: dict[str, Any] = {
            "mechanism": "distributed-dp",
            "stage": "aggregation",
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": self.clip,
            "clients": clients,
            "ring_bits": RING_BITS,
            "dropout": self.dropout,
            "threshold": self.threshold,
            "formal_guarantee": self.noise_multiplier > 0,
            "server_receives": "the sum over all clients that answered of their gradients, each "
            f"clipped to an L2 norm of {self.clip:g}, with Gaussian noise of standard deviation "
            f"{total:g} or more on every coordinate of the sum",
            "sensitivity": f"{self.clip:g} (L2) of the sum, for one client",
            "unit": ClientAccountant.unit,
            "guarantee": "(epsilon, delta)-DP by RDP accounting (Opacus), while at least the "
            "threshold of clients in a sum are honest. Clients that collude with the server, or "
            "sybils that it runs, take their share of the noise out again: h honest ones of the "
            "threshold t leave sqrt(h / t) of its standard deviation, a single one 1 / sqrt(t)"
            if self.noise_multiplier > 0
            else "none without noise: epsilon is infinite",
        }
        if clients is not None:
            described["noise_std"] = self.share_std(clients)
        return described

    def share_std(self, clients: int) -> float:
        """Standard deviation of the noise that each of ``clients`` clients adds."""
        total = self.noise_multiplier * self.clip
        return total / math.sqrt(answers_needed(clients, self.threshold))

    def accountant(self) -> ClientAccountant:
        """A fresh accountant of one client."""
        return ClientAccountant(self.noise_multiplier)

    def bind(self, clients: int, parameters: int, generator: torch.Generator) -> NoisyAggregator:
        """Chooses the encoding for this many clients.

        Raises:
            DefenseError: fewer than 2 clients, or noise that 64-bit words cannot carry.
        """
        if clients < 2:
            raise DefenseError("distributed-dp needs at least 2 clients")
        share = self.share_std(clients)
        bits = _fraction_bits(self.clip, share)
        try:
            encoding = FixedPoint(self.clip + _TAIL * share, terms=clients, fraction_bits=bits)
        except ValueError as error:
            raise DefenseError(
                f"distributed-dp={self.noise_multiplier:g}: 64-bit words cannot carry this noise "
                f"for {clients} clients ({error})"
            ) from error
        room = 0.5 * encoding.step * math.sqrt(parameters)
        return NoisyAggregator(
            MaskedSums(clients, clients, self.dropout, self.threshold, generator),
            encoding,
            norm=self.clip - room,
            noise_std=share,
            generator=generator,
        )

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """One ring word per coordinate."""
        return Payload(parameters, bits=RING_BITS)


def _fraction_bits(clip: float, share: float) -> int:
    """Steps of at most 2^-32 of the smaller of clipping norm and noise."""
    finest = min(clip, share) if share > 0 else clip
    return _RESOLUTION - math.floor(math.log2(finest))


class NoisyAggregator:
    """Clips, encodes and noises every client's release, and adds them up without showing them."""

    def __init__(
        self,
        sums: MaskedSums,
        encoding: FixedPoint,
        norm: float,
        noise_std: float,
        generator: torch.Generator,
    ) -> None:
        """``noise_std``: of one client's share, in units of the release."""
        self._sums = sums
        self.encoding = encoding
        self.noise_std = noise_std
        self._norm = norm
        self._generator = generator

    @property
    def saturation_rate(self) -> float:
        """Share of all coordinates so far that were not finite."""
        return self.encoding.saturation_rate

    @property
    def error_bound(self) -> float:
        """Half a step of the fixed point, 2^-33 of the clipping norm or less."""
        return self.encoding.step / 2

    def aggregate(self, releases: Tensor) -> Aggregate:
        """One execution over all clients: (clients, P) to one view."""
        sums = self._sums.execute(self.noised_words(releases))
        return decoded(sums, self.encoding, releases)

    def mean(self, releases: Tensor) -> Tensor:
        """(clients, P) to ``aggregate(releases).mean``, bit for bit, without masks."""
        sums = self._sums.add_up(self.noised_words(releases))
        return decoded(sums, self.encoding, releases).mean

    def noised_words(self, releases: Tensor) -> Words:
        """(clients, P) words of what each client puts into the sum."""
        words = self.encoding.encode(self._clipped(releases))
        noise = torch.empty(
            words.shape, dtype=torch.float64, device=self._generator.device
        ).normal_(generator=self._generator)
        noise = noise.cpu().clamp_(-_TAIL, _TAIL).mul_(self.noise_std / self.encoding.step)
        words += noise.round_().numpy().astype(np.int64).view(np.uint64)
        return words

    def _clipped(self, releases: Tensor) -> Tensor:
        """(clients, P) float64 with norms of at most ``norm``; a non-finite row becomes NaN."""
        numbers = releases.detach().double()
        norms = torch.linalg.vector_norm(numbers, dim=1, keepdim=True)
        factors = (self._norm / norms.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
        return torch.where(norms.isfinite(), numbers * factors, torch.nan)
