"""A run's pictures of robots in observed states, kept on disk so that each is drawn once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privguard.environments import ENVIRONMENTS
from privguard.worlds.pose_rendering import SIDE, draw_poses

Array = NDArray[Any]

HINT = "MuJoCo draws through EGL or OSMesa; on Debian `apt install libosmesa6` is enough"


class Poses:
    """The pictures of one run's states; only ``draw`` makes new ones."""

    def __init__(self, directory: Path, env: str, observation: str) -> None:
        self.directory = directory / "poses"
        self.env, self.observation = env, observation
        # Gymnasium's MuJoCo robots, whose observations begin with their positions.
        self.drawable = env in ENVIRONMENTS and ENVIRONMENTS[env].forward_key is not None

    def picture(self, state: Array) -> bytes | None:
        """WebP of one state, (S,); None if it has not been drawn or is not known."""
        path = self._path(state)
        return path.read_bytes() if path.exists() else None

    def draw(self, states: Iterable[Array]) -> str:
        """Draws what is missing and drops every other picture; why it could not, or ''.

        Args:
            states: scaled observations, each (S,); unknown ones (NaN) get no picture.
        """
        wanted = {self._path(s): s for s in states if np.isfinite(s).all()}
        missing = {path: s for path, s in wanted.items() if not path.exists()}
        if missing:
            pictures = draw_poses(self.env, self.observation, list(missing.values()))
            if isinstance(pictures, str):
                return f"no driver could draw on the machine of this report. {HINT} ({pictures})"
            self.directory.mkdir(exist_ok=True)
            for path, picture in zip(missing, pictures, strict=True):
                path.write_bytes(picture)
        for path in set(self.directory.glob("*.webp")) - set(wanted):
            path.unlink()
        return ""

    def _path(self, state: Array) -> Path:
        content = np.ascontiguousarray(state, dtype=np.float32).tobytes()
        name = hashlib.sha256(f"{self.env} {self.observation} {SIDE} ".encode() + content)
        return self.directory / f"{name.hexdigest()[:24]}.webp"
