"""The dynamics of stacked frames: a next state is the state shifted by one, and one new frame.

The new frame is the last one, moved on by a filter that is the same at every pixel: what each pixel
changes by is a linear function of the pixels around it in all frames of the state and of the mean
frame, fitted by ridge regression on the adversary's samples. A handful of samples has hundreds of
thousands of pixels, so a filter is learned where a dense map of images never could be. It is kept
as far as it helps on samples that it was not fitted on; otherwise frames are taken to stand still.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor

REACH = 3
"""Pixels that the filter reads to each side."""
RIDGE = 1e-2
MOST_PIXELS = 60_000
"""Pixels that are fitted, those that change first: a screen's others stand still."""


class FrameModel:
    """Differentiable map of states (B, K, H, W) to next states, grey levels in their range."""

    def __init__(self, state: Tensor, next_state: Tensor, low: float, high: float) -> None:
        """Fits to n samples (n, K, H, W), floating point, whose next states are shifted states."""
        self._low, self._high = low, high
        self._mean = state[:, -1:].mean(dim=0)
        side = 2 * REACH + 1
        channels = state.shape[1] + 1
        self._filter = state.new_zeros(1, channels, side, side)
        if len(state) < 5:
            return
        held = torch.arange(len(state)) % 5 == 4
        fitted = self._fit(state[~held], next_state[~held, -1])
        still = self._error(state[held], next_state[held])
        # Half a filter is what a noisy one should be trusted with.
        for share in (1.0, 0.5):
            self._filter = share * fitted
            error = self._error(state[held], next_state[held])
            if error < still:
                return
        self._filter = torch.zeros_like(fitted)

    @staticmethod
    def fits(state: Tensor, next_state: Tensor) -> bool:
        """Whether the samples (n, K, H, W) are stacked frames: each next state a shifted state."""
        return state.shape[1] > 1 and torch.equal(state[:, 1:], next_state[:, :-1])

    def __call__(self, state: Tensor) -> Tensor:
        """Next states (B, K, H, W)."""
        last = state[:, -1:]
        change = F.conv2d(self._inputs(state), self._filter.to(state), padding=REACH)
        new = (last + change).clamp(self._low, self._high)
        return torch.cat([state[:, 1:], new], dim=1)

    def _inputs(self, state: Tensor) -> Tensor:
        """Each frame's deviation from the mean frame, and the mean frame, centred."""
        mean = self._mean.to(state)
        background = (mean - mean.mean()).expand(len(state), -1, -1, -1)
        return torch.cat([state - mean, background], dim=1)

    def _fit(self, state: Tensor, new: Tensor) -> Tensor:
        change = (new - state[:, -1]).flatten()
        moving = change.abs().argsort(descending=True, stable=True)[: MOST_PIXELS // 2]
        evenly = torch.arange(0, len(change), max(1, 2 * len(change) // MOST_PIXELS))
        chosen = torch.cat([moving, evenly])
        padded = F.pad(self._inputs(state), (REACH, REACH, REACH, REACH))
        windows = padded.unfold(2, 2 * REACH + 1, 1).unfold(3, 2 * REACH + 1, 1)
        height, width = state.shape[-2:]
        sample, place = chosen // (height * width), chosen % (height * width)
        x = windows[sample, :, place // width, place % width].flatten(1)
        y = change[chosen]
        gram = x.T @ x
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype)
        weights = torch.linalg.solve(gram + ridge, x.T @ y)
        return weights.reshape(self._filter.shape)

    def _error(self, state: Tensor, next_state: Tensor) -> float:
        return float((self(state)[:, -1] - next_state[:, -1]).square().mean())
