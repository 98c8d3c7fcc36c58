"""Captured releases as the server saw them, with all that it knows of how they came about."""

from __future__ import annotations

from typing import Any

import defenses
from attacks.channel import Channel
from attacks.local_training import LocalTraining
from attacks.observation import Observation
from attacks.transitions import Template
from privguard.agents import Agent
from privguard.audit.captures import Capture
from privguard.federation import Release
from privguard.records import ReleaseKind
from privguard.spec import CellSpec


def observe(
    cell: CellSpec,
    agent: Agent,
    template: Template,
    capture: Capture,
    release: Release,
    kind: ReleaseKind,
) -> Observation:
    """The release as the adversary sees it: the agent holds the weights of that moment."""
    agent.weights.copy_(capture.weights)
    agent.target_weights.copy_(capture.target_weights)
    agent.broadcast.copy_(capture.broadcast)
    divisor = cell.probe_batch_size if kind == "probe" else cell.agent.batch_size
    records = release.truth.batch_size
    # Clients divide by the nominal size, a public constant. Under Poisson sampling the real
    # count differs; granting it to the adversary is the worst case.
    scale = _nominal_batch_size(cell, release, kind) / records
    gradient, offset = {}, 0
    for name, parameter in agent.shared.named_parameters():
        part = release.gradient[offset : offset + parameter.numel()]
        gradient[name] = (scale * part).view(parameter.shape)
        offset += parameter.numel()
    description = capture.defense.get(kind) or described(cell, divisor)
    return Observation(
        model=agent.shared,
        gradient=gradient,
        loss=agent.loss,
        batch_size=records,
        template=template,
        channel=Channel.from_description(description, clients=len(release.members)),
        local=_local_training(cell, agent, release, kind),
    )


def _local_training(
    cell: CellSpec, agent: Agent, release: Release, kind: ReleaseKind
) -> LocalTraining | None:
    """How the clients came to the release, which is public; None for FedSGD."""
    steps = cell.agent.local_steps
    if steps == 1:
        return None
    return LocalTraining(
        steps=steps,
        learning_rates=agent.local_learning_rates(),
        minibatches=1 if kind == "probe" else steps,
        clients=len(release.members),
    )


def described(cell: CellSpec, batch_size: int) -> list[dict[str, Any]]:
    """The defence's description of itself before the first round."""
    return defenses.parse(cell.defense_text).describe(batch_size, cell.clients)


def _nominal_batch_size(cell: CellSpec, release: Release, kind: ReleaseKind) -> int:
    """Records behind a release, but for the chance of Poisson sampling."""
    return records_of_one_client(cell, kind) * len(release.members)


def records_of_one_client(cell: CellSpec, kind: ReleaseKind) -> int:
    """Nominal records in what one client sends: of all local steps together."""
    settings = cell.agent
    return cell.probe_batch_size if kind == "probe" else settings.batch_size * settings.local_steps
