"""Releases of many small groups of records after local training, differentiable through all steps.

The Gram form of ``dense`` needs the groups' gradients at shared weights. After the first local
step each group has weights of its own, so here gradients are formed, for all groups in one
vectorised pass (``torch.vmap``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.local_training import local_release
from attacks.observation import Observation
from attacks.transitions import Transitions


class UnrolledGradients:
    """Sums of local gradients of groups, for any model and any loss that ``torch.func`` can run."""

    def __init__(self, observations: Sequence[Observation], restarts: int) -> None:
        self._observation = observations[0]
        received = torch.stack([o.flat_gradient() for o in observations]).detach()
        self._received = received.repeat_interleave(restarts, dim=0)
        self._masked = observations[0].channel.zeroed
        self.target_square = self._received.square().sum(dim=1)
        self._vectorises: bool | None = None

    def __enter__(self) -> UnrolledGradients:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to undo."""

    def terms(self, z: Transitions) -> tuple[Tensor, Tensor]:
        """<g~, g> and ||g~||^2 of each group, (G,) each, differentiable in z (G b rows)."""
        columns = [
            x.reshape(len(self._received), -1, *x.shape[1:])
            for x in (z.state, z.action, z.reward, z.next_state, z.terminated)
        ]
        if self._vectorises is None:
            self._vectorises = self._can_vectorise(columns)
        if self._vectorises:
            releases = torch.vmap(self._release)(*columns)
        else:
            releases = torch.stack([self._release(*group) for group in zip(*columns, strict=True)])
        if self._masked:
            releases = releases * (self._received != 0)
        return (releases * self._received).sum(dim=1), releases.square().sum(dim=1)

    def _can_vectorise(self, columns: list[Tensor]) -> bool:
        """Whether the loss runs under ``vmap``: it refuses branches on values, ``item()``, ..."""
        try:
            torch.vmap(self._release)(*[x.detach()[:1] for x in columns])
        except RuntimeError:
            return False
        return True

    def _release(self, *columns: Tensor) -> Tensor:
        """(P,) what one group of records would give."""
        first = self._observation
        assert first.local is not None
        release = local_release(first.model, first.loss, Transitions(*columns), first.local)
        return torch.cat([release[name].reshape(-1) for name in first.parameters])
