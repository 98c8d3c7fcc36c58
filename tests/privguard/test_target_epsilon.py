"""Levels written as ``eps:X``: what they become, and that a trained cell keeps the promise."""

import math
from dataclasses import replace

import pytest

import defenses
from privguard.budgets import budget
from privguard.cells import cell_record
from privguard.command_line.options import calibrated_defenses
from privguard.command_line.target_epsilon import Plan, with_noise_multipliers
from privguard.environments import environment_spec
from privguard.grids import parse_grid
from privguard.recipes import agent_settings
from privguard.spec import CellSpec
from privguard.training import CellTraining

PLAN = Plan(rounds=300, warmup_steps=200, steps_per_round=1, batch_size=32)


def test_only_the_wanted_levels_are_replaced():
    text = with_noise_multipliers("dp-sgd=0.5,eps:8@clip=2+secagg=2", PLAN)
    grid = parse_grid(text, clients=4)
    assert grid.template == "dp-sgd={level}@clip=2+secagg=2"
    assert grid.levels[0] == 0.5
    assert 0.5 < grid.levels[1] < 50
    assert with_noise_multipliers("clip=1+gaussian=0.1", PLAN) == "clip=1+gaussian=0.1"


def test_a_schedule_is_calibrated_as_it_falls():
    # Every noise multiplier is a mechanism of its own to account for, so only a few rounds.
    plan = replace(PLAN, rounds=60)
    constant = with_noise_multipliers("dp-sgd=eps:8", plan)
    falling = with_noise_multipliers("dp-sgd-scheduled=eps:8@gamma=0.95", plan)
    assert falling.endswith("@gamma=0.95")
    assert float(falling.split("=")[1].split("@")[0]) > float(constant.split("=")[1])


def test_rdp_plans_the_noise_whatever_analysis_states_what_was_spent():
    by_rdp = with_noise_multipliers("dp-sgd=eps:8", PLAN)
    assert with_noise_multipliers("dp-sgd=eps:8@accounting=prv", PLAN) == f"{by_rdp}@accounting=prv"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gaussian=eps:8", "gaussian accounts for no epsilon; give its variance"),
        ("dp-sgd=eps:much", "finite number above 0"),
        ("dp-sgd=eps:-1", "finite number above 0"),
        ("dp-sgd=eps:8@unit=trajectory", "depends on the policy; give its noise multiplier"),
        ("dp-sdg=eps:1", "did you mean 'dp-sgd'"),
    ],
)
def test_a_wrong_epsilon_is_one_line(text, says):
    with pytest.raises(defenses.DefenseError, match=says) as caught:
        with_noise_multipliers(text, PLAN)
    assert "\n" not in str(caught.value)


def test_the_observation_decides_the_planned_rounds():
    texts = [
        calibrated_defenses(["dp-sgd=eps:8"], "pong", "smoke", observation=observation)[0]
        for observation in ("default", "ram")
    ]
    frames, ram = (float(text.split("=")[1]) for text in texts)
    assert ram > 1.5 * frames, "300 rounds of 64 cost more than 20 of 8"


def test_a_trained_cell_spends_what_was_wanted():
    settings = agent_settings(environment_spec("frozenlake"), None)
    (text,) = calibrated_defenses(["dp-sgd=eps:4"], "frozenlake", "smoke")
    level = float(text.split("=")[1])
    training = CellTraining(
        CellSpec(
            env="frozenlake",
            defense="dp-sgd={level}",
            level=level,
            budget=budget("smoke", "frozenlake"),
            agent=settings,
        )
    )
    training.run()
    privacy = cell_record(training).privacy
    training.close()
    assert privacy.epsilon is not None
    assert 0.95 * 4 <= privacy.epsilon <= 4
    # An observer gains on a guess, but by less than (epsilon, delta) alone would allow.
    assert 0.1 < privacy.reconstruction_chance < 0.1 * math.exp(privacy.epsilon) + privacy.delta
    assert privacy.reconstruction_chance < 0.9
