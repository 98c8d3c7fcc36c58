"""The protocol of an attack, and what one returns."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from attacks.observation import Observation
from attacks.prior import Prior
from attacks.transitions import Transitions


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an attack claims the records behind one release were.

    Attributes:
        transitions: b records, rows in no particular order. Discrete actions are int64; states are
            floating point. Fields that the attack cannot know are NaN.
        objective: the attack's own matching loss, lower is better; restarts are chosen by it.
        gme: relative gradient matching error ||g~ - g|| / ||g||; NaN if it could not be evaluated.
        restarts: the answer of every random restart, the chosen one included; empty for
            deterministic attacks.
        notes: anything a reader should know, in one line.
    """

    transitions: Transitions
    objective: float
    gme: float
    restarts: list[Transitions] = dataclasses.field(default_factory=list)
    notes: str = ""


@dataclasses.dataclass(frozen=True)
class Attack(ABC):
    """Base of all attacks. Hyper-parameters are the fields of the frozen dataclass.

    Results depend on nothing but the arguments: no global random state is read or changed.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    instead_of: ClassVar[str]
    ensemble: ClassVar[bool]

    def unsupported(self, observation: Observation) -> str:
        """Why this attack cannot work on the observation, in one line; empty if it can."""
        return ""

    @abstractmethod
    def solve(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """Attacks observations of one model, loss, batch size and channel. Called by the others."""

    def reconstruct(self, observation: Observation, *, prior: Prior, seed: int) -> Reconstruction:
        """Attacks one observation.

        Raises:
            ValueError: if the attack does not support it, or the prior lacks needed knowledge.
        """
        return self.reconstruct_many([observation], prior=prior, seed=seed)[0]

    def reconstruct_many(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """Attacks several observations; answers come in the same order.

        Observations that share their model object and loss are attacked as one batch. Every target
        starts from the same random draws, so its answer does not depend on its companions.
        """
        missing = [n for n in self.needs if n not in prior.grants]
        if missing:
            raise ValueError(f"attack {self.name!r} needs a prior with {', '.join(missing)}")
        groups: list[list[int]] = []
        for index, observation in enumerate(observations):
            reason = self.unsupported(observation)
            if reason:
                raise ValueError(f"attack {self.name!r} cannot be used: {reason}")
            for group in groups:
                if observation.shares_computation_with(observations[group[0]]):
                    group.append(index)
                    break
            else:
                groups.append([index])
        answers: dict[int, Reconstruction] = {}
        for group in groups:
            solved = self.solve([observations[i] for i in group], prior=prior, seed=seed)
            answers.update(zip(group, solved, strict=True))
        return [answers[i] for i in range(len(observations))]
