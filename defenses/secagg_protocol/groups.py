"""All groups of one session: who drops out of a round, and what the groups' sums are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from defenses.aggregation import ThresholdError
from defenses.registry import DefenseError
from defenses.secagg_protocol.encoding import Words
from defenses.secagg_protocol.execution import DropOuts, Execution, execute, survivors_of
from defenses.secagg_protocol.keys import KEY_BYTES, derive
from defenses.secagg_protocol.messages import STEPS

Group = tuple[int, ...]
"""Clients, in order."""

Sums = Mapping[Group, Words]
"""(P,) ring sums, by the clients that are in them."""


def check_participation(name: str, dropout: float, threshold: float) -> None:
    """Checks the options of who answers.

    Raises:
        DefenseError: one of them is out of range.
    """
    if not 0 <= dropout < 1:
        raise DefenseError(
            f"{name}@dropout={dropout}: the probability must be from 0 to below 1, e.g. 0.1"
        )
    if not 0.5 < threshold <= 1:
        raise DefenseError(
            f"{name}@threshold={threshold}: the share of clients must be above 0.5 and up to 1, "
            "e.g. 0.75"
        )


def answers_needed(size: int, threshold: float) -> int:
    """t: how many clients of a group of ``size`` must answer."""
    # 2/3 of 3 is 2, whatever floating point makes of it.
    return max(2, math.ceil(round(threshold * size, 9)))


class MaskedSums:
    """The groups of one session; each runs the protocol once a round."""

    def __init__(
        self,
        clients: int,
        group_size: int,
        dropout: float,
        threshold: float,
        generator: torch.Generator,
    ) -> None:
        """Draws each client's long-term secret; options as in ``SecureAggregation``."""
        self.groups = [
            tuple(range(start, start + group_size)) for start in range(0, clients, group_size)
        ]
        self.threshold = answers_needed(group_size, threshold)
        self._clients = clients
        self._dropout = dropout
        self._generator = generator
        self._secrets = [
            bytes(secret.tolist())
            for secret in torch.randint(
                256,
                (clients, KEY_BYTES),
                dtype=torch.uint8,
                generator=generator,
                device=generator.device,
            ).cpu()
        ]
        self._round = 0

    def execute(self, words: Words) -> Sums:
        """Runs the protocol in every group; returns the sums that opened.

        Args:
            words: (clients, P) encoded numbers.

        Raises:
            ThresholdError: none did.
        """

        def run(group: Group, drop_outs: DropOuts) -> tuple[Group, Words]:
            execution = self.execute_group(words, group, drop_outs)
            return execution.survivors, execution.total

        return self._round_of(run)

    def add_up(self, words: Words) -> Sums:
        """What :meth:`execute` returns, added up in the clear: masks cancel to the last bit."""

        def run(group: Group, drop_outs: DropOuts) -> tuple[Group, Words]:
            survivors = survivors_of(len(group), self.threshold, drop_outs)
            return survivors, words[[group[i] for i in survivors]].sum(axis=0, dtype=np.uint64)

        return self._round_of(run)

    def execute_group(self, words: Words, group: Group, drop_outs: DropOuts) -> Execution:
        """This round's execution in one group; positions in the group name its clients."""
        # A client's keys of one round say nothing of those of another.
        purpose = b"round %d" % self._round
        secrets = [derive(self._secrets[client], purpose) for client in group]
        return execute(words[list(group)], secrets, self.threshold, drop_outs)

    def _round_of(self, run: Callable[[Group, DropOuts], tuple[Group, Words]]) -> Sums:
        self._round += 1
        sums: dict[Group, Words] = {}
        closed = []
        for group, drop_outs in zip(self.groups, self._draw_drop_outs(), strict=True):
            try:
                survivors, total = run(group, drop_outs)
            except ThresholdError as error:
                closed.append(error)
            else:
                sums[tuple(group[i] for i in survivors)] = total
        if not sums:
            raise closed[0]
        return sums

    def _draw_drop_outs(self) -> list[DropOuts]:
        """For each group, those of its clients, by position, that leave this round."""
        if not self._dropout:
            return [{} for _ in self.groups]
        generator = self._generator
        draws = torch.rand(2, self._clients, generator=generator, device=generator.device)
        leaves = (draws[0] < self._dropout).tolist()
        steps = (draws[1] * len(STEPS)).long().tolist()
        return [
            {i: STEPS[steps[client]] for i, client in enumerate(group) if leaves[client]}
            for group in self.groups
        ]
