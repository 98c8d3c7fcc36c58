"""Attacks on networks and gradients that lie on a GPU answer as they do on the processor."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from attacks import Prior, get_attack
from attacks.conformance_problems import Problem, box_problem, chain_problem, screen_problem
from attacks.registry import available_attacks

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

FITTED = {"learned": 0.05}
"""Trained by many float32 steps, which rounding sends on other ways: absolute tolerance."""


def on_gpu(problem: Problem) -> Problem:
    return dataclasses.replace(
        problem,
        model=copy.deepcopy(problem.model).cuda(),
        target=copy.deepcopy(problem.target).cuda(),
        transitions=problem.transitions.to(device="cuda"),
    )


@pytest.mark.parametrize("name", sorted(available_attacks()))
@pytest.mark.parametrize(
    ("make", "batch_size", "local_steps"),
    [
        (box_problem, 1, 1),
        (box_problem, 3, 1),
        (chain_problem, 1, 1),
        (screen_problem, 1, 1),
        (box_problem, 1, 2),
    ],
)
def test_same_answer_as_on_the_processor(name, make, batch_size, local_steps):
    problem, attack = make(), get_attack(name)
    here = problem.observe(list(range(batch_size)), local_steps)
    if attack.unsupported(here):
        pytest.skip(attack.unsupported(here))
    there = on_gpu(problem).observe(list(range(batch_size)), local_steps)
    prior = Prior.fit(problem.transitions[100:], template=problem.template)

    expected = attack.reconstruct(here, prior=prior, seed=0)
    answer = attack.reconstruct(there, prior=prior, seed=0)

    z, truth = answer.transitions.to(device="cpu"), expected.transitions
    near = FITTED.get(name, 1e-3)
    assert answer.gme == pytest.approx(expected.gme, rel=1e-2, abs=FITTED.get(name, 1e-6))
    torch.testing.assert_close(z.state.double(), truth.state.double(), rtol=1e-3, atol=near)
    torch.testing.assert_close(z.action.double(), truth.action.double(), rtol=1e-3, atol=near)
