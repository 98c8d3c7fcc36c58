"""Draws MuJoCo robots in given states, off screen.

MuJoCo draws through EGL or OSMesa, chosen when it is imported. Which of them works is found out in
a process of its own: the choice cannot be changed later, and a broken driver may end the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privguard.environments import environment_spec, make_environment, observation_scale

Array = NDArray[Any]

SIDE = 180
"""Pixels of a picture's side."""
BACKENDS = ("egl", "osmesa")
_STATES = "states.npy"
_TORSO = 1
"""The first body after the world in each of Gymnasium's robots."""
_DISTANCE = 3.6
"""Metres from the camera to the robot."""
_REACH = 0.6
"""Metres that a torso may be above or below where it stands before the camera follows it."""


def draw_poses(env: str, observation: str, states: Sequence[Array]) -> list[bytes] | str:
    """WebP pictures of finite, scaled observations (S,), or why no backend could draw them.

    All are seen from the same place. A torso far off is followed upwards or downwards, which
    takes the floor out of the picture.
    """
    reasons = []
    # A driver may hang: whoever has chosen one is not made to wait for another.
    for backend in sorted(BACKENDS, key=lambda name: name != os.environ.get("MUJOCO_GL")):
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder, _STATES), np.stack(states))
            process = subprocess.run(
                [sys.executable, "-m", __name__, env, observation, folder],
                env=os.environ | {"MUJOCO_GL": backend},
                capture_output=True,
                text=True,
                check=False,
            )
            if process.returncode == 0:
                return [_picture(folder, number).read_bytes() for number in range(len(states))]
        said = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        reasons.append(f"{backend}: {said[-1].strip()}")
    return "; ".join(reasons)


def _picture(folder: str, number: int) -> Path:
    return Path(folder, f"{number}.webp")


def _draw(env: str, observation: str, folder: str) -> None:
    """What the process does: from the states' file to the pictures' files."""
    import mujoco
    from PIL import Image

    from privguard.worlds.mujoco_states import positions

    made: Any = make_environment(env, observation).unwrapped
    centre, unit = observation_scale(environment_spec(env), made.observation_space.shape)
    model, data = made.model, made.data
    _plain_scene(model)
    data.qpos[:] = made.init_qpos
    mujoco.mj_forward(model, data)
    standing = float(data.xpos[_TORSO, 2])
    camera = mujoco.MjvCamera()
    camera.distance = _DISTANCE
    # Free robots are seen from above a corner, those of a plane from its side.
    free = model.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE
    camera.azimuth, camera.elevation = (120, -30) if free else (90, -15)
    states = np.load(Path(folder, _STATES), allow_pickle=False)
    with mujoco.Renderer(model, SIDE, SIDE) as renderer:
        for number, state in enumerate(states):
            data.qpos[:] = positions(made, centre + unit * state.reshape(-1).astype(np.float64))
            mujoco.mj_forward(model, data)
            height = float(data.xpos[_TORSO, 2])
            beyond = height - np.clip(height, standing - _REACH, standing + _REACH)
            camera.lookat[:] = (0, 0, 0.6 * standing + beyond)
            renderer.update_scene(data, camera)
            for flag in ("SHADOW", "REFLECTION", "HAZE"):
                renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
            image = Image.fromarray(renderer.render())
            image.save(_picture(folder, number), quality=80, method=6)
    made.close()


def _plain_scene(model: Any) -> None:
    """A floor and a sky of one colour each: their patterns would be most of a picture's bytes.

    The floor is translucent, since a bad guess may lie below it.
    """
    import mujoco

    for geom in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE):
        model.geom_matid[geom] = -1
        model.geom_rgba[geom] = (0.55, 0.6, 0.65, 0.6)
    for texture in np.flatnonzero(model.tex_type == mujoco.mjtTexture.mjTEXTURE_SKYBOX):
        start = model.tex_adr[texture]
        size = model.tex_width[texture] * model.tex_height[texture] * model.tex_nchannel[texture]
        model.tex_data[start : start + size] = 235


if __name__ == "__main__":
    _draw(*sys.argv[1:])
