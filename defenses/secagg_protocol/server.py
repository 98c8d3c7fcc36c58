"""The server's side of one execution (Bonawitz et al. 2017, figure 4, without signatures)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from defenses.secagg_protocol.encoding import Words
from defenses.secagg_protocol.keys import KeyPair, mask, self_mask
from defenses.secagg_protocol.messages import Advertisement, Unmasking, require
from defenses.secagg_protocol.sharing import combine


class Server:
    """Collects what clients send in each step, forwards it and opens the sum, nothing else."""

    def __init__(self, clients: int, threshold: int) -> None:
        """For a group of ``clients`` of which ``threshold`` must answer in every step."""
        self._clients = clients
        self._threshold = threshold
        self._public: dict[int, bytes] = {}
        self._sharing: tuple[int, ...] = ()
        self.uploads: dict[int, Words] = {}
        """What each client uploaded, masked."""

    def collect_keys(self, advertisements: Sequence[Advertisement]) -> list[Advertisement]:
        """After step 1: everyone's keys, for everyone.

        Raises:
            ThresholdError: too few clients; so do the other steps.
        """
        require("advertise", len(advertisements), self._clients, self._threshold)
        self._public = {peer.client: peer.mask for peer in advertisements}
        return list(advertisements)

    def route_shares(
        self, sealed: Mapping[int, Mapping[int, bytes]]
    ) -> dict[int, dict[int, bytes]]:
        """After step 2: messages by sender and receiver to messages by receiver and sender."""
        require("share", len(sealed), self._clients, self._threshold)
        self._sharing = tuple(sealed)
        return {
            receiver: {
                sender: messages[receiver]
                for sender, messages in sealed.items()
                if sender != receiver
            }
            for receiver in sealed
        }

    def collect_uploads(self, uploads: Mapping[int, Words]) -> tuple[int, ...]:
        """After step 3: who is in the sum."""
        require("upload", len(uploads), self._clients, self._threshold)
        self.uploads = dict(uploads)
        return tuple(uploads)

    def open_sum(self, answers: Sequence[Unmasking]) -> Words:
        """After step 4: the sum (P,) of the words of all clients that uploaded.

        Raises:
            ValueError: the shares of a client that dropped out do not give its advertised key.
        """
        require("unmask", len(answers), self._clients, self._threshold)
        total: Words = np.stack(list(self.uploads.values())).sum(axis=0, dtype=np.uint64)
        for client in self.uploads:
            shares = {answer.client: answer.self_seeds[client] for answer in answers}
            total -= self_mask(combine(shares, self._threshold), len(total))
        for client in set(self._sharing).difference(self.uploads):
            shares = {answer.client: answer.mask_keys[client] for answer in answers}
            key = KeyPair(combine(shares, self._threshold))
            if key.public != self._public[client]:
                raise ValueError(f"secure aggregation: wrong shares of the key of client {client}")
            for survivor in self.uploads:
                # The survivor's side of the mask, whose other side never came.
                pairwise = mask(key.agree(self._public[survivor], b"mask"), len(total))
                if survivor < client:
                    total -= pairwise
                else:
                    total += pairwise
        return total
