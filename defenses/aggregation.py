"""How releases become one mean, and what the server sees on the way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from defenses.registry import DefenseError


class ThresholdError(DefenseError):
    """Too few clients answered, so nobody can open the sum: this round gives no mean."""


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
    """(P,): the mean over the clients of all views, with which the server steps."""
    views: list[View]
    """Everything the server sees; a client belongs to one view, or to none if it dropped out."""


class PlainAggregator:
    """The server receives every client's release by itself and averages: one view per client."""

    saturation_rate = 0.0
    error_bound = 0.0

    def aggregate(self, releases: Tensor) -> Aggregate:
        """(clients, P) to their mean."""
        views = [View((client,), release) for client, release in enumerate(releases)]
        return Aggregate(releases.mean(0), views)

    def mean(self, releases: Tensor) -> Tensor:
        """(clients, P) to (P,)."""
        return releases.mean(0)
