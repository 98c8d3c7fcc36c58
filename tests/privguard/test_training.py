"""Training is real, reproducible, resumable at any round and blind to nothing that breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from attacks import Transitions
from attacks.observation import gradient_matching_error
from attacks.registry import get_attack
from defenses.client_accounting import ClientAccountant
from privguard.auditing import Audit
from privguard.cells import cell_record, run_cell
from privguard.checkpoints import Checkpoint, restore, take_checkpoint
from privguard.knowledge import Knowledge
from privguard.local_updates import local_updates
from privguard.records import AttackRecord
from privguard.spec import CellSpec
from privguard.training import CellTraining, Progress
from tests.privguard.tiny import tiny_budget, tiny_cell


def with_local_steps(cell: CellSpec, **rates: float) -> CellSpec:
    return cell.model_copy(
        update={"agent": cell.agent.model_copy(update={"local_steps": 3} | rates)}
    )


CELLS = {
    "dqn": tiny_cell(),
    "td3": tiny_cell("hopper"),
    "dp-sgd": tiny_cell("hopper", "dp-sgd={level}", 0.1),
    "dp-sgd-adaptive": tiny_cell("hopper", "dp-sgd-adaptive={level}", 0.1),
    "dp-sgd trajectories": tiny_cell("hopper", "dp-sgd={level}@unit=trajectory", 0.1),
    "topk": tiny_cell("hopper", "topk={level}", 0.1),
    "secagg": tiny_cell("hopper", "gaussian=0.01+secagg={level}", 2),
    "drop-outs": tiny_cell("hopper", "gaussian=0.01+secagg={level}@dropout=0.2", 4),
    "distributed-dp": tiny_cell("hopper", "distributed-dp={level}", 0.01),
    "fedavg dqn": with_local_steps(tiny_cell()),
    "fedavg topk": with_local_steps(tiny_cell("hopper", "gaussian=0.01+topk={level}", 0.1)),
}


def finished(cell: CellSpec) -> CellTraining:
    training = CellTraining(cell)
    training.run()
    training.close()
    return training


def assert_same(a: CellTraining, b: CellTraining) -> None:
    assert torch.equal(a.agent.weights, b.agent.weights)
    assert torch.equal(a.agent.target_weights, b.agent.target_weights)
    assert [e.returns for e in a.evaluations] == [e.returns for e in b.evaluations]
    left, right = a.captures.pack(), b.captures.pack()
    assert left[1] == right[1]
    assert left[0].keys() == right[0].keys()
    for name, tensor in left[0].items():
        assert torch.equal(tensor, right[0][name]), name


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_gives_the_same_numbers_twice(name: str) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert_same(finished(CELLS[name]), finished(CELLS[name]))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("name", CELLS)
def test_a_resumed_cell_ends_where_an_unbroken_one_does(name: str) -> None:
    cell = CELLS[name].model_copy(update={"budget": tiny_budget(rounds=150, evaluations=3)})
    taken: list[Checkpoint] = []

    def keep_first() -> None:
        if not taken:
            checkpoint = take_checkpoint(unbroken)
            tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
            taken.append(Checkpoint(tensors, checkpoint.plain))

    unbroken = CellTraining(cell)
    unbroken.run(save_checkpoint=keep_first, checkpoint_seconds=0.0)
    resumed = CellTraining(cell)
    restore(resumed, taken[0])
    assert 0 < resumed.round < cell.budget.rounds
    resumed.run()
    assert_same(unbroken, resumed)
    for training in (unbroken, resumed):
        costs = training.federation.costs
        # A round that too few clients answered has no cost to measure.
        opened = [c for c in training.captures.captures if c.releases["deployed"]]
        assert len(costs) == len(opened)
        assert all(cost.defended > 0 and cost.plain > 0 for cost in costs)


def test_a_cell_that_is_killed_between_attacks_repeats_neither_training_nor_attack(
    tmp_path: Path,
) -> None:
    cell, attacks = tiny_cell("hopper"), ("analytic", "spear", "dlg")
    steps: list[str] = []

    def killed(stage: str) -> None:
        steps.append(stage)
        if stage.startswith("dlg"):
            raise KeyboardInterrupt

    def run(on_stage: Callable[[str], None], directory: Path) -> list[AttackRecord]:
        def trained(progress: Progress) -> None:
            steps.append("trained")

        return run_cell(cell, attacks, directory, None, trained, on_stage, Knowledge())[1]

    with pytest.raises(KeyboardInterrupt):
        run(killed, tmp_path)
    assert "trained" in steps
    steps.clear()
    resumed = run(steps.append, tmp_path)
    assert steps == ["dlg on probe releases", "dlg on deployed releases"]
    other = tmp_path / "other"
    other.mkdir()
    unbroken = run(steps.append, other)
    assert [(r.attack, r.release, r.targets) for r in resumed] == [
        (r.attack, r.release, r.targets) for r in unbroken
    ]
    assert not list((tmp_path / "checkpoints").iterdir())


def test_another_seed_gives_other_numbers_and_another_key() -> None:
    cell = CELLS["td3"]
    other = cell.model_copy(update={"seed": 1})
    assert cell.key != other.key
    assert not torch.equal(finished(cell).agent.weights, finished(other).agent.weights)


def test_cells_of_one_seed_start_alike_whatever_the_defence() -> None:
    plain, defended = CellTraining(CELLS["td3"]), CellTraining(CELLS["dp-sgd"])
    assert torch.equal(plain.agent.weights, defended.agent.weights)
    for a, b in zip(plain.federation.clients, defended.federation.clients, strict=True):
        assert np.array_equal(a.state, b.state)


def test_no_prior_or_reference_sample_is_an_attacked_record() -> None:
    training = finished(CELLS["td3"])
    captures = training.captures
    assert captures.prior is not None
    assert captures.reference is not None
    truth = torch.cat(
        [
            release.truth.state
            for capture in captures.captures
            for releases in capture.releases.values()
            for release in releases
        ]
    )
    known = torch.cat([captures.prior.state, captures.reference.state])
    assert torch.cdist(truth, known).min() > 0


def test_the_loss_that_the_server_knows_gives_the_captured_gradient() -> None:
    """The matching loss at the true data is 0 without a defence: victim and attacker agree."""
    training = finished(CELLS["td3"])
    agent, capture = training.agent, training.captures.captures[0]
    agent.weights.copy_(capture.weights)
    agent.target_weights.copy_(capture.target_weights)
    agent.broadcast.copy_(capture.broadcast)
    for release in [*capture.releases["probe"], *capture.releases["deployed"]]:
        gradient = torch.autograd.grad(
            agent.loss(agent.shared, release.truth), list(agent.shared.parameters())
        )
        flat = torch.cat([part.reshape(-1) for part in gradient])
        torch.testing.assert_close(flat, release.gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "cell",
    [
        with_local_steps(tiny_cell(), local_learning_rate=0.5),
        with_local_steps(
            tiny_cell("hopper"), local_critic_learning_rate=2e-3, local_actor_learning_rate=0.02
        ),
        with_local_steps(tiny_cell("hopper", "secagg={level}", 2)),
    ],
    ids=["dqn", "td3", "td3 secagg"],
)
def test_the_local_steps_that_the_server_knows_give_the_captured_update(cell: CellSpec) -> None:
    cell = cell.model_copy(update={"probe_batch_size": 2})
    captures = finished(cell).captures
    audit = Audit.prepare(cell, captures, Knowledge())
    records = {"probe": 2, "deployed": 8 * 3}
    for capture in captures.captures:
        for kind, releases in capture.releases.items():
            for release in releases:
                observation = audit.observe(capture, release, kind)
                assert observation.batch_size == records[kind] * len(release.members)
                assert gradient_matching_error(observation, release.truth) < 1e-4


def test_a_round_that_opens_no_sum_teaches_nothing() -> None:
    cell = tiny_cell("hopper", "secagg={level}@dropout=0.3", 4)
    training = finished(cell.model_copy(update={"probe_batch_size": 2}))
    federation = training.federation
    # Of four, three must answer: at three in ten a third of the rounds is void.
    assert 5 < federation.void_rounds < 25
    weights = training.agent.weights.clone()
    void = federation.void_rounds
    for _ in range(40):
        federation.round(0.5)
        if federation.void_rounds > void:
            assert torch.equal(training.agent.weights, weights)
        else:
            assert not torch.equal(training.agent.weights, weights)
        void, weights = federation.void_rounds, training.agent.weights.clone()
    rng = np.random.default_rng(0)
    probes = [release for _ in range(20) for release in federation.probe(2, rng)]
    assert len(probes) == 20  # they try again
    assert {len(release.members) for release in probes} == {3, 4}
    for release in probes:
        assert release.truth.batch_size == 2 * len(release.members)
        torch.testing.assert_close(release.gradient, release.undefended, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "cell",
    [
        tiny_cell("hopper", "gaussian=0.01+secagg={level}@dropout=0.15", 4),
        tiny_cell("hopper", "distributed-dp={level}@dropout=0.15", 0.1),
        tiny_cell("hopper", "gaussian=0.01+secagg"),
    ],
    ids=["secagg", "distributed-dp", "all clients"],
)
def test_attacks_know_who_is_in_a_sum(cell: CellSpec) -> None:
    cell = cell.model_copy(update={"budget": tiny_budget(probe_draws=8)})
    captures = finished(cell).captures
    audit = Audit.prepare(cell, captures, Knowledge())
    sizes = set()
    for capture in captures.captures:
        for release in capture.releases["probe"]:
            observation = audit.observe(capture, release, "probe")
            members = len(release.members)
            sizes.add(members)
            share = 0.1 / 3**0.5 if "distributed" in cell.defense else 0.1
            assert observation.channel.noise_std == pytest.approx(share / members**0.5)
            assert observation.batch_size == members
    assert sizes == ({4} if cell.defense.endswith("secagg") else {3, 4})
    for attacked in audit.run("learned", lambda stage: None):
        record = attacked.record
        assert "sum over clients" in record.skipped or "mixes" in record.skipped
        assert record.batch_size == 4 * {"probe": 1, "deployed": 8}[record.release]


def test_an_attack_runs_on_sums_of_different_sizes() -> None:
    cell = tiny_cell("hopper", "gaussian=0.01+secagg={level}@dropout=0.2", 4)
    cell = cell.model_copy(update={"budget": tiny_budget(probe_draws=4, captures=(1.0,))})
    captures = finished(cell).captures
    probes = captures.captures[0].releases["probe"]
    assert {len(release.members) for release in probes} == {3, 4}
    audit = Audit.prepare(cell, captures, Knowledge())
    record = audit.run_attack(get_attack("map"), "map", "probe").record
    assert not record.skipped
    assert len(record.targets) == len(probes)
    assert record.batch_size == 4


def test_client_level_privacy_is_stated_with_its_assumptions() -> None:
    training = CellTraining(tiny_cell("hopper", "distributed-dp={level}", 20.0))
    training.run()
    record = cell_record(training)
    training.close()
    accountant = ClientAccountant(20.0)
    for _ in range(40):
        accountant.step(1.0)
    expected = accountant.epsilon(1e-5)
    assert record.privacy is not None
    assert record.privacy.epsilon == pytest.approx(expected, rel=1e-9)
    assert record.privacy.delta == 1e-5
    assert record.privacy.unit is not None
    assert record.privacy.unit.startswith("client")
    assert record.privacy.compositions == 40
    assert record.privacy.reconstruction_chance == pytest.approx(
        stats.norm.cdf(stats.norm.ppf(0.1) + 40**0.5 / 20), rel=1e-9
    )
    assert any("sybils" in line for line in record.privacy.assumptions)
    assert record.void_rounds == 0
    assert record.saturation_rate == 0


def test_privacy_of_a_trajectory_costs_more_than_that_of_a_transition() -> None:
    stated = []
    for unit in ("transition", "trajectory"):
        training = CellTraining(tiny_cell("hopper", f"dp-sgd={{level}}@unit={unit}", 1.0))
        training.run()
        privacy = cell_record(training).privacy
        training.close()
        assert privacy is not None
        stated.append(privacy)
    transition, trajectory = stated
    assert trajectory.unit == "trajectory (add or remove one), one client"
    assert trajectory.epsilon is not None
    assert transition.epsilon is not None
    assert trajectory.epsilon > transition.epsilon
    assert trajectory.delta is not None
    assert transition.delta is not None
    assert trajectory.delta > transition.delta, "1 over their number, of which there are fewer"
    assert any("each stored trajectory independently" in line for line in trajectory.assumptions)


def test_one_local_step_is_the_gradient_that_fedsgd_sends() -> None:
    training = finished(CELLS["td3"])
    federation, capture = training.federation, training.captures.captures[0]
    training.agent.weights.copy_(capture.weights)
    training.agent.target_weights.copy_(capture.target_weights)
    training.agent.broadcast.copy_(capture.broadcast)
    releases = capture.releases["probe"]
    batch = Transitions.cat([release.truth for release in releases])
    before = training.agent.weights.clone()
    updates = local_updates(
        training.agent, batch, torch.arange(len(releases)), len(releases), minibatches=1
    )
    assert torch.equal(training.agent.weights, before)
    assert len(releases) == len(federation.clients)
    for update, release in zip(updates, releases, strict=True):
        torch.testing.assert_close(update, release.undefended, rtol=1e-4, atol=1e-6)


def test_a_diverged_policy_is_noticed() -> None:
    cell = tiny_cell("hopper", "gaussian={level}", 1e80)
    training = finished(cell.model_copy(update={"budget": tiny_budget(rounds=200)}))
    assert training.diverged
    assert training.round < 200


def test_captures_state_the_clipping_norm_of_their_moment() -> None:
    cell = CELLS["dp-sgd-adaptive"]
    captures = finished(cell).captures
    audit = Audit.prepare(cell, captures, Knowledge())
    norms = []
    for capture in captures.captures:
        norms.append(capture.defense["probe"][0]["clip_norm"])
        observation = audit.observe(capture, capture.releases["probe"][0], "probe")
        assert [clip.limit for clip in observation.channel.clips] == norms[-1:]
    assert len(set(norms)) == len(norms) > 1


@pytest.mark.parametrize(("local_steps", "rounds"), [(1, 800), (3, 500)])
def test_the_undefended_agent_learns_frozen_lake(local_steps: int, rounds: int) -> None:
    cell = tiny_cell().model_copy(
        update={"budget": tiny_budget(rounds=rounds, warmup_steps=200, episodes=1)}
    )
    settings = cell.agent.model_copy(
        update={"hidden": (32, 32), "batch_size": 32, "local_steps": local_steps}
    )
    training = finished(cell.model_copy(update={"agent": settings}))
    assert training.evaluations[-1].returns == [1.0]


def test_only_the_evaluations_that_make_the_utility_play_all_episodes() -> None:
    budget = tiny_budget(evaluations=3, final_evaluations=2, episodes=3, curve_episodes=1)
    training = finished(tiny_cell().model_copy(update={"budget": budget}))
    assert [len(e.returns) for e in training.evaluations] == [1, 3, 3]


def test_the_server_steps_along_the_gradient_scaled_down_to_its_norm() -> None:
    limited, free = (CellTraining(tiny_cell("hopper")) for _ in range(2))
    settings = limited.agent.settings
    limited.agent.settings = settings.model_copy(update={"max_gradient_norm": 2.0})
    generator = torch.Generator().manual_seed(0)
    for norm in (50.0, 0.5, 3.0):
        gradient = torch.randn(len(free.agent.weights), generator=generator)
        gradient *= norm / gradient.norm()
        limited.federation.server.step(gradient, progress=0.0)
        free.federation.server.step(gradient * min(1.0, 2.0 / norm), progress=0.0)
    torch.testing.assert_close(limited.agent.weights, free.agent.weights)
    for cell in (limited, free):
        cell.close()
