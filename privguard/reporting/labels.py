"""Labels beside points that avoid one another, the points and the edges of the panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text
from numpy.typing import NDArray

_ANGLES = (45, 135, -45, -135, 90, -90, 0, 180)
_DISTANCES = (7.0, 12.0, 18.0, 26.0, 38.0)
"""Distances to try from the point to the label's nearest edge, in typographic points."""
_LEADER_FROM = 15.0
"""From this distance on a thin line ties the label to its point."""
_WIDTH_PER_CHARACTER = 0.6
_MARKER_RADIUS = 4.5
_LINE_RADIUS = 1.0
_LINE_STEP = 4.0
_TEXT_WEIGHT = 4
"""A text across a text is unreadable, one across a curve merely unpleasant."""


@dataclass(frozen=True)
class Label:
    """A text that belongs to the point (x, y) in data coordinates."""

    x: float
    y: float
    text: str
    color: tuple[float, float, float]


def place_labels(axes: Axes, labels: Sequence[Label], *, size: float) -> None:
    """Draw each label at the candidate position that covers least; call on a settled layout.

    What is to stay visible are the points, the curves and the texts already in the panel.

    Greedy, the most crowded points first; text sizes are estimated from the number of characters,
    which is exact enough for numbers and keeps a refresh fast.
    """
    if not labels:
        return
    scale = axes.figure.dpi / 72
    points = axes.transData.transform([(label.x, label.y) for label in labels]) / scale
    frame = np.asarray(axes.bbox.extents) / scale
    obstacles = [
        np.array([x, y, x, y]) + _MARKER_RADIUS * np.array([-1, -1, 1, 1]) for x, y in points
    ]
    for text in _texts(axes):
        obstacles += [np.asarray(text.get_window_extent().extents) / scale] * _TEXT_WEIGHT
    obstacles += _along_lines(axes, scale)
    for index in _most_crowded_first(points):
        label = labels[index]
        width = len(label.text) * size * _WIDTH_PER_CHARACTER
        options = [
            (_box(points[index], angle, distance, width, size), distance)
            for distance in _DISTANCES
            for angle in _ANGLES
        ]
        visible = np.stack(obstacles)
        costs = [_cost(box, distance, visible, frame) for box, distance in options]
        box, distance = options[int(np.argmin(costs))]
        obstacles += [box] * _TEXT_WEIGHT
        center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(center[0] - points[index][0], center[1] - points[index][1]),
            textcoords="offset points",
            ha="center",
            va="center_baseline",
            fontsize=size,
            color=tuple(0.75 * channel for channel in label.color),
            arrowprops=(
                {"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkB": 4, "shrinkA": 0}
                if distance >= _LEADER_FROM
                else None
            ),
            zorder=6,
        )


def _texts(axes: Axes) -> list[Text]:
    """The texts that are not empty (an arrow is an annotation without one)."""
    return [text for text in axes.texts if text.get_text()]


def _along_lines(axes: Axes, scale: float) -> list[NDArray[np.float64]]:
    """Small boxes along every curve of the panel."""
    boxes = []
    for line in axes.lines:
        path = line.get_transform().transform(line.get_path().vertices) / scale
        for start, end in pairwise(path):
            steps = 1 + int(np.hypot(*(end - start)) / _LINE_STEP)
            for x, y in np.linspace(start, end, steps, endpoint=False):
                boxes.append(np.array([x, y, x, y]) + _LINE_RADIUS * np.array([-1, -1, 1, 1]))
    return boxes


def _most_crowded_first(points: NDArray[np.float64]) -> list[int]:
    distances = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    neighbours = (distances < 30).sum(axis=1)
    return [int(index) for index in np.argsort(-neighbours, kind="stable")]


def _box(
    point: NDArray[np.float64], angle: float, distance: float, width: float, height: float
) -> NDArray[np.float64]:
    """Box (left, bottom, right, top) whose border lies ``distance`` away from the point."""
    dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x = point[0] + dx * distance + np.sign(round(dx, 3)) * width / 2
    y = point[1] + dy * distance + np.sign(round(dy, 3)) * height / 2
    return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def _cost(
    box: NDArray[np.float64],
    distance: float,
    obstacles: NDArray[np.float64],
    frame: NDArray[np.float64],
) -> float:
    overlap = _overlap(box, obstacles).sum()
    outside = (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame[None]).sum()
    return float(overlap + 4 * outside + 0.4 * distance)


def _overlap(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return np.clip(width, 0, None) * np.clip(height, 0, None)
