"""One simulated execution of the protocol: who drops out when, and the sum that comes out.

Transport is a dictionary; arithmetic and cryptography are real. Every client acts through its own
``Client``, the server sees what ``Server`` is handed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from defenses.secagg_protocol.client import Client
from defenses.secagg_protocol.encoding import Words
from defenses.secagg_protocol.messages import STEPS, Step, require
from defenses.secagg_protocol.server import Server

DropOuts = Mapping[int, Step]
"""By client: the first step that it no longer takes."""


@dataclass(frozen=True)
class Execution:
    """What the server holds at the end."""

    total: Words
    """(P,): the sum over ``survivors``."""
    survivors: tuple[int, ...]
    uploads: dict[int, Words]
    """By client: what the server received of it, masked."""


def execute(
    words: Words, secrets: Sequence[bytes], threshold: int, drop_outs: DropOuts
) -> Execution:
    """Runs all four steps over a group of clients.

    Args:
        words: (n, P) encoded numbers, one row a client.
        secrets: One for each client, fresh for this execution.
        threshold: t of n; from 2.
        drop_outs: Clients that leave; one that leaves before "unmask" is in the sum.

    Raises:
        ThresholdError: fewer than t clients answered in some step.
    """
    size = len(words)
    server = Server(size, threshold)
    clients = [Client(index, size, threshold, secret) for index, secret in enumerate(secrets)]

    def present(step: Step) -> list[Client]:
        return [clients[index] for index in answering(step, size, drop_outs)]

    keys = server.collect_keys([client.advertise() for client in present("advertise")])
    sealed = server.route_shares({c.index: c.share(keys) for c in present("share")})
    survivors = server.collect_uploads(
        {c.index: c.upload(words[c.index], sealed[c.index]) for c in present("upload")}
    )
    total = server.open_sum([client.unmask(survivors) for client in present("unmask")])
    return Execution(total, survivors, server.uploads)


def answering(step: Step, clients: int, drop_outs: DropOuts) -> tuple[int, ...]:
    """The clients that still take ``step``."""
    reached = STEPS.index(step)
    return tuple(
        client
        for client in range(clients)
        if client not in drop_outs or STEPS.index(drop_outs[client]) > reached
    )


def survivors_of(clients: int, threshold: int, drop_outs: DropOuts) -> tuple[int, ...]:
    """Who is in the sum of :func:`execute`, without executing it.

    Raises:
        ThresholdError: where :func:`execute` raises it.
    """
    for step in STEPS:
        require(step, len(answering(step, clients, drop_outs)), clients, threshold)
    return answering("upload", clients, drop_outs)
