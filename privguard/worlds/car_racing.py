"""Car racing with five actions (idle, left, right, gas, brake) on grey frames.

Gymnasium's CarRacing-v3 with ``continuous=False``. An agent step is four frames, of which only the
last is drawn. Its 96x96 picture is cropped to 84x84, without the instruments below and six columns
on either side, and turned grey: every pixel is one of the simulator's own. A state is the last four
such frames.

Gymnasium draws a frame in 7 ms, nearly all of it spent on turning polygons that lie far outside the
picture, one corner at a time. ``_render_road`` turns them all at once and draws those near it, in
the same order: the same picture.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.box2d.car_racing import (
    GRASS_DIM,
    MAX_SHAPE_DIM,
    PLAYFIELD,
    WINDOW_H,
    WINDOW_W,
    CarRacing,
)
from pygame import gfxdraw

SIDE = 84
STACK = 4
SKIP = 4
FRAMES = 1_000
GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Luma weights of ITU-R BT.601, as ALE's and OpenCV's grey."""

_LEFT = np.arange(-20, 20, 2)[:, None, None] * GRASS_DIM
_LOW = np.arange(-20, 20, 2)[None, :, None] * GRASS_DIM
_CORNERS = np.array([(GRASS_DIM, 0), (0, 0), (0, GRASS_DIM), (GRASS_DIM, GRASS_DIM)])
_GRASS = np.stack(np.broadcast_arrays(_LEFT + _CORNERS[:, 0], _LOW + _CORNERS[:, 1]), axis=-1)
_GRASS = _GRASS.reshape(-1, 4, 2).astype(float)


def make_car_racing() -> gym.Env:
    """One track after the other; states (4, 84, 84) uint8, the newest frame last."""
    env = gym.wrappers.TimeLimit(FastCarRacing(continuous=False), FRAMES)
    return gym.wrappers.FrameStackObservation(GreyFrames(env), STACK)


class FastCarRacing(CarRacing):
    """CarRacing that draws only when it is asked to, and faster."""

    drawing = True

    def _render(self, mode: str) -> Any:
        if not self.drawing and mode == "state_pixels":
            return self.state
        return super()._render(mode)

    def _render_road(self, zoom: float, translation: tuple[float, float], angle: float) -> None:
        field = PLAYFIELD * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]])
        road = np.array([polygon for polygon, _ in self.road_poly], dtype=float)
        polygons = np.concatenate([field[None], _GRASS, road])
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        placed = polygons @ turn * zoom + np.array(translation)
        low, high = -MAX_SHAPE_DIM, MAX_SHAPE_DIM + np.array([WINDOW_W, WINDOW_H])
        near = ((placed >= low) & (placed <= high)).all(axis=2).any(axis=1)
        near[0] = True
        surface: Any = self.surf
        for index in near.nonzero()[0]:
            if index == 0:
                colour = self.bg_color
            elif index <= len(_GRASS):
                colour = self.grass_color
            else:
                colour = self.road_poly[index - 1 - len(_GRASS)][1]
            corners = placed[index].tolist()
            red, green, blue = (int(c) for c in colour)
            gfxdraw.aapolygon(surface, corners, (red, green, blue))
            gfxdraw.filled_polygon(surface, corners, (red, green, blue))


class GreyFrames(gym.Wrapper):
    """Plays each action for ``SKIP`` frames and shows the last, grey and cropped, (84, 84)."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (SIDE, SIDE), np.uint8)

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """The first frame."""
        self._car.drawing = True
        picture, info = self.env.reset(**options)
        return _grey(picture), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Rewards of the frames add up; an episode's last frame is drawn wherever it falls."""
        total = 0.0
        for frame in range(SKIP):
            self._car.drawing = frame == SKIP - 1
            picture, reward, terminated, truncated, info = self.env.step(int(action))
            total += float(reward)
            if terminated or truncated:
                if not self._car.drawing:
                    self._car.drawing = True
                    picture = self._car._render("state_pixels")
                break
        return _grey(picture), total, terminated, truncated, info

    @property
    def _car(self) -> FastCarRacing:
        car = self.env.unwrapped
        assert isinstance(car, FastCarRacing)
        return car


def _grey(picture: np.ndarray) -> np.ndarray:
    """(96, 96, 3) to (84, 84)."""
    edge = (picture.shape[1] - SIDE) // 2
    return np.rint(picture[:SIDE, edge : edge + SIDE].astype(np.float32) @ GREY).astype(np.uint8)
