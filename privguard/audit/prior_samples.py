"""What is set aside of a cell's replays for the adversary's prior and for the scores."""

from __future__ import annotations

import numpy as np
import torch

from attacks.transitions import Transitions
from privguard.audit.captures import CellCaptures
from privguard.federation import Federation
from privguard.knowledge import LARGEST_FRACTION, sample_count
from privguard.seeding import numpy_generator
from privguard.spec import CellSpec

_REFERENCE_SIZE = 4096
_SAMPLE_BYTES = 64 * 2**20
"""Most that a capture spends on the reference set, and on the adversary's samples beyond the
default share; images are what this is for."""


def take_samples(captures: CellCaptures, federation: Federation, cell: CellSpec) -> None:
    """The adversary's prior samples and the scores' reference set, none of them a target."""
    clients = federation.clients
    rng = numpy_generator(cell.seed, "prior")
    pool = [
        (client.index, row)
        for client in clients
        for row in range(client.replay.size)
        if (client.index, row) not in federation.captured_rows
    ]
    known = sample_count(cell.prior_fraction, len(pool))
    row = clients[0].replay.rows(np.zeros(1, np.int64))
    row_bytes = sum(part.nbytes for part in vars(row).values())
    used = known + min(_REFERENCE_SIZE, _SAMPLE_BYTES // row_bytes)
    largest = sample_count(LARGEST_FRACTION, len(pool))
    more = min(largest - known, _SAMPLE_BYTES // row_bytes)
    chosen = np.asarray(pool)[rng.permutation(len(pool))]

    def transitions(rows: np.ndarray) -> Transitions:
        return Transitions.cat(
            [client.replay.rows(rows[rows[:, 0] == client.index, 1]) for client in clients]
        )

    captures.population = len(pool)
    captures.prior = transitions(chosen[:known])
    captures.reference = transitions(chosen[known:used])
    further = chosen[used : used + more]
    # Grouped by client; back in the order that was drawn, so that its head is a fair sample.
    order = np.argsort(np.argsort(further[:, 0], kind="stable"), kind="stable")
    captures.more_prior = transitions(further)[torch.from_numpy(order)]
