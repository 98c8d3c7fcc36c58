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
"""Records of one target, those that the attack read best: the worst that a minibatch gives away."""

SIGMA_FLOOR = 1e-6
"""Coordinates that vary less are left out, as in the scores."""

_SCALES = ("state_mean", "state_sigma", "action_mean", "action_sigma")


@dataclass(frozen=True)
class Example:
    """One target; the rows of the answer are matched to those of the truth, best match first.

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
    records: tuple[int, ...] | None = None
    """Records behind each target. None in runs of earlier versions, which kept a minibatch's first
    records instead of the best matched."""

    @property
    def setting(self) -> tuple[str, str, str]:
        """What tells it from the other examples of its cell."""
        return self.attack, self.release, self.knowledge


def chosen(count: int) -> list[int]:
    """Which of ``count`` targets are kept, the first and the last among them."""
    return [round(i) for i in np.linspace(0, count - 1, min(count, TARGETS_KEPT))]


def record_errors(target: Example, state_sigma: Array, action_sigma: Array) -> Array:
    """(R,) mean squared error of each record's (s, a), in sigma.

    As in the scores' assignment of rows: a coordinate that is not known costs one, and so does a
    wrong discrete action.
    """
    count = len(target.true_state)
    keep = state_sigma >= SIGMA_FLOOR
    error = (target.state - target.true_state.astype(np.float64)).reshape(count, -1)[:, keep]
    parts = [error / state_sigma[keep]]
    if np.issubdtype(target.true_action.dtype, np.floating):
        keep = action_sigma >= SIGMA_FLOOR
        parts.append((target.action - target.true_action)[:, keep] / action_sigma[keep])
    else:
        parts.append(target.action != target.true_action)
    squared = np.concatenate(parts, axis=1, dtype=np.float64) ** 2
    return np.where(np.isfinite(squared), squared, 1.0).mean(axis=1)


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
                "records": None if one.records is None else list(one.records),
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
            records=None if entry.get("records") is None else tuple(entry["records"]),
        )
        for number, entry in enumerate(plain["examples"])
    ]
