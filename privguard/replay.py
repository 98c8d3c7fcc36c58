"""One client's replay: every transition it has seen, drawn uniformly or by Poisson sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attacks.transitions import Transitions

Sampling = Literal["uniform", "poisson"]

_FIELDS = ("state", "action", "reward", "next_state", "terminated")


@dataclass(frozen=True)
class ReplayShapes:
    """Shapes and types of one transition's state and action."""

    state_shape: tuple[int, ...]
    state_dtype: torch.dtype
    action_shape: tuple[int, ...]
    action_dtype: torch.dtype


class Replay:
    """Fixed-capacity store of transitions; the oldest are overwritten when it is full."""

    def __init__(self, capacity: int, shapes: ReplayShapes) -> None:
        self.capacity = capacity
        self.size = 0
        self.added = 0
        self._columns = {
            "state": torch.zeros((capacity, *shapes.state_shape), dtype=shapes.state_dtype),
            "action": torch.zeros((capacity, *shapes.action_shape), dtype=shapes.action_dtype),
            "reward": torch.zeros(capacity),
            "next_state": torch.zeros((capacity, *shapes.state_shape), dtype=shapes.state_dtype),
            "terminated": torch.zeros(capacity),
        }
        # NumPy views of the same memory: writing one row through torch costs ten times as much.
        self._rows = {name: column.numpy() for name, column in self._columns.items()}

    def add(
        self,
        state: np.ndarray,
        action: np.ndarray,
        reward: float,
        next_state: np.ndarray,
        terminated: bool,
    ) -> None:
        """Stores one transition. ``terminated`` only: a time limit does not end the bootstrap."""
        at = self.added % self.capacity
        rows = self._rows
        rows["state"][at] = state
        rows["action"][at] = action
        rows["reward"][at] = reward
        rows["next_state"][at] = next_state
        rows["terminated"][at] = terminated
        self.added += 1
        self.size = min(self.added, self.capacity)

    def sample(self, batch_size: int, sampling: Sampling, rng: np.random.Generator) -> np.ndarray:
        """Row indices of a minibatch.

        ``uniform`` draws exactly ``batch_size`` rows with replacement. ``poisson`` includes each
        row independently with probability min(1, batch_size / size), as the accountants assume, so
        the number of rows varies and may be 0. (A binomial count of distinct uniform rows is the
        same law as one coin a row, without touching every row.)
        """
        if sampling == "uniform":
            return rng.integers(self.size, size=batch_size)
        count = rng.binomial(self.size, self.sample_rate(batch_size))
        return rng.choice(self.size, size=count, replace=False, shuffle=False)

    def sample_rate(self, batch_size: int) -> float:
        """Probability that a given row enters a Poisson minibatch."""
        return min(1.0, batch_size / self.size)

    def rows(self, indices: np.ndarray | Tensor) -> Transitions:
        """The transitions at ``indices``."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return Transitions(**{name: self._columns[name][index] for name in _FIELDS})

    def recent_actions(self, count: int) -> np.ndarray:
        """The last ``count`` actions, oldest first.

        Raises:
            ValueError: more than are stored.
        """
        if count > self.size:
            raise ValueError(f"{count} recent actions wanted, {self.size} transitions stored")
        at = np.arange(self.added - count, self.added) % self.capacity
        return self._rows["action"][at].copy()

    def tensors(self) -> dict[str, Tensor]:
        """The filled part of every column, for a checkpoint."""
        return {name: column[: self.size] for name, column in self._columns.items()}

    def restore(self, tensors: dict[str, Tensor], added: int) -> None:
        """Puts back what ``tensors`` gave."""
        self.size = len(tensors["reward"])
        self.added = added
        for name, column in self._columns.items():
            column[: self.size] = tensors[name]


def stack(replays: Sequence[Replay], indices: Sequence[np.ndarray]) -> tuple[Transitions, Tensor]:
    """All clients' minibatches under each other, and the client (n,) that each row belongs to."""
    parts = [replay.rows(index) for replay, index in zip(replays, indices, strict=True)]
    counts = torch.tensor([len(index) for index in indices])
    return Transitions.cat(parts), torch.repeat_interleave(torch.arange(len(parts)), counts)
