"""What the adversary knows before it sees a gradient, out of what a capture holds for it."""

from __future__ import annotations

import torch

from attacks.prior import Prior
from attacks.transitions import Template, Transitions
from privguard.audit.captures import CellCaptures
from privguard.knowledge import Knowledge
from privguard.seeding import derive_seed, torch_generator
from privguard.spec import CellSpec
from privguard.worlds.simulators import make_simulator


def granted_prior(
    cell: CellSpec, captures: CellCaptures, knowledge: Knowledge, template: Template
) -> Prior:
    """What the adversary knows, from the samples that the captures hold for it.

    The default share is exactly ``captures.prior``; a smaller one is a random part of it, a larger
    one adds to it.

    Raises:
        BadInput: the captures hold fewer samples, or the environment has no simulator.
    """
    if knowledge.kind == "none":
        return Prior.none(template)
    assert captures.prior is not None
    known, more = captures.prior, captures.more_prior
    held = len(known) + (0 if more is None else len(more))
    count = knowledge.samples(captures.population or cell.planned_population, held)
    if count < len(known):
        generator = torch_generator(cell.seed, "prior share")
        known = known[torch.randperm(len(known), generator=generator)[:count]]
    elif count > len(known):
        assert more is not None
        known = Transitions.cat([known, more[: count - len(known)]])
    simulator = None
    if knowledge.kind == "simulator":
        simulator = make_simulator(cell.env, cell.observation)
    return Prior.fit(
        known, template=template, simulator=simulator, seed=derive_seed(cell.seed, "prior")
    )
