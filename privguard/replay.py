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


@dataclass(frozen=True)
class _Place:
    """Where a field lies in the rows of its type's table."""

    dtype: torch.dtype
    start: int
    stop: int
    shape: tuple[int, ...]

    def of(self, table: Tensor) -> Tensor:
        """A view (n, *shape) of the field in a table (n, width)."""
        return table[:, self.start : self.stop].view(len(table), *self.shape)


def _places(shapes: ReplayShapes) -> dict[str, _Place]:
    """Of all fields that are stored whole, those of one type beside each other."""
    fields: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "action": (shapes.action_dtype, shapes.action_shape),
        "reward": (torch.float32, ()),
        "terminated": (torch.float32, ()),
    }
    if not shapes.stacked_frames:
        states = (shapes.state_dtype, shapes.state_shape)
        fields |= {"state": states, "next_state": states}
    places: dict[str, _Place] = {}
    widths: dict[torch.dtype, int] = {}
    for name, (dtype, shape) in fields.items():
        start = widths.get(dtype, 0)
        widths[dtype] = start + math.prod(shape)
        places[name] = _Place(dtype, start, widths[dtype], shape)
    return places


class Replay:
    """Fixed-capacity store of transitions; the oldest are overwritten when it is full."""

    def __init__(self, capacity: int, shapes: ReplayShapes) -> None:
        self.capacity = capacity
        self.size = 0
        self.added = 0
        self._starts = [0]
        """Transitions that were added before each trajectory that is still stored."""
        self._frames = FrameStacks(capacity, shapes.state_shape) if shapes.stacked_frames else None
        self._places = _places(shapes)
        # A table for each type: all fields of a row are gathered at once.
        widths = {place.dtype: place.stop for place in self._places.values()}
        self._tables = {
            dtype: torch.zeros((capacity, width), dtype=dtype) for dtype, width in widths.items()
        }
        self._columns = {
            name: place.of(self._tables[place.dtype]) for name, place in self._places.items()
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
        return self.assembled(self.gather(np.asarray(indices)))

    def gather(self, indices: np.ndarray) -> dict[str, Tensor]:
        """Rows (n, ...) of each table, by its type, and of stacked frames; see ``assembled``."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        rows = {str(d): table.index_select(0, index) for d, table in self._tables.items()}
        if self._frames is not None:
            state, next_state = self._frames.stacks(index.numpy())
            rows |= {"state": torch.from_numpy(state), "next_state": torch.from_numpy(next_state)}
        return rows

    def assembled(self, rows: dict[str, Tensor]) -> Transitions:
        """What ``gather`` gave, of this replay or of several, as transitions."""
        fields = {name: place.of(rows[str(place.dtype)]) for name, place in self._places.items()}
        if self._frames is not None:
            fields |= {"state": rows["state"], "next_state": rows["next_state"]}
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
    gathered = [replay.gather(index) for replay, index in zip(replays, indices, strict=True)]
    rows = {name: torch.cat([part[name] for part in gathered]) for name in gathered[0]}
    counts = torch.tensor([len(index) for index in indices])
    owner = torch.repeat_interleave(torch.arange(len(gathered)), counts)
    return replays[0].assembled(rows), owner
