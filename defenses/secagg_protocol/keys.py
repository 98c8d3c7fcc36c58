"""Key agreement, mask expansion and sealed messages, all from ``cryptography``.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), AES-256-CTR as the mask generator, AES-256-GCM for
messages from client to client that the server forwards.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from defenses.secagg_protocol.encoding import WORD_BYTES, Words

KEY_BYTES = 32
SEED_BYTES = 16
"""Of a self-mask seed: what one Shamir share carries."""

_AES_BLOCK = 16


def derive(secret: bytes, purpose: bytes, length: int = KEY_BYTES) -> bytes:
    """A key that is independent of those of other purposes."""
    return HKDF(hashes.SHA256(), length, salt=None, info=purpose).derive(secret)


class KeyPair:
    """An X25519 key pair."""

    def __init__(self, private: bytes) -> None:
        """From 32 secret bytes."""
        self.private = private
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    def agree(self, other: bytes, purpose: bytes) -> bytes:
        """The 256-bit key that both owners of the two pairs arrive at.

        Args:
            other: The other's public key.
            purpose: Separates keys of the same two pairs.
        """
        shared = self._key.exchange(X25519PublicKey.from_public_bytes(other))
        return derive(shared, purpose + b"".join(sorted((self.public, other))))


def mask(key: bytes, words: int) -> Words:
    """``words`` uniform ring words from a key that is used once: the AES-256-CTR keystream."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(_AES_BLOCK))).encryptor()
    return np.frombuffer(encryptor.update(bytes(words * WORD_BYTES)), dtype=np.uint64)


def self_mask(seed: bytes, words: int) -> Words:
    """The mask that a self-mask seed expands to."""
    return mask(derive(seed, b"self mask"), words)


def seal(key: bytes, sender: int, receiver: int, message: bytes) -> bytes:
    """``message``, encrypted and authenticated; each key and sender seals one message only."""
    return AESGCM(key).encrypt(_nonce(sender), message, _route(sender, receiver))


def unseal(key: bytes, sender: int, receiver: int, sealed: bytes) -> bytes:
    """The inverse of :func:`seal`.

    Raises:
        cryptography.exceptions.InvalidTag: it is not what that sender sealed for that receiver.
    """
    return AESGCM(key).decrypt(_nonce(sender), sealed, _route(sender, receiver))


def _nonce(sender: int) -> bytes:
    return sender.to_bytes(12, "big")


def _route(sender: int, receiver: int) -> bytes:
    return sender.to_bytes(4, "big") + receiver.to_bytes(4, "big")
