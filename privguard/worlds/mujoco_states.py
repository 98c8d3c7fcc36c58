"""From an observation of a MuJoCo environment back to the state that it was made from.

Positions left out of the observation (x; for Ant also y) are taken as zero.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def positions(env: Any, observation: Array) -> Array:
    """``qpos`` of an unscaled observation of Gymnasium's v5 environments, (nq,).

    Args:
        env: an unwrapped ``MujocoEnv``.
        observation: [qpos without the skipped ones, qvel, ...].
    """
    skipped: int = env.observation_structure["skipped_qpos"]
    model = env.model
    found = np.zeros(model.nq)
    found[skipped:] = observation[: model.nq - skipped]
    for at in model.jnt_qposadr[model.jnt_type == mujoco.mjtJoint.mjJNT_FREE]:
        found[at + 3 : at + 7] = _unit_quaternion(found[at + 3 : at + 7])
    return found


def _unit_quaternion(q: Array) -> Array:
    length = np.linalg.norm(q)
    return q / length if length > 1e-9 else np.array([1.0, 0.0, 0.0, 0.0])
