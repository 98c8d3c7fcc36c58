"""One cell: run attacks on its captured releases and score them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import gymnasium as gym

from attacks.attack import Attack, Reconstruction
from attacks.bounds import RecordInformation, record_information
from attacks.channel import Channel
from attacks.consistency import consistency
from attacks.observation import Observation
from attacks.prior import Prior, Simulator
from attacks.reference import Reference
from attacks.registry import get_attack
from attacks.scores import score
from attacks.transitions import Template, Transitions
from privguard.agents import Agent, make_agent
from privguard.audit.captures import Capture, CellCaptures
from privguard.audit.chosen_examples import choose_examples
from privguard.audit.examples import Examples
from privguard.audit.granted_prior import granted_prior
from privguard.audit.observing import described, observe, records_of_one_client
from privguard.environments import environment_spec, make_environment
from privguard.federation import Release
from privguard.knowledge import Knowledge
from privguard.records import AttackRecord, ReleaseKind, TargetScores
from privguard.seeding import derive_seed, torch_generator
from privguard.spec import CellSpec
from privguard.worlds.simulators import find_simulator

Scores = dict[str, float | None]

KINDS: tuple[ReleaseKind, ...] = ("probe", "deployed")


@dataclass(frozen=True)
class Attacked:
    """What came of one attack on one kind of release."""

    record: AttackRecord
    examples: Examples | None
    """None where the attack did not run."""


@dataclass(frozen=True)
class Audit:
    """What every attack on one cell shares: the adversary's knowledge and the scorer's."""

    cell: CellSpec
    captures: CellCaptures
    agent: Agent
    template: Template
    knowledge: Knowledge
    prior: Prior
    reference: Reference
    simulator: Simulator | None
    """The environment itself, for scores; in the adversary's hands only if ``prior`` has it."""

    @classmethod
    def prepare(cls, cell: CellSpec, captures: CellCaptures, knowledge: Knowledge) -> Audit:
        """Fits the prior on the granted samples and the scores' scale on the reference set.

        Raises:
            BadInput: the captures hold fewer samples than the knowledge grants, or the environment
                has no simulator.
        """
        assert captures.reference is not None
        env = make_environment(cell.env, cell.observation)
        agent = make_agent(
            env,
            cell.agent,
            environment_spec(cell.env).discount,
            torch_generator(cell.seed, "initialisation"),
        )
        template = _template(env, captures)
        env.close()
        return cls(
            cell=cell,
            captures=captures,
            agent=agent,
            template=template,
            knowledge=knowledge,
            prior=granted_prior(cell, captures, knowledge, template),
            reference=Reference.fit(captures.reference, template=template),
            simulator=find_simulator(cell.env, cell.observation),
        )

    def run(self, name: str, on_progress: Callable[[str], None]) -> list[Attacked]:
        """One attack on every captured release, once for each kind of release."""
        found = []
        for kind in KINDS:
            if any(capture.releases[kind] for capture in self.captures.captures):
                on_progress(f"{name} on {kind} releases")
                found.append(self.run_attack(get_attack(name), name, kind))
        return found

    def run_attack(self, attack: Attack, name: str, kind: ReleaseKind) -> Attacked:
        """One attack on every captured release of one kind; ``name`` also seeds its draws."""
        targets: list[TargetScores] = []
        answers: list[Reconstruction] = []
        truths: list[Transitions] = []
        seconds = 0.0
        skipped = ""
        batch_size = 0
        for index, capture in enumerate(self.captures.captures):
            releases = [r for r in capture.releases[kind] if r.truth.batch_size > 0]
            observations = [self.observe(capture, release, kind) for release in releases]
            if not observations:
                continue
            batch_size = self._clients_in_a_sum * records_of_one_client(self.cell, kind)
            # Sums from which clients dropped out mix fewer records than others of the same moment.
            reasons = (attack.unsupported(observation) for observation in observations)
            skipped = self._missing_knowledge(attack) or next(filter(None, reasons), "")
            if skipped:
                break
            started = time.perf_counter()
            found = attack.reconstruct_many(
                observations, prior=self.prior, seed=derive_seed(self.cell.seed, name, kind, index)
            )
            seconds += time.perf_counter() - started
            answers += found
            truths += [release.truth for release in releases]
            targets += [
                TargetScores(
                    capture=index,
                    round=capture.round,
                    client=release.members[0],
                    scores=score(
                        answer,
                        release.truth,
                        self.prior,
                        self.reference,
                        simulator=self.simulator,
                    )
                    | limit,
                )
                for answer, release, limit in zip(
                    found,
                    releases,
                    self._limits[index, kind],
                    strict=True,
                )
            ]
        record = AttackRecord(
            cell_key=self.cell.key,
            attack=name,
            release=kind,
            batch_size=batch_size,
            knowledge=self.knowledge.label,
            prior_samples=self.prior.samples,
            targets=targets,
            skipped=skipped,
            # Minibatches of Poisson sampling differ in size, and so do sums without clients that
            # dropped out: such answers cannot be compared.
            restarts=consistency(answers, self.reference)
            if kind == "probe" and len({len(a.transitions) for a in answers}) == 1
            else {},
            seconds_per_target=seconds / max(len(targets), 1),
        )
        return Attacked(record, choose_examples(record, answers, truths, self.reference))

    def information(
        self, index: int, kind: ReleaseKind = "probe", channel: Channel | None = None
    ) -> list[RecordInformation | None]:
        """What each release of one capture can give away at most; None where no floor is claimed.

        The prior is the best Gaussian one, fitted on the whole reference set: no adversary with
        fewer samples knows more.

        Args:
            index: of the capture.
            kind: of the releases.
            channel: another one than that of the cell's defence, for predictions.
        """
        capture = self.captures.captures[index]
        releases = [r for r in capture.releases[kind] if r.truth.batch_size > 0]
        observations = [self.observe(capture, release, kind) for release in releases]
        if channel is not None:
            observations = [replace(o, channel=channel) for o in observations]
        found: list[RecordInformation | None] = [None] * len(releases)
        # Poisson minibatches differ in size; releases of one size are computed together.
        for size in {release.truth.batch_size for release in releases}:
            alike = [i for i, r in enumerate(releases) if r.truth.batch_size == size]
            together = record_information(
                [observations[i] for i in alike],
                [releases[i].truth for i in alike],
                self._population,
            )
            if together is not None:
                for place, i in enumerate(alike):
                    found[i] = together[place]
        return found

    @cached_property
    def _clients_in_a_sum(self) -> int:
        """Clients behind one release if none drops out."""
        description = described(self.cell, batch_size=1)
        return next((entry["clients"] for entry in description if "clients" in entry), 1)

    @cached_property
    def _population(self) -> Prior:
        assert self.captures.reference is not None
        return Prior.fit(self.captures.reference, template=self.template)

    @cached_property
    def _limits(self) -> dict[tuple[int, ReleaseKind], list[Scores]]:
        """By capture and kind: each release's floor of nmse and the accuracy at the floor."""
        return {
            (index, kind): [
                {}
                if limit is None
                else {
                    "floor_nmse": float(limit.floor()),
                    "limit_ra": float(limit.expected_accuracy()),
                }
                for limit in self.information(index, kind)
            ]
            for index in range(len(self.captures.captures))
            for kind in KINDS
        }

    def _missing_knowledge(self, attack: Attack) -> str:
        missing = [need for need in attack.needs if need not in self.prior.grants]
        if not missing:
            return ""
        return f"needs {' and '.join(missing)}; the adversary's knowledge: {self.knowledge.label}"

    def observe(self, capture: Capture, release: Release, kind: ReleaseKind) -> Observation:
        """The release as the adversary sees it: the agent holds the weights of that moment."""
        return observe(self.cell, self.agent, self.template, capture, release, kind)


def _template(env: gym.Env, captures: CellCaptures) -> Template:
    assert captures.reference is not None
    space = env.action_space
    if isinstance(space, gym.spaces.Discrete):
        return captures.reference.template(action_count=int(space.n))
    assert isinstance(space, gym.spaces.Box)
    return captures.reference.template(
        action_low=float(space.low.min()), action_high=float(space.high.max())
    )
