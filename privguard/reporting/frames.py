"""Pictures of states that are stacks of frames."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LARGEST_PSNR = 100.0
"""Of an image without any error, which would be infinite."""


def is_stack(state: NDArray[Any]) -> bool:
    """Whether a state is (frames, height, width) rather than a vector."""
    return state.ndim == 3


def newest_frame(state: NDArray[Any]) -> bytes | None:
    """WebP of the last frame of a stack in grey levels 0 to 255; None where it is not known."""
    frame = state[-1].astype(np.float32)
    if not np.isfinite(frame).all():
        return None
    buffer = io.BytesIO()
    grey = np.clip(np.round(frame), 0, 255).astype(np.uint8)
    Image.fromarray(grey).save(buffer, "webp", quality=90, method=4)
    return buffer.getvalue()


def psnr(true: NDArray[Any], found: NDArray[Any]) -> float | None:
    """Peak signal-to-noise ratio in dB over all frames of a stack, of grey levels up to 255.

    None where the reconstruction is not known; at most ``LARGEST_PSNR``, as the scores have it.
    """
    error = float(np.mean((true.astype(np.float64) - found) ** 2))
    if math.isnan(error):
        return None
    return min(LARGEST_PSNR, 10 * math.log10(255**2 / error)) if error else LARGEST_PSNR
