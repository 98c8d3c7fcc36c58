"""What leaked, shown: true records beside what the strongest attack made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privguard.examples import Example, Examples
from privguard.records import CellRecord, ReleaseKind
from privguard.reporting.flags import by_privacy
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.worst_case import headline

Array = NDArray[Any]
Load = Callable[[str], Sequence[Examples]]
"""The examples kept of a cell, by its key."""

COORDINATES_SHOWN = 40
"""Of one record in the scatter; images have thousands."""

_SIGMA_FLOOR = 1e-6


@dataclass(frozen=True)
class Leak:
    """Examples of the strongest attack on one (defence, level)."""

    row: FrontierRow
    seed: int
    examples: Examples

    def states(self) -> Iterator[tuple[Array, Array]]:
        """The first record of each target: its true state and the reconstructed one."""
        for target in self.examples.targets:
            yield target.true_state[0], target.state[0]


def leaks(
    rows: Sequence[FrontierRow], cells: Sequence[CellRecord], load: Load, release: ReleaseKind
) -> list[Leak]:
    """One for each headline row whose strongest attack's reconstructions were kept.

    Defence by defence, the least private level first. Of several seeds the first that has them,
    whatever they look like.
    """
    strongest = headline(rows, release)
    groups = [
        [row for row in strongest if row.defense == defense]
        for defense in dict.fromkeys(row.defense for row in strongest)
    ]
    found = []
    for row in (row for group in groups for row in by_privacy(group) or group):
        setting = (row.attack, row.release, row.knowledge)
        for cell in sorted(cells, key=lambda cell: cell.seed):
            if (cell.defense, cell.level) != (row.defense, row.level):
                continue
            kept = next((one for one in load(cell.key) if one.setting == setting), None)
            if kept is not None:
                found.append(Leak(row, cell.seed, kept))
                break
    return found


def scatter(examples: Examples) -> list[list[tuple[float, float]]]:
    """For each target (true, reconstructed) coordinates in standard deviations from the mean.

    Coordinates that never vary, that the attack does not know, and discrete actions are left out.
    """
    return [
        [point for row in range(len(target.true_state)) for point in _points(target, row, examples)]
        for target in examples.targets
    ]


def _points(target: Example, row: int, examples: Examples) -> list[tuple[float, float]]:
    true, found = target.true_state[row].ravel(), target.state[row].ravel()
    mean, sigma = examples.state_mean, examples.state_sigma
    if np.issubdtype(target.true_action.dtype, np.floating):
        true = np.concatenate([true, target.true_action[row]])
        found = np.concatenate([found, target.action[row]])
        mean = np.concatenate([mean, examples.action_mean])
        sigma = np.concatenate([sigma, examples.action_sigma])
    known = np.flatnonzero((sigma >= _SIGMA_FLOOR) & np.isfinite(found))
    if len(known) > COORDINATES_SHOWN:
        known = known[np.linspace(0, len(known) - 1, COORDINATES_SHOWN).astype(int)]
    x = (true[known] - mean[known]) / sigma[known]
    y = (found[known] - mean[known]) / sigma[known]
    return [(round(float(a), 2), round(float(b), 2)) for a, b in zip(x, y, strict=True)]
