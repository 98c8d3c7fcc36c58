"""The protocols of a pipeline's stages; a plug-in implements one of them.

Every stage describes itself in plain data. ``describe`` returns a JSON-serialisable dict with at
least ``mechanism``, ``stage``, ``formal_guarantee``, ``server_receives``, ``sensitivity``,
``unit`` and ``guarantee``, next to the numbers that an adaptive adversary needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from defenses.accounting import Accountant
from defenses.aggregation import Aggregate
from defenses.client_accounting import ClientAccountant
from defenses.layout import Layout

Losses = Callable[["Tensor | slice"], Tensor]
"""``losses(rows)``: the per-sample losses (len(rows),), computed through the bound module.

``rows`` indexes the stacked minibatches of all clients: a LongTensor, or ``slice(None)`` for all.
Each loss depends on its own row only, and every layer sees row i of its input for row i.
"""

Sampling = Literal["poisson", "poisson-trajectories", "uniform"]
"""How a client draws a minibatch: exactly so many rows; each row by a coin of its own; each
trajectory by a coin of its own, and one row of every one that is in."""


@dataclass(frozen=True)
class Payload:
    """What one client sends in one round."""

    values: int
    """How many numbers."""
    bits: int = 32
    """Bits of each."""
    index_bits: int = 0
    """Bits that say which coordinate a number belongs to; 0 if all are sent."""
    header: int = 0
    """Further bytes, e.g. one scale per tensor."""

    @property
    def bytes(self) -> int:
        """Total size, rounded up to whole bytes."""
        return -(-self.values * (self.bits + self.index_bits) // 8) + self.header


class GradientSource(Protocol):
    """Turns per-sample losses into mean gradients; ``batch_size`` is a public constant."""

    nonfinite_count: int
    """Samples dropped so far because their loss or gradient was not finite."""

    def per_client(self, losses: Losses, owner: Tensor, batch_size: int) -> Tensor:
        """(clients, P): each client's sum over its rows / batch_size."""
        ...

    def mean(self, losses: Losses, owner: Tensor, batch_size: int) -> Tensor:
        """(P,): equal in distribution to ``per_client(...).mean(0)``."""
        ...

    def close(self) -> None:
        """Leaves the module as it was before."""
        ...


@runtime_checkable
class Adapting(Protocol):
    """A gradient source whose mechanism changes from round to round, e.g. its clipping norm."""

    def end_round(self) -> None:
        """Moves on by what the clients released last; a probe's release alone moves nothing."""
        ...

    def describe(self, batch_size: int) -> dict[str, Any]:
        """The stage's description, as of now."""
        ...

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint between two rounds."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from what ``state`` returned."""
        ...


class PerSample(Protocol):
    """First stage: acts on the gradient of each sample."""

    @property
    def sampling(self) -> Sampling:
        """How the client must draw its minibatch."""
        ...

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data; ``batch_size`` is the constant that divides the sum of gradients."""
        ...

    def accountant(self) -> Accountant | None:
        """A fresh accountant of one client, or None without a formal guarantee."""
        ...

    def bind(
        self, module: nn.Module, layout: Layout, clients: int, generator: torch.Generator
    ) -> GradientSource:
        """Attaches itself to ``module``."""
        ...


class Transform(Protocol):
    """Second stage: acts on a client's mean gradient."""

    @property
    def uses_memory(self) -> bool:
        """Whether it feeds back what it left out in earlier rounds."""
        ...

    def describe(self, batch_size: int) -> dict[str, Any]:
        """Plain data."""
        ...

    def apply(
        self,
        releases: Tensor,
        layout: Layout,
        generator: torch.Generator,
        memory: Tensor | None,
    ) -> Tensor:
        """(clients, P) to (clients, P), not in place; updates ``memory`` (clients, P) in place."""
        ...

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """What a client sends after this transform, given what it would have sent before."""
        ...


@runtime_checkable
class AdditiveTransform(Protocol):
    """A transform whose mean over clients can be drawn from the mean of its inputs alone."""

    def apply_to_mean(self, mean: Tensor, clients: int, generator: torch.Generator) -> Tensor:
        """(P,) to (P,), equal in distribution to ``apply(...).mean(0)``."""
        ...


class Aggregator(Protocol):
    """An aggregation bound to a session."""

    @property
    def saturation_rate(self) -> float:
        """Share of all coordinates so far that did not fit the encoding's range."""
        ...

    @property
    def error_bound(self) -> float:
        """Most that encoding moves a coordinate of the mean; clamping and noise excepted."""
        ...

    def aggregate(self, releases: Tensor) -> Aggregate:
        """(clients, P) to what the server sees."""
        ...

    def mean(self, releases: Tensor) -> Tensor:
        """(clients, P) to ``aggregate(releases).mean``, bit for bit, without the cryptography."""
        ...


class Aggregation(Protocol):
    """Last stage: how the clients' releases are added up."""

    def describe(self, batch_size: int, clients: int | None = None) -> dict[str, Any]:
        """Plain data; ``clients`` is the number of clients of the session, if it is known.

        An aggregation that clips states ``clip_norm``; one that adds noise states ``noise_std`` of
        one client's share; one in which clients drop out states the probability as ``dropout``.
        """
        ...

    def accountant(self) -> ClientAccountant | None:
        """A fresh accountant of one client, or None without a formal guarantee."""
        ...

    def bind(self, clients: int, parameters: int, generator: torch.Generator) -> Aggregator:
        """The aggregator of one session."""
        ...

    def payload(self, payload: Payload, parameters: int, tensors: int) -> Payload:
        """What a client sends, given what it would have sent under plain aggregation."""
        ...
