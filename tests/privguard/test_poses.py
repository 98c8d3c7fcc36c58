"""Pictures of poses, drawn by MuJoCo itself where a display driver is found."""

from __future__ import annotations

import ctypes.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privguard.environments import make_environment
from privguard.worlds import pose_rendering
from privguard.worlds.poses import Poses

Array = np.ndarray


@pytest.fixture(scope="module")
def standing() -> Array:
    env = make_environment("ant")
    state, _ = env.reset(seed=0)
    env.close()
    return state


NO_EGL = {"__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent"}
"""Environment under which EGL finds no driver."""


@pytest.fixture(scope="module")
def drawn(standing: Array, tmp_path_factory: pytest.TempPathFactory) -> tuple[Poses, list[Array]]:
    """Standing, with a bent leg, far above the ground, and with numbers beyond any robot."""
    states = [standing.copy() for _ in range(4)]
    states[1][7] += 3
    states[2][0] += 100
    states[3][:] *= 1e6
    poses = Poses(tmp_path_factory.mktemp("run"), "ant", "default")
    reason = poses.draw([*states, np.full_like(standing, np.nan)])
    if reason:
        pytest.skip(reason)
    return poses, states


def pixels(poses: Poses, state: Array) -> Array:
    picture = poses.picture(state)
    assert picture is not None
    image = Image.open(io.BytesIO(picture))
    assert image.size == (pose_rendering.SIDE, pose_rendering.SIDE)
    return np.asarray(image.convert("RGB"), dtype=float)


def test_pictures_show_the_pose(drawn: tuple[Poses, list[Array]]) -> None:
    poses, states = drawn
    standing, bent, high, _ = (pixels(poses, state) for state in states)
    changed = (np.abs(standing - bent).max(axis=2) > 40).mean()
    assert 0.002 < changed < 0.2, "one leg moved, and nothing else"
    # The robot is the only thing that is brown; the camera follows it wherever it is.
    for picture in (standing, bent, high):
        assert ((picture[..., 0] - picture[..., 2]) > 30).mean() > 0.01


def test_unknown_states_have_no_picture_and_wild_ones_do_no_harm(
    drawn: tuple[Poses, list[Array]],
) -> None:
    poses, states = drawn
    assert poses.picture(np.full_like(states[0], np.nan)) is None
    assert poses.picture(states[3]) is not None
    assert len(list(poses.directory.iterdir())) == 4


def test_what_is_drawn_is_not_drawn_again_and_what_is_unused_goes(
    drawn: tuple[Poses, list[Array]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poses, states = drawn
    again = Poses(tmp_path, "ant", "default")
    again.directory.mkdir()
    for path in poses.directory.iterdir():
        (again.directory / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(pose_rendering, "BACKENDS", ())
    assert again.draw(states[:2]) == ""
    assert again.picture(states[1]) == poses.picture(states[1])
    assert again.picture(states[2]) is None


def test_a_missing_driver_is_said_in_one_line(
    standing: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pose_rendering, "BACKENDS", ("nonsense",))
    poses = Poses(tmp_path, "ant", "default")
    reason = poses.draw([standing])
    assert "nonsense" in reason
    assert "\n" not in reason
    assert poses.picture(standing) is None


@pytest.fixture
def no_egl(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NO_EGL.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("no_egl")
def test_osmesa_draws_the_same_where_egl_cannot(
    standing: Array, drawn: tuple[Poses, list[Array]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if ctypes.util.find_library("OSMesa") is None:
        pytest.skip("OSMesa is not installed (Debian: libosmesa6)")
    fallen_back = pose_rendering.draw_poses("ant", "default", [standing])
    assert isinstance(fallen_back, list), fallen_back
    picture = Image.open(io.BytesIO(fallen_back[0])).convert("RGB")
    # `drawn` comes from EGL where there is one: two drivers may round, and no more.
    difference = np.abs(np.asarray(picture, dtype=float) - pixels(drawn[0], standing))
    assert difference.mean() < 1
    monkeypatch.setattr(pose_rendering, "BACKENDS", ("egl",))
    alone = pose_rendering.draw_poses("ant", "default", [standing])
    assert isinstance(alone, str), "EGL drew after all, so the picture was not OSMesa's"


@pytest.mark.usefixtures("no_egl")
def test_where_neither_driver_works_the_reader_learns_what_to_install(
    standing: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loader takes these files for the library, and cannot load them.
    folder = tmp_path / "libraries"
    folder.mkdir()
    for name in ("libOSMesa.so", "libOSMesa.so.6", "libOSMesa.so.8"):
        (folder / name).write_text("no library\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    poses = Poses(tmp_path / "run", "ant", "default")
    reason = poses.draw([standing])
    assert "apt install libosmesa6" in reason
    assert "egl: ImportError" in reason
    assert "osmesa: " in reason
    assert "\n" not in reason
    assert not poses.directory.exists()


def test_a_chosen_driver_comes_first(standing: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_rendering, "BACKENDS", ("nonsense", "neither"))
    monkeypatch.setenv("MUJOCO_GL", "neither")
    reason = pose_rendering.draw_poses("ant", "default", [standing])
    assert isinstance(reason, str)
    assert reason.startswith("neither: ")


def test_only_robots_are_drawn(tmp_path: Path) -> None:
    assert Poses(tmp_path, "hopper", "default").drawable
    assert not Poses(tmp_path, "frozenlake", "default").drawable
