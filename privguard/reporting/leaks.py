"""What leaked, shown: true records beside what each attack made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privguard.audit.examples import SIGMA_FLOOR, Example, Examples, record_errors
from privguard.records import CellRecord, ReleaseKind
from privguard.reporting.flags import by_privacy
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.worst_case import headline

Array = NDArray[Any]
Load = Callable[[str], Sequence[Examples]]
"""The examples kept of a cell, by its key."""
Point = tuple[float, float]

COORDINATES_SHOWN = 40
"""Of one record in the scatter; images have thousands."""

TARGETS_SHOWN: dict[ReleaseKind, int] = {"probe": 4, "deployed": 2}
RECORDS_SHOWN: dict[ReleaseKind, int] = {"probe": 1, "deployed": 3}
"""Of each target, the best matched."""


@dataclass(frozen=True)
class LeakedRecord:
    """One record beside what the attack made of it."""

    target: int
    """Its release, among those shown."""
    round: int
    rank: int
    """0: of its release's records the one that the attack read best."""
    records: int | None
    """Behind its release; None if only some of them were ever compared."""
    true_state: Array
    """(*state_shape)."""
    state: Array
    mean_state: Array
    """Of other records of the environment: what a guess without the gradient looks like."""
    points: list[Point]
    """(true, reconstructed) coordinates in standard deviations from the mean."""


@dataclass(frozen=True)
class Leak:
    """What one attack made of some releases of one (defence, level)."""

    row: FrontierRow
    strongest: bool
    """Whether no other attack reads more at this level."""
    seed: int
    records: tuple[LeakedRecord, ...]

    def states(self) -> Iterator[Array]:
        """True and reconstructed, record by record."""
        for record in self.records:
            yield record.true_state
            yield record.state


def leaks(
    rows: Sequence[FrontierRow], cells: Sequence[CellRecord], load: Load, release: ReleaseKind
) -> list[Leak]:
    """For each level its strongest attack, if its reconstructions were kept, then every other.

    Defence by defence, the least private level first. Of several seeds the first that has the
    strongest attack's, whatever they look like; the others are of the same seed.
    """
    strongest = headline(rows, release)
    names = sorted({row.attack for row in rows if row.attack is not None})
    alone = [
        row
        for name in names
        for row in headline([row for row in rows if row.attack == name], release)
    ]
    groups = [
        [row for row in strongest if row.defense == defense]
        for defense in dict.fromkeys(row.defense for row in strongest)
    ]
    found: list[Leak] = []
    for row in (row for group in groups for row in by_privacy(group) or group):
        seed, kept = _first_seed(row, cells, load)
        others = [
            other
            for other in alone
            if (other.defense, other.level) == (row.defense, row.level)
            and other.attack != row.attack
        ]
        for shown in [row, *others] if kept else ():
            examples = kept.get(_setting(shown))
            if examples is not None:
                found.append(Leak(shown, shown is row, seed, leaked_records(examples)))
    return found


def _first_seed(
    row: FrontierRow, cells: Sequence[CellRecord], load: Load
) -> tuple[int, dict[tuple[Any, ...], Examples]]:
    for cell in sorted(cells, key=lambda cell: cell.seed):
        if (cell.defense, cell.level) == (row.defense, row.level):
            kept: dict[tuple[Any, ...], Examples] = {one.setting: one for one in load(cell.key)}
            if _setting(row) in kept:
                return cell.seed, kept
    return -1, {}


def _setting(row: FrontierRow) -> tuple[Any, ...]:
    return row.attack, row.release, row.knowledge


def leaked_records(examples: Examples) -> tuple[LeakedRecord, ...]:
    """The best matched records of a few targets, the first and the last among them."""
    count = min(TARGETS_SHOWN[examples.release], len(examples.targets))
    shown = [round(i) for i in np.linspace(0, len(examples.targets) - 1, count)]
    found = []
    for place, number in enumerate(shown):
        target = examples.targets[number]
        order = record_errors(target, examples.state_sigma, examples.action_sigma).argsort(
            kind="stable"
        )
        for rank, row in enumerate(order[: RECORDS_SHOWN[examples.release]]):
            found.append(
                LeakedRecord(
                    target=place,
                    round=examples.rounds[number],
                    rank=rank,
                    records=None if examples.records is None else examples.records[number],
                    true_state=target.true_state[row],
                    state=target.state[row],
                    mean_state=examples.state_mean.reshape(target.state[row].shape),
                    points=_points(target, int(row), examples),
                )
            )
    return tuple(found)


def _points(target: Example, row: int, examples: Examples) -> list[Point]:
    """Coordinates that never vary or are not known, and discrete actions, are left out."""
    true, found = target.true_state[row].ravel(), target.state[row].ravel()
    mean, sigma = examples.state_mean, examples.state_sigma
    if np.issubdtype(target.true_action.dtype, np.floating):
        true = np.concatenate([true, target.true_action[row]])
        found = np.concatenate([found, target.action[row]])
        mean = np.concatenate([mean, examples.action_mean])
        sigma = np.concatenate([sigma, examples.action_sigma])
    known = np.flatnonzero((sigma >= SIGMA_FLOOR) & np.isfinite(found))
    if len(known) > COORDINATES_SHOWN:
        known = known[np.linspace(0, len(known) - 1, COORDINATES_SHOWN).astype(int)]
    x = (true[known] - mean[known]) / sigma[known]
    y = (found[known] - mean[known]) / sigma[known]
    return [(round(float(a), 2), round(float(b), 2)) for a, b in zip(x, y, strict=True)]
