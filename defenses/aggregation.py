"""How releases become one mean, and what the server sees on the way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class View:
    """One thing that the server sees in a round."""

    members: tuple[int, ...]
    """The clients behind it."""
    mean: Tensor
    """(P,): the mean of their releases."""


@dataclass(frozen=True)
class Aggregate:
    """The result of one round's aggregation."""

    mean: Tensor
    """(P,): the mean over all clients, with which the server steps."""
    views: list[View]
    """Everything the server sees; each client belongs to exactly one view."""


class PlainAggregator:
    """The server receives every client's release by itself and averages: one view per client."""

    saturation_rate = 0.0

    def aggregate(self, releases: Tensor) -> Aggregate:
        """(clients, P) to their mean."""
        views = [View((client,), release) for client, release in enumerate(releases)]
        return Aggregate(releases.mean(0), views)
