"""Which records a report may show: of a minibatch the ones that were read best."""

from __future__ import annotations

import numpy as np
import torch

from attacks.attack import Reconstruction
from attacks.reference import Reference
from attacks.transitions import Transitions
from privguard.audit.chosen_examples import choose_examples
from privguard.audit.examples import ROWS_KEPT
from privguard.records import AttackRecord, TargetScores


def records(count: int, seed: int) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    return Transitions(
        state=torch.randn(count, 5, generator=generator),
        action=torch.randn(count, 2, generator=generator),
        reward=torch.zeros(count),
        next_state=torch.randn(count, 5, generator=generator),
        terminated=torch.zeros(count, dtype=torch.bool),
    )


def test_the_best_read_records_of_a_minibatch_are_kept_beside_their_truths() -> None:
    reference = Reference.fit(records(2000, seed=1), template=records(1, seed=0).template())
    truth = records(20, seed=2)
    errors = torch.linspace(0.4, 0.01, 20)
    # The last records are read best; the answer comes in another order than the truth.
    read = truth.state + errors[:, None]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    answer = Transitions(
        state=read[order],
        action=truth.action[order],
        reward=truth.reward,
        next_state=truth.next_state[order],
        terminated=truth.terminated,
    )
    record = AttackRecord(
        cell_key="a",
        attack="map",
        release="deployed",
        batch_size=20,
        knowledge="samples",
        targets=[TargetScores(capture=0, round=7, client=0, scores={})],
    )
    kept = choose_examples(record, [Reconstruction(answer, 0.0, 1.0)], [truth], reference)
    assert kept is not None
    assert (kept.rounds, kept.records) == ((7,), (20,))
    (target,) = kept.targets
    best = truth.state.flip(0)[:ROWS_KEPT]
    np.testing.assert_array_equal(target.true_state, best.numpy())
    np.testing.assert_allclose(
        (target.state - target.true_state)[:, 0], errors.flip(0)[:ROWS_KEPT].numpy(), atol=1e-6
    )
