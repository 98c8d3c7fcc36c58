"""Releases of local training: their simulation is right, and attacks know what still holds."""

from __future__ import annotations

import copy
import dataclasses
import statistics

import pytest
import torch
from torch import Tensor, nn

from attacks import Channel, LocalTraining, Observation, Prior, Transitions, get_attack
from attacks.bounds import record_information
from attacks.conformance_problems import Problem, chain_problem
from attacks.gradients.choice import choose_gradients
from attacks.gradients.unrolled import UnrolledGradients
from attacks.local_training import local_release
from attacks.observation import gradient_matching_error
from attacks.reference import Reference
from attacks.scores import score
from tests.attacks.conftest import Client, random_transitions

STEPS = 3


def double_client(hidden: int = 16) -> Client:
    client = Client.build(5, 2, hidden=hidden)
    for network in (client.model, client.target, client.frozen):
        network.double()
    return client


def local_training(
    client: Client | Problem, rate: float = 0.01, steps: int = STEPS, **parts: int
) -> LocalTraining:
    """Actor and critic learn at different rates."""
    rates = {
        name: rate / 2 if name.startswith("actor") else rate
        for name, _ in client.model.named_parameters()
    }
    return LocalTraining(steps, rates, **parts)


def observe(
    client: Client, z: Transitions, local: LocalTraining, channel: Channel | None = None
) -> Observation:
    plain = client.observe(z, channel)
    release = local_release(client.model, client.loss, z, local)
    return dataclasses.replace(plain, gradient=release, local=local)


def descended(client: Client, batches: list[Transitions], local: LocalTraining) -> Tensor:
    """(w_0 - w_N) / rate of torch's own optimiser, as one vector."""
    model = copy.deepcopy(client.model)
    groups = [{"params": [p], "lr": local.learning_rates[n]} for n, p in model.named_parameters()]
    optimiser = torch.optim.SGD(groups, lr=0.0)
    for batch in batches:
        optimiser.zero_grad()
        client.loss(model, batch).backward()
        optimiser.step()
    before, after = client.model.named_parameters(), model.parameters()
    return torch.cat(
        [
            ((start - end) / local.learning_rates[name]).detach().reshape(-1)
            for (name, start), end in zip(before, after, strict=True)
        ]
    )


def test_one_local_step_sends_the_gradient() -> None:
    client, z = double_client(), random_transitions(3)
    plain = client.observe(z)
    stepped = observe(client, z, local_training(client, steps=1))
    torch.testing.assert_close(stepped.flat_gradient(), plain.flat_gradient())
    torch.testing.assert_close(stepped.flat_gradient_at(z), plain.flat_gradient_at(z))


def test_the_release_is_the_weight_difference_over_the_rate() -> None:
    client, z = double_client(), random_transitions(6)
    epochs = observe(client, z, local_training(client))
    torch.testing.assert_close(
        epochs.flat_gradient(), descended(client, [z] * STEPS, local_training(client))
    )
    parts = [z[slice(0, 2)], z[slice(2, 4)], z[slice(4, 6)]]
    shares = observe(client, z, local_training(client, minibatches=STEPS))
    torch.testing.assert_close(
        shares.flat_gradient(), descended(client, parts, local_training(client))
    )


def test_a_sum_over_clients_is_the_mean_of_their_releases() -> None:
    client, z = double_client(), random_transitions(8)
    local = local_training(client, steps=2, minibatches=2)
    alone = [observe(client, z[slice(k, k + 4)], local).flat_gradient() for k in (0, 4)]
    together = observe(client, z, dataclasses.replace(local, clients=2))
    torch.testing.assert_close(together.flat_gradient(), (alone[0] + alone[1]) / 2)


@pytest.mark.parametrize("channel", [Channel(), Channel(0.0, ({"mechanism": "topk"},))])
def test_matching_at_the_truth_is_zero_only_through_the_local_steps(channel: Channel) -> None:
    client, z = double_client(), random_transitions(3)
    observation = observe(client, z, local_training(client, rate=0.05), channel)
    assert gradient_matching_error(observation, z) < 1e-12
    with choose_gradients([observation], 1) as gradients:
        assert isinstance(gradients, UnrolledGradients)
        dot, square = gradients.terms(z)
    torch.testing.assert_close(dot, square)
    torch.testing.assert_close(square, gradients.target_square)
    received = {name: value / STEPS for name, value in observation.gradient.items()}
    blind = dataclasses.replace(observation, gradient=received, local=None)
    assert gradient_matching_error(blind, z) > 0.05


def branching(model: nn.Module, z: Transitions) -> Tensor:
    """A loss that ``vmap`` refuses."""
    error = model(z.state).squeeze(-1) - z.reward
    return (error**2).mean() if error.sum() > 0 else (2 * error**2).mean()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_groups_in_one_pass_are_groups_one_by_one(batch_size: int) -> None:
    client = double_client()
    observations = [
        observe(client, random_transitions(batch_size, seed=k), local_training(client))
        for k in range(2)
    ]
    fakes = random_transitions(4 * batch_size, seed=9)
    results = []
    for vectorises in (True, False):
        gradients = UnrolledGradients(observations, 2)
        gradients._vectorises = vectorises
        leaves = [t.clone().requires_grad_() for t in (fakes.state, fakes.action, fakes.next_state)]
        dot, square = gradients.terms(
            Transitions(leaves[0], leaves[1], fakes.reward, leaves[2], fakes.terminated)
        )
        slopes = torch.autograd.grad((square - 2 * dot).sum(), leaves)
        results.append([dot, square, *slopes])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


def test_slopes_go_through_every_local_step() -> None:
    client, z = double_client(), random_transitions(1)
    observation = observe(client, random_transitions(1, seed=1), local_training(client, rate=0.05))

    def objective(state: Tensor) -> Tensor:
        moved = Transitions(state, z.action, z.reward, z.next_state, z.terminated)
        dot, square = UnrolledGradients([observation], 1).terms(moved)
        return (square - 2 * dot).sum()

    assert torch.autograd.gradcheck(objective, [z.state.clone().requires_grad_()])


def test_a_loss_that_branches_on_values_is_run_group_by_group() -> None:
    z = random_transitions(2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(5, 1).double()
    local = LocalTraining(2, dict.fromkeys(("weight", "bias"), 0.01))
    release = local_release(model, branching, z, local)
    observation = Observation(model, release, branching, 2, z.template(), local=local)
    with choose_gradients([observation], 1) as gradients:
        dot, square = gradients.terms(z)
    torch.testing.assert_close(dot, square)


@pytest.mark.parametrize("steps", [2, 10])
def test_analytic_is_exact_whatever_the_local_steps(hopper: Transitions, steps: int) -> None:
    client, truth = Client.build(11, 3), hopper[700]
    knowing = Prior.fit(hopper[:300], simulator=lambda s, a: (truth.next_state, truth.reward))
    observation = observe(client, truth, local_training(client, rate=1e-3, steps=steps))
    answer = get_attack("analytic").reconstruct(observation, prior=knowing, seed=0)
    torch.testing.assert_close(answer.transitions.state, truth.state, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(answer.transitions.action, truth.action, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(answer.transitions.reward, truth.reward, rtol=1e-3, atol=1e-3)
    assert answer.gme < 1e-3


def test_analytic_finds_the_reward_of_a_clipped_update(hopper: Transitions) -> None:
    client, truth = Client.build(11, 3), hopper[700]
    knowing = Prior.fit(hopper[:300], simulator=lambda s, a: (truth.next_state, truth.reward))
    channel = Channel.from_description([{"mechanism": "clip", "norm": 0.1}])
    clean = observe(client, truth, local_training(client, rate=1e-3), channel)
    clipped = dataclasses.replace(
        clean, gradient={name: 0.03 * value for name, value in clean.gradient.items()}
    )
    answer = get_attack("analytic").reconstruct(clipped, prior=knowing, seed=0)
    torch.testing.assert_close(answer.transitions.state, truth.state, rtol=0.0, atol=1e-4)
    torch.testing.assert_close(answer.transitions.reward, truth.reward, rtol=1e-2, atol=1e-2)


def test_analytic_finds_a_discrete_action() -> None:
    problem = chain_problem()
    prior = Prior.none(problem.template)
    for row in range(4):
        answer = get_attack("analytic").reconstruct(
            problem.observe([row], local_steps=STEPS), prior=prior, seed=0
        )
        truth = problem.transitions[row]
        assert torch.equal(answer.transitions.action, truth.action)
        torch.testing.assert_close(answer.transitions.state, truth.state, atol=1e-5, rtol=0.0)


def test_dlg_matches_a_sum_of_local_gradients() -> None:
    client = Client.build(5, 2, hidden=32, layer_norm=False)
    local = local_training(client, rate=0.02)
    observations = [
        observe(client, random_transitions(1, seed=k, dtype=torch.float32), local) for k in range(3)
    ]
    prior = Prior.none(observations[0].template)
    attack = get_attack("dlg", restarts=4)
    answers = attack.reconstruct_many(observations, prior=prior, seed=0)
    assert statistics.median(a.gme for a in answers) < 0.02


def test_rgia_reads_a_sum_of_local_gradients_as_well_as_a_gradient(hopper: Transitions) -> None:
    client = Client.build(11, 3, hidden=64)
    prior = Prior.fit(hopper[:300])
    reference = Reference.fit(hopper[300:], template=hopper.template())
    rows = list(range(400, 2000, 400))
    local = local_training(client, rate=1e-3)
    accuracy = {}
    for kind, releases in (
        ("gradient", [client.observe(hopper[row]) for row in rows]),
        ("update", [observe(client, hopper[row], local) for row in rows]),
    ):
        answers = get_attack("rgia", restarts=2).reconstruct_many(releases, prior=prior, seed=0)
        scores = [score(a, hopper[r], prior, reference) for a, r in zip(answers, rows, strict=True)]
        accuracy[kind] = statistics.mean(s["ra"] or 0.0 for s in scores)
    assert accuracy["update"] > accuracy["gradient"] - 0.1
    assert accuracy["update"] > 0.5


@pytest.mark.parametrize("name", ["map", "spear"])
def test_models_of_a_single_gradient_say_so(name: str) -> None:
    client, z = Client.build(5, 2), random_transitions(1, dtype=torch.float32)
    assert not get_attack(name).unsupported(client.observe(z))
    reason = get_attack(name).unsupported(observe(client, z, local_training(client)))
    assert "sums local steps" in reason
    assert "\n" not in reason


def test_no_floor_is_claimed(hopper: Transitions) -> None:
    client, population = Client.build(11, 3), Prior.fit(hopper)
    noisy = Channel(noise_std=0.1)
    plain = client.observe(hopper[:1], noisy)
    trained = observe(client, hopper[:1], local_training(client, rate=1e-3), noisy)
    assert record_information([plain], [hopper[:1]], population) is not None
    assert record_information([trained], [hopper[:1]], population) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, "steps >= 1"),
        ({"clients": 0}, "clients >= 1"),
        ({"minibatches": 4}, "minibatches <= steps"),
        ({"learning_rates": {"a": -1.0}}, "'a' is -1"),
        ({"learning_rates": {"a": float("nan")}}, "'a' is nan"),
    ],
)
def test_impossible_local_training_is_refused(change: dict[str, object], says: str) -> None:
    fields: dict[str, object] = {"steps": STEPS, "learning_rates": {"a": 0.1}}
    with pytest.raises(ValueError, match=says):
        LocalTraining(**(fields | change))  # type: ignore[arg-type]


def test_local_training_must_fit_the_release() -> None:
    client, z = double_client(), random_transitions(2)
    plain, local = client.observe(z), local_training(client)
    some = dict(list(local.learning_rates.items())[1:])
    for wrong, says in (
        (dataclasses.replace(local, learning_rates=some), "no local learning rate"),
        (dataclasses.replace(local, learning_rates={**some, "x": 1.0}), "no parameter"),
        (dataclasses.replace(local, minibatches=3), "2 records are not"),
    ):
        with pytest.raises(ValueError, match=says):
            dataclasses.replace(plain, local=wrong)
