"""Homomorphic encryption: the server adds ciphertexts and learns the decrypted sum alone.

CKKS (Cheon et al. 2017, arXiv eprint 2016/421) through TenSEAL (Benaissa et al. 2021, arXiv
2104.03152), an optional dependency. Clients share one secret key, as in BatchCrypt (Zhang
et al. 2020, USENIX ATC), so encryption is symmetric: less noise than with a public key.

CKKS is approximate, and a server that sees a decryption together with its noise can solve for the
secret key (Li and Micciancio 2021, eprint 2020/1533). So clients round their numbers to a grid
whose half step exceeds the noise, and the decrypted sum is rounded to the same grid before it goes
out: it is the exact sum of what was encrypted, a function of the plaintexts alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from defenses.aggregation import Aggregate, View
from defenses.registry import DefenseError, register_defense
from defenses.secagg_protocol.encoding import FixedPoint, Words
from defenses.stages import Payload

RING_DEGREE = 8192
SLOTS = RING_DEGREE // 2
"""Numbers in one ciphertext."""
_MODULI = (60, 60)
"""Bits of the ciphertext modulus and of SEAL's special prime: 120 in all, where 218 still give 128
bits of security at this degree (Homomorphic Encryption Standard, table 1)."""
_ERROR_STD = 3.2
"""Of a fresh encryption's error polynomial in SEAL."""
_NOISE_DEVIATIONS = 16.0
"""Half a grid step, in standard deviations of the noise on one slot of a sum."""
_CIPHERTEXT_BYTES = 131_217
"""Two polynomials of 64-bit words and a header of 145 bytes, as TenSEAL 0.3 serialises them."""


@register_defense(
    "he",
    stage="aggregation",
    in_default_sweep=False,
    summary="CKKS (TenSEAL): the server adds ciphertexts and sees the sum of all clients only",
    guarantee="no formal guarantee",
)
@dataclass(frozen=True)
class Homomorphic:
    """One sum over all clients, under a CKKS key that the clients share.

    Coordinates are clamped to [-range, range], rounded to a grid, packed 4,096 to a ciphertext,
    encrypted, added up by the server and decrypted by a client, which rounds to the grid. That is
    the exact fixed-point sum unless the noise exceeds half a step, which is 16 standard deviations
    of it; ``aggregate`` compares and raises, so a wrong sum never goes unnoticed.

    Formal guarantees:
        Against an honest-but-curious server that colludes with no client, the view reveals the sum
        and nothing else, up to the security of CKKS at 128 bits. Any client holds the key, so one
        that colludes with the server opens every upload: weaker than ``secagg``. The sum is exact:
        there is no differential privacy.

    Ciphertexts take SEAL's own randomness, from the operating system; no number that comes out
    depends on it.

    Raises:
        DefenseError: ``range`` is not a finite number above 0, or too large.
    """

    range: float = 1024.0
    """Largest magnitude of a coordinate that is encoded without clamping; a power of two is best:
    what is left of the 60-bit modulus becomes resolution."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.range) and 0 < self.range <= 2.0**20):
            raise DefenseError(
                f"he@range={self.range}: the range must be above 0 and up to 2^20, e.g. 1024"
            )

    def describe(self, batch_size: int, clients: int | None = None) -> dict[str, Any]:
        """Plain data; ``clients`` is None if their number is not known."""
        return {
            "mechanism": "he",
            "stage": "aggregation",
            "clients": clients,
            "ring_degree": RING_DEGREE,
            "modulus_bits": sum(_MODULI),
            "range": self.range,
            "formal_guarantee": False,
            "server_receives": "ciphertexts, and the sum of the releases of all clients, in fixed "
            "point",
            "sensitivity": "that of the stages before: the sum is exact",
            "unit": None,
            "guarantee": "no formal guarantee: an honest-but-curious server learns the sum only, "
            "unless one client hands it the key that all share",
        }

    def accountant(self) -> None:
        """None: the sum is exact."""
        return

    def bind(
        self, clients: int, parameters: int, generator: torch.Generator
    ) -> HomomorphicAggregator:
        """Makes the clients' key and the server's context without it.

        Raises:
            DefenseError: TenSEAL is not installed, there are fewer than 2 clients, or the range
                leaves no resolution.
        """
        if clients < 2:
            raise DefenseError("he needs at least 2 clients")
        return HomomorphicAggregator(_tenseal(), clients, self.range)

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """Whole ciphertexts of every coordinate."""
        return Payload(0, header=math.ceil(parameters / SLOTS) * _CIPHERTEXT_BYTES)


class HomomorphicAggregator:
    """Clients' and server's sides, bound to one session."""

    def __init__(self, tenseal: ModuleType, clients: int, value_range: float) -> None:
        """``value_range``: largest magnitude of a coordinate."""
        # A coefficient of an encoded sum is at most scale * clients * range; it must stay below
        # half the 60-bit modulus, with a bit to spare for noise and for primes below 2^60.
        scale_bits = _MODULI[0] - 2 - math.ceil(math.log2(clients * value_range))
        noise = math.sqrt(clients * RING_DEGREE * (_ERROR_STD**2 + 1 / 12))
        bits = scale_bits - 1 - math.ceil(math.log2(_NOISE_DEVIATIONS * noise))
        self.encoding = FixedPoint(value_range, terms=clients, fraction_bits=bits)
        self.largest_noise = 0.0
        """Largest distance so far of a decrypted slot from the exact sum, in steps of the grid."""
        self._tenseal = tenseal
        self._clients = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            poly_modulus_degree=RING_DEGREE,
            coeff_mod_bit_sizes=list(_MODULI),
            encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
            n_threads=1,
        )
        self._clients.global_scale = 2.0**scale_bits
        self._server = tenseal.context_from(
            self._clients.serialize(
                save_secret_key=False, save_galois_keys=False, save_relin_keys=False
            )
        )

    @property
    def saturation_rate(self) -> float:
        """Share of all coordinates so far that were clamped (or NaN)."""
        return self.encoding.saturation_rate

    @property
    def error_bound(self) -> float:
        """Half a step of the grid: rounding moves every summand by at most that."""
        return self.encoding.step / 2

    def aggregate(self, releases: Tensor) -> Aggregate:
        """(clients, P) to one view: encrypts, adds ciphertexts, decrypts.

        Raises:
            DefenseError: the noise drowned the grid; probability below 1e-50 a coordinate.
        """
        words = self.encoding.encode(releases)
        uploads = [self.encrypt(row) for row in words]
        total = self.decrypt(self.add(uploads), words.shape[1])
        exact = words.sum(axis=0, dtype=np.uint64)
        steps = np.rint(total).astype(np.int64).view(np.uint64)
        self.largest_noise = max(
            self.largest_noise, float(np.abs(total - exact.view(np.int64)).max())
        )
        if not np.array_equal(steps, exact):
            raise DefenseError(
                "he: the noise of the ciphertexts exceeds half a step of the encoding "
                f"({self.largest_noise:.3g} steps), so the decrypted sum is wrong"
            )
        mean = self._mean(steps, releases)
        return Aggregate(mean, [View(tuple(range(len(releases))), mean)])

    def mean(self, releases: Tensor) -> Tensor:
        """(clients, P) to ``aggregate(releases).mean``, bit for bit, without encryption."""
        words = self.encoding.encode(releases)
        return self._mean(words.sum(axis=0, dtype=np.uint64), releases)

    def encrypt(self, words: Words) -> list[bytes]:
        """What a client uploads: its encoded numbers (P,) in serialised ciphertexts."""
        numbers = words.view(np.int64) * self.encoding.step
        return [
            self._tenseal.ckks_vector(self._clients, numbers[at : at + SLOTS]).serialize()
            for at in range(0, len(numbers), SLOTS)
        ]

    def add(self, uploads: list[list[bytes]]) -> list[bytes]:
        """The server's side: sums ciphertext by ciphertext, without the key."""
        sums = []
        for parts in zip(*uploads, strict=True):
            first, *others = (self._tenseal.ckks_vector_from(self._server, part) for part in parts)
            for other in others:
                first += other
            sums.append(first.serialize())
        return sums

    def decrypt(self, sums: list[bytes], parameters: int) -> np.ndarray:
        """A client's side: the sum (P,) in steps of the grid, with the noise still on it."""
        slots = [self._tenseal.ckks_vector_from(self._clients, part).decrypt() for part in sums]
        return np.concatenate(slots)[:parameters] / self.encoding.step

    def _mean(self, total: Words, releases: Tensor) -> Tensor:
        return (self.encoding.decode(total) / len(releases)).to(releases)


def _tenseal() -> ModuleType:
    try:
        import tenseal
    except ModuleNotFoundError as error:
        raise DefenseError("he needs TenSEAL: pip install privguard[he]") from error
    return tenseal
