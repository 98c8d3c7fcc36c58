"""Secure aggregation: the server learns sums over groups of clients, not the summands.

The one-round core of Bonawitz et al. 2017 (CCS, section 4): every pair of clients in a group agrees
on a secret (X25519, HKDF-SHA256), expands it to a mask (AES-256-CTR), and one adds the mask that
the other subtracts, so that all masks cancel in the sum. Transport is simulated within one process;
the arithmetic and the cryptography are real. Clients that drop out are not recovered, so every
client of a group must answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray
from torch import Tensor

from defenses.aggregation import Aggregate, View
from defenses.registry import DefenseError, register_defense
from defenses.stages import Payload

Words = NDArray[np.uint64]

RING_BITS = 64
WORD_BYTES = RING_BITS // 8


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

    A coordinate x is encoded as round(2^f x), after clamping to [-range, range]; f is the largest
    number of fractional bits for which a sum over the group cannot wrap. Coordinates beyond the
    range are counted (``Session.saturation_rate``); a NaN is sent as 0 and counted too.

    Formal guarantees:
        Against an honest-but-curious server, a view reveals its group's sum and nothing else, up to
        the security of X25519, HKDF and AES. A server that lies about the participants, sends
        different models or runs clients of its own is outside this claim. The sum itself is exact:
        there is no differential privacy.

    Raises:
        DefenseError: ``range`` is not a finite number above 0, or too large for the ring.
    """

    clients: int | None = None
    """Clients in a sum; None: all clients of the session."""
    range: float = 2.0**16
    """Largest magnitude of a coordinate that is encoded without clamping."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.range) and 0 < self.range <= 2.0**40):
            raise DefenseError(
                f"secagg@range={self.range}: the range must be above 0 and up to 2^40, e.g. 65536"
            )

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data; ``clients`` is None if all clients are in one sum."""
        group = "all clients" if self.clients is None else f"each group of {self.clients} clients"
        return {
            "mechanism": "secagg",
            "stage": "aggregation",
            "clients": self.clients,
            "ring_bits": RING_BITS,
            "range": self.range,
            "formal_guarantee": False,
            "server_receives": f"the sum of the releases of {group}, in fixed point",
            "sensitivity": "that of the stages before: the sum is exact",
            "unit": None,
            "guarantee": "no formal guarantee: an honest-but-curious server learns the sum only",
        }

    def bind(self, clients: int, parameters: int, generator: torch.Generator) -> SecureAggregator:
        """Agrees on keys among ``clients`` clients; private keys come from ``generator``.

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
        return SecureAggregator(clients, size, parameters, self.range, generator)

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """One ring word per coordinate: masks hide zeros and codes, so nothing is left out."""
        return Payload(parameters, bits=RING_BITS)


class SecureAggregator:
    """Clients' and server's sides of the protocol, bound to one session."""

    def __init__(
        self,
        clients: int,
        group_size: int,
        parameters: int,
        value_range: float,
        generator: torch.Generator,
    ) -> None:
        """Runs the key agreement of every group."""
        self.groups = [
            tuple(range(start, start + group_size)) for start in range(0, clients, group_size)
        ]
        self.value_range = value_range
        # Sums lie in [-group_size range, group_size range]: this must stay below 2^63.
        self.fraction_bits = RING_BITS - 2 - math.ceil(math.log2(value_range * group_size))
        self._keys = _agree_on_keys(self.groups, clients, generator)
        self._zeros = bytes(parameters * WORD_BYTES)
        self._mask = bytearray(parameters * WORD_BYTES + _AES_BLOCK - 1)
        self._round = 0
        self._saturated = 0
        self._encoded = 0

    @property
    def saturation_rate(self) -> float:
        """Share of all coordinates so far that were clamped (or NaN)."""
        return self._saturated / max(1, self._encoded)

    def aggregate(self, releases: Tensor) -> Aggregate:
        """One round: (clients, P) to one view per group."""
        uploads = self.masked_uploads(self.encode(releases))
        views = [
            View(group, self.decode_mean(uploads[list(group)]).to(releases))
            for group in self.groups
        ]
        return Aggregate(torch.stack([view.mean for view in views]).mean(0), views)

    def encode(self, releases: Tensor) -> Words:
        """Real numbers (clients, P) to ring words (clients, P)."""
        values = releases.detach().cpu().numpy()
        # NaN fails this comparison as well.
        inside = np.count_nonzero(np.abs(values) <= self.value_range)
        self._encoded += values.size
        if inside < values.size:
            self._saturated += int(values.size - inside)
            values = np.nan_to_num(values, nan=0.0).clip(-self.value_range, self.value_range)
        scaled = np.multiply(values, 2.0**self.fraction_bits, dtype=np.float64)
        return np.rint(scaled, out=scaled).astype(np.int64).view(np.uint64)

    def masked_uploads(self, words: Words) -> Words:
        """What each client sends this round: its words plus its masks, (clients, P), in place.

        Both ends of a pair expand the same mask; the simulation does so once for the two.
        """
        self._round += 1
        for (first, second), key in self._keys.items():
            mask = self._expand(key)
            words[first] += mask
            words[second] -= mask
        return words

    def decode_mean(self, uploads: Words) -> Tensor:
        """The mean (P,), float64, of the real numbers behind a complete group's uploads."""
        total = uploads.sum(axis=0, dtype=np.uint64).view(np.int64)
        return torch.from_numpy(total / (2.0**self.fraction_bits * len(uploads)))

    def _expand(self, key: bytes) -> Words:
        """The pair's mask of this round: AES-256-CTR keystream, the round in the nonce."""
        nonce = self._round.to_bytes(8, "big") + bytes(8)
        encryptor = Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor()
        encryptor.update_into(self._zeros, self._mask)
        return np.frombuffer(self._mask, dtype=np.uint64, count=len(self._zeros) // WORD_BYTES)


_AES_BLOCK = 16


def _agree_on_keys(
    groups: list[tuple[int, ...]], clients: int, generator: torch.Generator
) -> dict[tuple[int, int], bytes]:
    """A 256-bit key for every pair of clients that share a group."""
    device = generator.device
    seeds = torch.randint(
        256, (clients, 32), dtype=torch.uint8, generator=generator, device=device
    ).cpu()
    private = [X25519PrivateKey.from_private_bytes(bytes(seed.tolist())) for seed in seeds]
    public = [key.public_key() for key in private]
    raw = [
        key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        for key in public
    ]
    keys = {}
    for group in groups:
        for first, second in combinations(group, 2):
            derive = HKDF(hashes.SHA256(), 32, salt=None, info=raw[first] + raw[second])
            keys[first, second] = derive.derive(private[first].exchange(public[second]))
    return keys
