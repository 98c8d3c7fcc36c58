"""A defence bound to one module: what clients release, and what the server sees of it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from defenses.aggregation import Aggregate, PlainAggregator
from defenses.client_gradients import ClientGradients
from defenses.layout import Layout
from defenses.registry import DefenseError
from defenses.stages import Adapting, AdditiveTransform, Aggregator, GradientSource, Losses

if TYPE_CHECKING:
    from defenses.pipeline import Defense


class Session:
    """Defended gradients of ``clients`` clients that share one module.

    The minibatches of all clients are stacked; ``owner`` (n,), sorted, says whose each row is. A
    client's mean gradient is the sum over its rows divided by the constant ``batch_size``, never by
    the realised number of rows, which is private under Poisson sampling and may be 0.

    All randomness comes from the generator given to ``Defense.bind``. Between calls the module
    is as it was, ``.grad`` included; forward passes elsewhere are harmless meanwhile.
    """

    layout: Layout
    """Where each parameter lies in a release."""

    def __init__(
        self,
        defense: Defense,
        module: nn.Module,
        clients: int,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        """Use ``Defense.bind``."""
        if clients < 1 or batch_size < 1:
            raise DefenseError(
                f"clients and batch size must be at least 1, not {clients} and {batch_size}"
            )
        self.layout = Layout.of(module)
        if not self.layout.size:
            raise DefenseError("the module has no parameter that requires a gradient")
        self.defense = defense
        self.clients = clients
        self.batch_size = batch_size
        self._generator = generator
        self._device_and_type = next(p for p in module.parameters() if p.requires_grad)
        self._aggregator: Aggregator = (
            PlainAggregator()
            if defense.aggregation is None
            else defense.aggregation.bind(clients, self.layout.size, generator)
        )
        self._undefended = ClientGradients(module, self.layout, clients)
        self._source: GradientSource = (
            self._undefended
            if defense.per_sample is None
            else defense.per_sample.bind(module, self.layout, clients, generator)
        )

    def release(
        self,
        losses: Losses,
        owner: Tensor,
        memory: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Each client's defended mean gradient.

        Args:
            losses: ``losses(rows)``, the per-sample losses of these rows; see ``defenses.stages``.
            owner: (n,) sorted LongTensor: the client of each row.
            memory: (clients, P) from :meth:`new_memory`, updated in place; None: no feedback.
            batch_size: Divides the sums instead of the session's constant.

        Returns:
            (clients, P), without a graph.
        """
        return self._transformed(
            self._source.per_client(losses, owner, self._divisor(batch_size)), memory
        )

    def release_updates(self, updates: Tensor, memory: Tensor | None = None) -> Tensor:
        """Each client's defended update, for clients that train locally before they send.

        Args:
            updates: (clients, P): the sum of each client's local gradients, which is its weight
                difference divided by the local learning rate.
            memory: As in :meth:`release`.

        Returns:
            (clients, P), without a graph.

        Raises:
            DefenseError: the defence acts on single samples, of which an update shows nothing.
        """
        if self.defense.per_sample is not None:
            raise DefenseError(
                f"{self.defense.text}: a per-sample stage needs each sample's gradient, "
                "an update is a sum over local steps"
            )
        return self._transformed(updates, memory)

    def _transformed(self, releases: Tensor, memory: Tensor | None) -> Tensor:
        for transform in self.defense.transforms:
            kept = memory if transform.uses_memory else None
            releases = transform.apply(releases, self.layout, self._generator, kept)
        return releases

    def mean_release(self, losses: Losses, owner: Tensor, batch_size: int | None = None) -> Tensor:
        """(P,): equal in distribution to ``release(...).mean(0)``, at the cost of one pass.

        Raises:
            DefenseError: the defence is not additive.
        """
        if not self.defense.additive:
            raise DefenseError(
                f"{self.defense.text}: not additive, so the mean needs each client's release"
            )
        mean = self._source.mean(losses, owner, self._divisor(batch_size))
        for transform in self.defense.transforms:
            assert isinstance(transform, AdditiveTransform)  # what additive says
            mean = transform.apply_to_mean(mean, self.clients, self._generator)
        return mean

    def aggregate(self, releases: Tensor) -> Aggregate:
        """What the server sees of ``releases`` (clients, P) in one round.

        Raises:
            ThresholdError: too many clients dropped out to open any sum.
        """
        return self._aggregator.aggregate(releases)

    def aggregate_mean(self, releases: Tensor) -> Tensor:
        """(P,): ``aggregate(releases).mean``, bit for bit, without running its cryptography.

        Masks cancel and ciphertexts decrypt to the same words whether or not they are computed, so
        training can leave them out of the rounds that nobody looks at.

        Raises:
            ThresholdError: as :meth:`aggregate`.
        """
        return self._aggregator.mean(releases)

    def undefended(self, losses: Losses, owner: Tensor, batch_size: int | None = None) -> Tensor:
        """(clients, P): each client's plain mean gradient, for norms and comparisons."""
        return self._undefended.per_client(losses, owner, self._divisor(batch_size))

    def describe(self, batch_size: int | None = None) -> list[dict[str, Any]]:
        """Every stage's plain data as of now; see ``Defense.describe``."""
        divisor = self._divisor(batch_size)
        stages = self.defense.describe(divisor, self.clients)
        if isinstance(self._source, Adapting):
            stages[0] = self._source.describe(divisor)
        return stages

    def end_round(self) -> None:
        """Tells a mechanism that adapts that the round's releases are out."""
        if isinstance(self._source, Adapting):
            self._source.end_round()

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint between two rounds."""
        return self._source.state() if isinstance(self._source, Adapting) else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from what :meth:`state` returned."""
        if isinstance(self._source, Adapting):
            self._source.load_state(state)

    def new_memory(self) -> Tensor | None:
        """(clients, P) of zeros if a transform feeds back what it left out, else None."""
        if not any(transform.uses_memory for transform in self.defense.transforms):
            return None
        return self._device_and_type.new_zeros(self.clients, self.layout.size, requires_grad=False)

    @property
    def nonfinite_count(self) -> int:
        """Samples dropped so far for a non-finite loss or gradient (per-sample stages only)."""
        return self._source.nonfinite_count

    @property
    def saturation_rate(self) -> float:
        """Share of coordinates so far beyond the range of the aggregation's encoding."""
        return self._aggregator.saturation_rate

    @property
    def error_bound(self) -> float:
        """Most that the aggregation's encoding moves a coordinate of the mean it computes.

        Clamped coordinates (``saturation_rate``), noise and rounding to the type of the releases
        come on top.
        """
        return self._aggregator.error_bound

    def close(self) -> None:
        """Removes everything that was attached to the module."""
        self._source.close()

    def _divisor(self, batch_size: int | None) -> int:
        if batch_size is None:
            return self.batch_size
        if batch_size < 1:
            raise DefenseError(f"batch size must be at least 1, not {batch_size}")
        return batch_size

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
