"""States that are stacks of frames, each frame stored once.

A state (K, H, W) and its successor share K - 1 frames, and so do the states of consecutive steps:
stored whole, every frame would be held 2 K times.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class FrameStacks:
    """States and next states of a replay's rows, as positions in one ring of frames.

    Exact: what comes out is what went in, bit for bit. The frames of a state that does not follow
    the last next state, an episode's first one, are stored in full, so nothing is assumed of how
    an environment fills its first stacks.
    """

    def __init__(self, capacity: int, shape: tuple[int, ...]) -> None:
        """For ``capacity`` rows of uint8 states of ``shape`` (K, H, W)."""
        self._depth = shape[0]
        self._newest = np.zeros(capacity, np.int64)
        """By row: running number of its state's newest frame; the next state's is the one after."""
        # Room for an episode's start every 16 rows; more makes the ring grow.
        self._frames = np.zeros((capacity + capacity // 4 + 2 * self._depth, *shape[1:]), np.uint8)
        self._stored = 0
        self._oldest = 0
        self._last = np.zeros(shape, np.uint8)

    def put(self, row: int, state: np.ndarray, next_state: np.ndarray, oldest_row: int) -> None:
        """Stores a row. Rows before ``oldest_row``, in the order of their storage, are gone.

        Raises:
            ValueError: the next state does not hold the state's frames, shifted by one.
        """
        if not np.array_equal(state[1:], next_state[:-1]):
            raise ValueError("a next state must be the state shifted by one frame, and a new one")
        if oldest_row != row:
            self._oldest = int(self._newest[oldest_row]) - self._depth + 1
        else:
            self._oldest = max(0, self._stored - self._depth)
        if self._stored == 0 or not np.array_equal(state, self._last):
            for frame in state:
                self._append(frame)
        self._newest[row] = self._stored - 1
        self._append(next_state[-1])
        self._last = next_state.copy()

    def stacks(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States and next states of ``rows`` (n,), (n, K, H, W) each."""
        back = np.arange(1 - self._depth, 2)
        at = (self._newest[rows][:, None] + back) % len(self._frames)
        frames = self._frames[at]
        return frames[:, :-1], frames[:, 1:]

    def tensors(self, rows: int) -> dict[str, Tensor]:
        """Everything that the first ``rows`` rows need, for a checkpoint."""
        live = np.arange(self._oldest, self._stored) % len(self._frames)
        return {
            "frames": torch.from_numpy(self._frames[live]),
            "newest_frame": torch.from_numpy(self._newest[:rows]),
            "frame_span": torch.tensor([self._oldest, self._stored]),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what ``tensors`` gave."""
        self._oldest, self._stored = tensors["frame_span"].tolist()
        live = np.arange(self._oldest, self._stored)
        while len(live) > len(self._frames):
            self._grow()
        self._frames[live % len(self._frames)] = tensors["frames"].numpy()
        newest = tensors["newest_frame"].numpy()
        self._newest[: len(newest)] = newest
        if self._stored:
            last = np.arange(self._stored - self._depth, self._stored)
            self._last = self._frames[last % len(self._frames)]

    def _append(self, frame: np.ndarray) -> None:
        if self._stored - self._oldest >= len(self._frames):
            self._grow()
        self._frames[self._stored % len(self._frames)] = frame
        self._stored += 1

    def _grow(self) -> None:
        live = np.arange(self._oldest, self._stored)
        larger = np.zeros((2 * len(self._frames), *self._frames.shape[1:]), np.uint8)
        larger[live % len(larger)] = self._frames[live % len(self._frames)]
        self._frames = larger
