"""Pictures of states that are stacks of frames."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


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
