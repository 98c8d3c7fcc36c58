"""Captured releases of one cell: what the server received, and what is behind it.

Everything an attack may see and everything its score needs, as tensors and plain data, so that any
attack can be run on a finished cell at any later time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from attacks.transitions import Transitions
from privguard.federation import Release
from privguard.records import ReleaseKind

_FIELDS = ("state", "action", "reward", "next_state", "terminated")
_SAMPLES = ("prior", "more_prior", "reference")


@dataclass(frozen=True)
class Capture:
    """All releases of one moment, with the weights that the clients used."""

    round: int
    weights: Tensor
    target_weights: Tensor
    broadcast: Tensor
    """What else the server sent in that round (``Agent.broadcast``)."""
    releases: dict[ReleaseKind, list[Release]]
    defense: dict[ReleaseKind, list[dict[str, Any]]] = field(default_factory=dict)
    """The defence's description of that moment, by kind; empty in captures older than this."""


@dataclass
class CellCaptures:
    """Every capture of a cell, and the transitions that prior and scores are fitted on."""

    captures: list[Capture] = field(default_factory=list)
    prior: Transitions | None = None
    """The adversary's own samples; disjoint from every captured record."""
    reference: Transitions | None = None
    """Transitions of this environment that set the scores' scale and serve as decoys."""
    more_prior: Transitions | None = None
    """Further samples, in random order, for an adversary that is granted a larger share."""
    population: int | None = None
    """Transitions that shares are of; None in captures older than this number."""

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and the plain data that puts them back together."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {"captures": [], "population": self.population}
        for name in _SAMPLES:
            transitions = getattr(self, name)
            if transitions is not None:
                tensors |= _pack_transitions(name, transitions)
        for index, capture in enumerate(self.captures):
            at = f"capture.{index}"
            tensors[f"{at}.weights"] = capture.weights
            tensors[f"{at}.target_weights"] = capture.target_weights
            tensors[f"{at}.broadcast"] = capture.broadcast
            entry: dict[str, Any] = {
                "round": capture.round,
                "releases": {},
                "defense": capture.defense,
            }
            for kind, releases in capture.releases.items():
                entry["releases"][kind] = [list(release.members) for release in releases]
                for number, release in enumerate(releases):
                    here = f"{at}.{kind}.{number}"
                    tensors[f"{here}.gradient"] = release.gradient
                    tensors[f"{here}.undefended"] = release.undefended
                    tensors |= _pack_transitions(f"{here}.truth", release.truth)
            plain["captures"].append(entry)
        return tensors, plain

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], plain: dict[str, Any]) -> CellCaptures:
        """The inverse of ``pack``."""
        captures = []
        for index, entry in enumerate(plain["captures"]):
            at = f"capture.{index}"
            releases: dict[ReleaseKind, list[Release]] = {
                kind: [
                    Release(
                        members=tuple(members),
                        gradient=tensors[f"{at}.{kind}.{number}.gradient"],
                        undefended=tensors[f"{at}.{kind}.{number}.undefended"],
                        truth=_unpack_transitions(f"{at}.{kind}.{number}.truth", tensors),
                    )
                    for number, members in enumerate(group)
                ]
                for kind, group in entry["releases"].items()
            }
            captures.append(
                Capture(
                    entry["round"],
                    tensors[f"{at}.weights"],
                    tensors[f"{at}.target_weights"],
                    tensors[f"{at}.broadcast"],
                    releases,
                    entry.get("defense", {}),
                )
            )
        samples = {
            name: _unpack_transitions(name, tensors)
            for name in _SAMPLES
            if f"{name}.state" in tensors
        }
        return cls(captures, population=plain.get("population"), **samples)


def _pack_transitions(name: str, z: Transitions) -> dict[str, Tensor]:
    return {f"{name}.{part}": getattr(z, part).contiguous() for part in _FIELDS}


def _unpack_transitions(name: str, tensors: dict[str, Tensor]) -> Transitions:
    return Transitions(**{part: tensors[f"{name}.{part}"] for part in _FIELDS})
