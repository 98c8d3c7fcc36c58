"""Secure aggregation: the server learns sums over groups of clients, not the summands.

The protocol of Bonawitz et al. 2017 (CCS, section 4 and figure 4) for an honest-but-curious server:
keys are agreed on, every client shares its secrets with t-of-n Shamir sharing, uploads are masked
twice, and what clients leave behind that drop out on the way is removed from the sum. See
``defenses.secagg_protocol``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defenses.aggregation import Aggregate, View
from defenses.registry import DefenseError, register_defense
from defenses.secagg_protocol.encoding import RING_BITS, FixedPoint, Words
from defenses.secagg_protocol.groups import MaskedSums, check_participation
from defenses.stages import Payload


@register_defense(
    "secagg",
    stage="aggregation",
    level="clients",
    grid=(2, 4),
    minimum=2,
    integer=True,
    optional_level=True,
    private_end="high",
    summary="the server sees only the sum over groups of this many clients (all, if left out)",
    guarantee="no formal guarantee",
)
@dataclass(frozen=True)
class SecureAggregation:
    """Sums over groups of ``clients`` clients, in fixed point in the ring Z_2^64.

    Coordinates are clamped to [-range, range] and rounded to the finest step for which a sum over
    the group cannot wrap (``defenses.secagg_protocol.encoding``). Coordinates beyond the range are
    counted (``Session.saturation_rate``); a NaN is sent as 0 and counted too.

    With ``dropout`` each client leaves each round with that probability, before a step of the
    protocol drawn at random. One that leaves before its upload is not in the sum, and the mean is
    over those that are. A group in which fewer than ``threshold`` of the clients answer opens no
    sum; a round in which no group does raises ``ThresholdError``.

    Formal guarantees:
        Against an honest-but-curious server together with fewer than the threshold of a group's
        clients, a view reveals the sum of the other survivors and nothing else, up to the security
        of X25519, HKDF and AES. A server that lies about who dropped out, sends different models or
        runs clients of its own is outside this claim. The sum itself is exact: there is no
        differential privacy.

    Raises:
        DefenseError: an option is out of range.
    """

    clients: int | None = None
    """Clients in a sum; None: all clients of the session."""
    range: float = 2.0**16
    """Largest magnitude of a coordinate that is encoded without clamping."""
    dropout: float = 0.0
    """Probability that a client leaves a round."""
    threshold: float = 2 / 3
    """Share of a group, rounded up, that must answer; at least two clients. Above one half, so that
    no two sets of clients can open both masks of one upload."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.range) and 0 < self.range <= 2.0**40):
            raise DefenseError(
                f"secagg@range={self.range}: the range must be above 0 and up to 2^40, e.g. 65536"
            )
        check_participation("secagg", self.dropout, self.threshold)

    def describe(self, batch_size: int, clients: int | None = None) -> dict[str, Any]:
        """Plain data; ``clients`` in a sum is None if all are and their number is not known."""
        group = "all clients" if self.clients is None else f"each group of {self.clients} clients"
        left = " that did not drop out" if self.dropout else ""
        return {
            "mechanism": "secagg",
            "stage": "aggregation",
            "clients": self.clients or clients,
            "ring_bits": RING_BITS,
            "range": self.range,
            "dropout": self.dropout,
            "threshold": self.threshold,
            "formal_guarantee": False,
            "server_receives": f"the sum of the releases of {group}{left}, in fixed point",
            "sensitivity": "that of the stages before: the sum is exact",
            "unit": None,
            "guarantee": "no formal guarantee: an honest-but-curious server learns the sum only; "
            "clients that collude with it take their own releases out of it",
        }

    def accountant(self) -> None:
        """None: the sum is exact."""
        return

    def bind(self, clients: int, parameters: int, generator: torch.Generator) -> SecureAggregator:
        """Forms the groups; clients' long-term secrets come from ``generator``.

        Raises:
            DefenseError: the clients do not divide into groups of this size.
        """
        size = self.clients or clients
        if size < 2 or clients % size:
            raise DefenseError(
                f"secagg={size}: {clients} clients do not divide into groups of {size}"
                if size >= 2
                else "secagg needs at least 2 clients"
            )
        return SecureAggregator(
            MaskedSums(clients, size, self.dropout, self.threshold, generator),
            FixedPoint(self.range, terms=size),
        )

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """One ring word per coordinate: masks hide zeros and codes, so nothing is left out.

        Keys and shares, about 200 bytes for each other client of the group, are not counted.
        """
        return Payload(parameters, bits=RING_BITS)


class SecureAggregator:
    """Encodes the clients' releases and adds them up without showing them."""

    def __init__(self, sums: MaskedSums, encoding: FixedPoint) -> None:
        self._sums = sums
        self.encoding = encoding

    @property
    def saturation_rate(self) -> float:
        """Share of all coordinates so far that were clamped (or NaN)."""
        return self.encoding.saturation_rate

    @property
    def error_bound(self) -> float:
        """Half a step of the fixed point: rounding moves every summand by at most that."""
        return self.encoding.step / 2

    def aggregate(self, releases: Tensor) -> Aggregate:
        """One execution in every group: (clients, P) to one view for each sum that opened."""
        sums = self._sums.execute(self.encoding.encode(releases))
        return decoded(sums, self.encoding, releases)

    def mean(self, releases: Tensor) -> Tensor:
        """(clients, P) to ``aggregate(releases).mean``, bit for bit, without masks."""
        sums = self._sums.add_up(self.encoding.encode(releases))
        return decoded(sums, self.encoding, releases).mean


def decoded(sums: Mapping[tuple[int, ...], Words], encoding: FixedPoint, like: Tensor) -> Aggregate:
    """Means in type and place of ``like`` from ring sums by their members."""
    views = [
        View(members, (encoding.decode(total) / len(members)).to(like))
        for members, total in sums.items()
    ]
    weighted = torch.stack([len(view.members) * view.mean for view in views])
    return Aggregate(weighted.sum(0) / sum(map(len, sums)), views)
