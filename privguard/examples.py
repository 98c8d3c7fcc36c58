"""A few targets of an attack, kept so that a report can show them: the truth beside the answer.

Plain arrays, so that reporting reads them without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privguard.records import ReleaseKind

Array = NDArray[Any]

TARGETS_KEPT = 4
"""Targets of one attack on one kind of release; they are spread evenly over the captures."""

ROWS_KEPT = 8
"""Records of one target: a minibatch shows as much with a few of them."""

_SCALES = ("state_mean", "state_sigma", "action_mean", "action_sigma")


@dataclass(frozen=True)
class Example:
    """One target; the rows of the answer are matched to those of the truth.

    Coordinates that the attack cannot know are NaN. Discrete actions are numbers, shape (R, 1).
    """

    true_state: Array
    """(R, *state_shape), R at most ``ROWS_KEPT``."""
    true_action: Array
    """(R, A)."""
    state: Array
    """Reconstructed, in the shape of ``true_state``, float32."""
    action: Array


@dataclass(frozen=True)
class Examples:
    """Targets of one attack on one kind of release of one cell, chosen before their outcome."""

    attack: str
    release: ReleaseKind
    knowledge: str
    state_mean: Array
    """(S,) mean of each flattened state coordinate over other records of the environment."""
    state_sigma: Array
    """(S,) its standard deviation: the scores' scale."""
    action_mean: Array
    """(A,)."""
    action_sigma: Array
    """(A,)."""
    rounds: tuple[int, ...]
    """Round of training at which each target was captured."""
    targets: tuple[Example, ...]

    @property
    def setting(self) -> tuple[str, str, str]:
        """What tells it from the other examples of its cell."""
        return self.attack, self.release, self.knowledge


def chosen(count: int) -> list[int]:
    """Which of ``count`` targets are kept, the first and the last among them."""
    return [round(i) for i in np.linspace(0, count - 1, min(count, TARGETS_KEPT))]


def pack(examples: Sequence[Examples]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays by name, and the plain data that puts them back together."""
    arrays: dict[str, Array] = {}
    plain: list[dict[str, Any]] = []
    for number, one in enumerate(examples):
        for name in _SCALES:
            arrays[f"{number}.{name}"] = getattr(one, name)
        for place, target in enumerate(one.targets):
            for field in fields(Example):
                arrays[f"{number}.{place}.{field.name}"] = getattr(target, field.name)
        plain.append(
            {
                "attack": one.attack,
                "release": one.release,
                "knowledge": one.knowledge,
                "rounds": list(one.rounds),
            }
        )
    return arrays, {"examples": plain}


def unpack(arrays: Mapping[str, Array], plain: Mapping[str, Any]) -> list[Examples]:
    """The inverse of ``pack``."""
    return [
        Examples(
            attack=entry["attack"],
            release=entry["release"],
            knowledge=entry["knowledge"],
            **{name: arrays[f"{number}.{name}"] for name in _SCALES},
            rounds=tuple(entry["rounds"]),
            targets=tuple(
                Example(**{f.name: arrays[f"{number}.{place}.{f.name}"] for f in fields(Example)})
                for place in range(len(entry["rounds"]))
            ),
        )
        for number, entry in enumerate(plain["examples"])
    ]
