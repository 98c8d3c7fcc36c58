"""From an attack's answers to the few of them that a report will show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch

from attacks.attack import Reconstruction
from attacks.reference import Reference, match_rows
from attacks.transitions import Transitions, flatten_state
from privguard.audit.examples import ROWS_KEPT, Example, Examples, chosen, record_errors
from privguard.records import AttackRecord


def choose_examples(
    record: AttackRecord,
    answers: Sequence[Reconstruction],
    truths: Sequence[Transitions],
    reference: Reference,
) -> Examples | None:
    """Targets spread evenly over an attack's; of each the best matched records.

    Rows are matched as the scores match them.

    Args:
        record: of the attack; its targets belong to ``answers`` and ``truths``, in order.
        answers: what the attack made of each release.
        truths: what was behind it.
        reference: the scale.

    Returns:
        None where the attack did not run.
    """
    if not answers:
        return None
    kept = chosen(len(answers))
    decoys = reference.decoys
    return Examples(
        attack=record.attack,
        release=record.release,
        knowledge=record.knowledge,
        state_mean=flatten_state(decoys.state, torch.float32).mean(dim=0).numpy(),
        state_sigma=reference.state.float().numpy(),
        action_mean=decoys.action.float().reshape(len(decoys), -1).mean(dim=0).numpy(),
        action_sigma=reference.action.float().numpy(),
        rounds=tuple(record.targets[i].round for i in kept),
        targets=tuple(_example(answers[i], truths[i], reference) for i in kept),
        records=tuple(truths[i].batch_size for i in kept),
    )


def _example(answer: Reconstruction, truth: Transitions, reference: Reference) -> Example:
    found = answer.transitions
    matched = found[match_rows(found, truth, reference)]
    every = Example(
        true_state=truth.state.cpu().numpy(),
        true_action=truth.action.reshape(len(truth), -1).cpu().numpy(),
        state=matched.state.float().cpu().numpy(),
        action=matched.action.reshape(len(truth), -1).float().cpu().numpy(),
    )
    sigma = reference.state.float().numpy(), reference.action.float().numpy()
    best = record_errors(every, *sigma).argsort(kind="stable")[:ROWS_KEPT]
    return Example(**{field.name: getattr(every, field.name)[best] for field in fields(Example)})
