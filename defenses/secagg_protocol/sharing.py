"""Shamir's t-of-n secret sharing, from PyCryptodome: over GF(2^128), 16 bytes at a time.

Any t shares give the secret back; t - 1 or fewer are independent of it. The polynomials are drawn
from the operating system's generator: no sum and no mask depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from Crypto.Protocol.SecretSharing import Shamir

_BLOCK = 16


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """One share, as long as the secret, for each of the holders 0, 1, ...

    Args:
        secret: A multiple of 16 bytes.
        threshold: t, from 2 to ``holders``.
        holders: n.
    """
    blocks = [secret[at : at + _BLOCK] for at in range(0, len(secret), _BLOCK)]
    split_blocks = [Shamir.split(threshold, holders, block) for block in blocks]
    return [b"".join(shares[holder][1] for shares in split_blocks) for holder in range(holders)]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret behind shares, by holder; uses ``threshold`` of them.

    Fewer give no error but another secret, as good as drawn at random.
    """
    used = dict(islice(sorted(shares.items()), threshold))
    length = len(next(iter(used.values())))
    return b"".join(
        Shamir.combine([(holder + 1, share[at : at + _BLOCK]) for holder, share in used.items()])
        for at in range(0, length, _BLOCK)
    )
