"""One undefended record is found exactly on every MuJoCo environment, trained or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacks import Channel, Observation, Reconstruction, Transitions, get_attack
from privguard.auditing import Audit
from privguard.environments import environment_spec
from privguard.knowledge import Knowledge
from privguard.spec import CellSpec, agent_settings
from privguard.training import CellTraining
from tests.privguard.tiny import tiny_budget

EXACT = 1e-5
"""Relative error of (s, a) that float32 gradients allow."""


def clipped(observation: Observation) -> Observation:
    """The same release scaled to half of its norm, as ``clip`` does."""
    norm = 0.5 * float(observation.flat_gradient().norm())
    return replace(
        observation,
        gradient={name: 0.5 * value for name, value in observation.gradient.items()},
        channel=Channel.from_description([{"mechanism": "clip", "norm": norm}]),
    )


def relative_error(answer: Reconstruction, truth: Transitions) -> float:
    z = answer.transitions
    ours = torch.cat([z.state, z.action], dim=1).double()
    true = torch.cat([truth.state, truth.action], dim=1).double()
    return float((ours - true).norm() / true.norm())


def audit(env: str, *, layer_norm: bool) -> Audit:
    """A short training that captures four probes before its first and at its last round."""
    settings = agent_settings(environment_spec(env), batch_size=16)
    cell = CellSpec(
        env=env,
        budget=tiny_budget(rounds=300, warmup_steps=100, evaluations=1, episodes=1),
        agent=settings.model_copy(update={"hidden": (48, 48), "layer_norm": layer_norm}),
    )
    training = CellTraining(cell)
    training.run()
    training.close()
    return Audit.prepare(cell, training.captures, Knowledge())


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer-norm"])
@pytest.mark.parametrize("env", ["hopper", "walker2d", "halfcheetah", "ant"])
def test_one_record_is_exact(env: str, layer_norm: bool) -> None:
    ready = audit(env, layer_norm=layer_norm)
    # The ensemble runs every member, so it sees one release of each moment, clipped at one of them.
    for index, capture in enumerate(ready.captures.captures):
        for number, probe in enumerate(capture.releases["probe"]):
            plain = ready.observe(capture, probe, "probe")
            scaled = clipped(plain)
            for release in (plain, scaled):
                answer = get_attack("analytic").reconstruct(release, prior=ready.prior, seed=0)
                assert relative_error(answer, probe.truth) < EXACT
            if number == 0:
                release = scaled if index == layer_norm else plain
                answer = get_attack("strongest").reconstruct(release, prior=ready.prior, seed=0)
                assert relative_error(answer, probe.truth) < EXACT
