"""A client's side of one execution (Bonawitz et al. 2017, figure 4, without signatures)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from defenses.secagg_protocol.encoding import Words
from defenses.secagg_protocol.keys import (
    KEY_BYTES,
    SEED_BYTES,
    KeyPair,
    derive,
    mask,
    seal,
    self_mask,
    unseal,
)
from defenses.secagg_protocol.messages import Advertisement, Unmasking, require
from defenses.secagg_protocol.sharing import split


class Client:
    """Answers the server's four requests, once each and in order."""

    def __init__(self, index: int, clients: int, threshold: int, secret: bytes) -> None:
        """Derives this execution's keys.

        Args:
            index: From 0; its position in the group.
            clients: n, the size of the group.
            threshold: t, shares that open a secret.
            secret: Fresh in every execution, since the server may learn the mask key of a client
                that drops out.
        """
        self.index = index
        self._clients = clients
        self._threshold = threshold
        self._channel = KeyPair(derive(secret, b"channel key"))
        self._mask = KeyPair(derive(secret, b"mask key"))
        self._seed = derive(secret, b"self-mask seed", SEED_BYTES)
        self._peers: dict[int, Advertisement] = {}
        self._kept: dict[int, bytes] = {}
        self._uploaded_with: frozenset[int] = frozenset()
        self._unmasked = False

    def advertise(self) -> Advertisement:
        """Step 1: both public keys."""
        return Advertisement(self.index, self._channel.public, self._mask.public)

    def share(self, advertisements: Sequence[Advertisement]) -> dict[int, bytes]:
        """Step 2: sealed shares of the mask key and of the self-mask seed, by receiver.

        Raises:
            ThresholdError: fewer than the threshold advertised.
            ValueError: two clients advertised the same key.
        """
        require("advertise", len(advertisements), self._clients, self._threshold)
        keys = {key for peer in advertisements for key in (peer.channel, peer.mask)}
        if len(keys) < 2 * len(advertisements):
            raise ValueError("secure aggregation: two clients advertised the same key")
        self._peers = {peer.client: peer for peer in advertisements}
        key_shares = split(self._mask.private, self._threshold, self._clients)
        seed_shares = split(self._seed, self._threshold, self._clients)
        sealed = {}
        for receiver in self._peers:
            message = key_shares[receiver] + seed_shares[receiver]
            if receiver == self.index:
                self._kept[self.index] = message
            else:
                key = self._channel_key(receiver)
                sealed[receiver] = seal(key, self.index, receiver, message)
        return sealed

    def upload(self, words: Words, sealed: Mapping[int, bytes]) -> Words:
        """Step 3: the words plus the self-mask and one mask for every client that shared.

        Of two clients the one with the lower index adds their mask, the other subtracts it.

        Args:
            words: (P,) encoded numbers.
            sealed: The messages for this client, by sender.

        Raises:
            ThresholdError: fewer than the threshold shared their secrets.
        """
        require("share", len(sealed) + 1, self._clients, self._threshold)
        for sender, message in sealed.items():
            self._kept[sender] = unseal(self._channel_key(sender), sender, self.index, message)
        self._uploaded_with = frozenset(self._kept)
        masked = words + self_mask(self._seed, len(words))
        for peer in sealed:
            pairwise = mask(self._mask.agree(self._peers[peer].mask, b"mask"), len(words))
            if self.index < peer:
                masked += pairwise
            else:
                masked -= pairwise
        return masked

    def unmask(self, survivors: Sequence[int]) -> Unmasking:
        """Step 4: shares that remove the survivors' self-masks and the others' pairwise masks.

        Answers one request only: two different ones could open both masks of one client.

        Raises:
            ThresholdError: fewer than the threshold uploaded.
            ValueError: asked twice, or for a client that never shared.
        """
        require("upload", len(survivors), self._clients, self._threshold)
        if self._unmasked or not self._uploaded_with.issuperset(survivors):
            raise ValueError("secure aggregation: the server asked for shares it may not have")
        self._unmasked = True
        dropped = self._uploaded_with.difference(survivors)
        return Unmasking(
            self.index,
            self_seeds={owner: self._kept[owner][KEY_BYTES:] for owner in survivors},
            mask_keys={owner: self._kept[owner][:KEY_BYTES] for owner in sorted(dropped)},
        )

    def _channel_key(self, peer: int) -> bytes:
        return self._channel.agree(self._peers[peer].channel, b"channel")
