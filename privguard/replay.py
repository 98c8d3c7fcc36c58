"""One client's replay: every transition it has seen, and how minibatches are drawn of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attacks.transitions import Transitions
from defenses.stages import Sampling
from privguard.worlds.frame_stacks import FrameStacks


@dataclass(frozen=True)
class ReplayShapes:
    """Shapes and types of one transition's state and action."""

    state_shape: tuple[int, ...]
    state_dtype: torch.dtype
    action_shape: tuple[int, ...]
    action_dtype: torch.dtype

    @property
    def stacked_frames(self) -> bool:
        """Whether states are stacks (K, H, W) of grey frames, which are then stored once each."""
        return self.state_dtype == torch.uint8 and len(self.state_shape) == 3

    @property
    def row_bytes(self) -> int:
        """Bytes that one stored transition takes, near enough."""
        if self.stacked_frames:
            return math.prod(self.state_shape[1:])
        states = 2 * math.prod(self.state_shape) * self.state_dtype.itemsize
        return states + math.prod(self.action_shape) * self.action_dtype.itemsize + 8


class Replay:
    """Fixed-capacity store of transitions; the oldest are overwritten when it is full."""

    def __init__(self, capacity: int, shapes: ReplayShapes) -> None:
        self.capacity = capacity
        self.size = 0
        self.added = 0
        self._starts = [0]
        """Transitions that were added before each trajectory that is still stored."""
        self._columns = {
            "action": torch.zeros((capacity, *shapes.action_shape), dtype=shapes.action_dtype),
            "reward": torch.zeros(capacity),
            "terminated": torch.zeros(capacity),
        }
        self._frames = FrameStacks(capacity, shapes.state_shape) if shapes.stacked_frames else None
        if self._frames is None:
            states = torch.zeros((2, capacity, *shapes.state_shape), dtype=shapes.state_dtype)
            self._columns |= {"state": states[0], "next_state": states[1]}
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
        if self._frames is None:
            rows["state"][at] = state
            rows["next_state"][at] = next_state
        else:
            full = self.size == self.capacity
            oldest = (at + 1) % self.capacity if full else 0
            self._frames.put(at, state, next_state, oldest)
        rows["action"][at] = action
        rows["reward"][at] = reward
        rows["terminated"][at] = terminated
        self.added += 1
        self.size = min(self.added, self.capacity)

    def end_trajectory(self) -> None:
        """What is added from now on belongs to a new trajectory."""
        self._starts.append(self.added)

    def sample(self, batch_size: int, sampling: Sampling, rng: np.random.Generator) -> np.ndarray:
        """Row indices of a minibatch.

        ``uniform`` draws exactly ``batch_size`` rows with replacement. ``poisson`` includes each
        row independently with probability min(1, batch_size / size), as the accountants assume, so
        the number of rows varies and may be 0. (A binomial count of distinct uniform rows is the
        same law as one coin a row, without touching every row.) ``poisson-trajectories`` does so
        with the stored trajectories, the unfinished one among them, and takes one uniform row of
        each.
        """
        if sampling == "uniform":
            return rng.integers(self.size, size=batch_size)
        units = self.units(sampling)
        count = rng.binomial(units, self.sample_rate(batch_size, sampling))
        chosen = rng.choice(units, size=count, replace=False, shuffle=False)
        if sampling == "poisson":
            return chosen
        bounds = self._trajectory_bounds()
        return rng.integers(bounds[chosen], bounds[chosen + 1]) % self.capacity

    def sample_rate(self, batch_size: int, sampling: Sampling) -> float:
        """Probability that a given unit of ``sampling`` enters a Poisson minibatch."""
        return min(1.0, batch_size / self.units(sampling))

    def units(self, sampling: Sampling) -> int:
        """How many of what ``sampling`` draws are stored: transitions, or trajectories."""
        if sampling == "poisson-trajectories":
            return len(self._trajectory_bounds()) - 1
        return self.size

    def _trajectory_bounds(self) -> np.ndarray:
        """(n + 1,): trajectory i is transitions bounds[i] .. bounds[i + 1] in order of arrival."""
        oldest = self.added - self.size
        while len(self._starts) > 1 and self._starts[1] <= oldest:
            del self._starts[0]
        starts = [max(start, oldest) for start in self._starts if start < self.added]
        return np.asarray([*starts, self.added])

    def rows(self, indices: np.ndarray | Tensor) -> Transitions:
        """The transitions at ``indices``."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        fields = {name: column[index] for name, column in self._columns.items()}
        if self._frames is not None:
            state, next_state = self._frames.stacks(index.numpy())
            fields["state"] = torch.from_numpy(state)
            fields["next_state"] = torch.from_numpy(next_state)
        return Transitions(**fields)

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
        filled = {name: column[: self.size] for name, column in self._columns.items()}
        filled["trajectory_starts"] = torch.tensor(self._starts)
        return filled if self._frames is None else filled | self._frames.tensors(self.size)

    def restore(self, tensors: dict[str, Tensor], added: int) -> None:
        """Puts back what ``tensors`` gave."""
        self.size = len(tensors["reward"])
        self.added = added
        self._starts = tensors["trajectory_starts"].tolist()
        for name, column in self._columns.items():
            column[: self.size] = tensors[name]
        if self._frames is not None:
            self._frames.restore(tensors)


def stack(replays: Sequence[Replay], indices: Sequence[np.ndarray]) -> tuple[Transitions, Tensor]:
    """All clients' minibatches under each other, and the client (n,) that each row belongs to."""
    parts = [replay.rows(index) for replay, index in zip(replays, indices, strict=True)]
    counts = torch.tensor([len(index) for index in indices])
    return Transitions.cat(parts), torch.repeat_interleave(torch.arange(len(parts)), counts)
