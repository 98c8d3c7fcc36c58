"""SPEAR must be exact on real, correlated states, and say where it cannot be."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import Channel, Observation, Prior, Transitions, get_attack
from attacks.batches.binary_factors import Subspace, binary_vectors, independent
from attacks.batches.dense_stacks import dense_stacks, rectified_layers
from attacks.batches.exchange import exchange
from attacks.batches.sparse_factors import sparse_vectors
from attacks.batches.unmixing import unmix_sparse
from attacks.conformance_problems import chain_problem
from tests.attacks.conftest import (
    Client,
    errors,
    observe_quantiles,
    random_transitions,
    relative_errors,
)

ENVIRONMENTS = {
    "ant": ("Ant-v5", {"include_cfrc_ext_in_observation": False}),
    "ant with contact forces": ("Ant-v5", {}),
    "halfcheetah": ("HalfCheetah-v5", {}),
}


@pytest.fixture(scope="module")
def steps() -> dict[str, Transitions]:
    """1,200 steps of each environment under correlated random actions."""
    return {name: collect(env, 1200, **kw) for name, (env, kw) in ENVIRONMENTS.items()}


def collect(name: str, count: int, **options: bool) -> Transitions:
    env = gym.make(name, disable_env_checker=True, **options)
    high = env.action_space.high  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    noise = np.zeros(len(high))
    rows = []
    state, _ = env.reset(seed=0)
    for _ in range(count):
        noise = 0.9 * noise + 0.44 * rng.standard_normal(len(high))
        unit = np.clip(0.6 * noise, -1, 1).astype(np.float32)
        after, reward, terminated, truncated, _ = env.step(unit * high)
        rows.append((state, unit, reward, after, terminated))
        state = env.reset()[0] if terminated or truncated else after
    fields = [torch.tensor(np.array(f), dtype=torch.float32) for f in zip(*rows, strict=True)]
    return Transitions(*fields)


def trained(client: Client, z: Transitions, updates: int) -> Client:
    """Some temporal-difference learning from ``z``."""
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(client.model.parameters(), lr=1e-3)
    for _ in range(updates):
        rows = torch.randint(len(z), (64,), generator=generator)
        optimiser.zero_grad()
        client.loss(client.model, z[rows]).backward()
        optimiser.step()
        client.frozen.load_state_dict(client.model["critic"].state_dict())
    optimiser.zero_grad(set_to_none=True)
    return client


def pick(z: Transitions, rows: int, seed: int = 0) -> Transitions:
    generator = torch.Generator().manual_seed(seed)
    return z[300 + torch.randperm(len(z) - 300, generator=generator)[:rows]]


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("updates", [0, 300])
@pytest.mark.parametrize("environment", list(ENVIRONMENTS))
def test_batches_are_exact(
    steps: dict[str, Transitions], environment: str, updates: int, layer_norm: bool
) -> None:
    z = steps[environment]
    client = Client.build(z.state.shape[1], z.action.shape[1], layer_norm=layer_norm)
    trained(client, z, updates)
    prior = Prior.none(client.observe(z[:1]).template)
    for batch in (1, 4, 8, 16):
        truth = pick(z, batch)
        answer = get_attack("spear").reconstruct(client.observe(truth), prior=prior, seed=0)
        assert float(errors(answer, truth).max()) < 1e-3
        assert answer.objective < 1e-3
        assert "told apart" not in answer.notes


@pytest.mark.parametrize(("hidden", "layer_norm", "batch"), [(128, True, 24), (256, False, 64)])
def test_larger_batches_are_exact(
    steps: dict[str, Transitions], hidden: int, layer_norm: bool, batch: int
) -> None:
    z = steps["ant"]
    client = Client.build(27, 8, hidden=hidden, layer_norm=layer_norm)
    truth = pick(z, batch)
    observation = client.observe(truth)
    prior = Prior.none(observation.template)
    answer = get_attack("spear").reconstruct(observation, prior=prior, seed=0)
    assert float(errors(answer, truth).max()) < 1e-3


def test_rewards_follow_from_next_states(steps: dict[str, Transitions]) -> None:
    z = steps["ant"]
    truth = pick(z, 8)
    client = Client.build(27, 8)

    def simulator(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        nearest = torch.cdist(state, z.state).argmin(dim=1)
        return z.next_state[nearest], z.reward[nearest]

    prior = Prior.fit(z[:300], simulator=simulator)
    answer = get_attack("spear").reconstruct(client.observe(truth), prior=prior, seed=0)
    ours, true = answer.transitions.reward.sort().values, truth.reward.sort().values
    torch.testing.assert_close(ours, true, rtol=1e-2, atol=1e-3)
    assert answer.gme < 1e-3


def test_clipping_hides_nothing_of_states_and_actions(steps: dict[str, Transitions]) -> None:
    truth = pick(steps["ant"], 8)
    client = Client.build(27, 8)
    clean = client.observe(truth)
    clipped = Observation(
        client.model,
        {n: 0.05 * g for n, g in clean.gradient.items()},
        client.loss,
        8,
        clean.template,
        Channel.from_description([{"mechanism": "clip", "norm": 0.1}]),
    )
    prior = Prior.fit(steps["ant"][:300], template=clean.template)
    answer = get_attack("spear").reconstruct(clipped, prior=prior, seed=0)
    assert float(errors(answer, truth).max()) < 1e-3


def test_first_layers_alone_are_enough_without_layer_norm(steps: dict[str, Transitions]) -> None:
    truth = pick(steps["ant"], 16)
    client = Client.build(27, 8, layer_norm=False)
    observation = client.observe(truth)
    layers = [layer for columns, layer in rectified_layers(observation) if len(columns) == 35]
    assert len(layers) == 2  # both critics; the actor reads the state only
    unmixed = unmix_sparse(observation, layers, generator=torch.Generator().manual_seed(0))
    assert float(relative_errors(unmixed.rows, truth).max()) < 1e-3


def test_several_outputs_a_record_leave_the_first_layer(steps: dict[str, Transitions]) -> None:
    """A head of quantiles is no scalar head, so that the records are told by sparsity."""
    truth = pick(steps["ant"], 6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(35, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 5)
        )
    observation = observe_quantiles(model, truth, truth.template())
    assert dense_stacks(observation) == []
    prior = Prior.none(truth.template())
    answer = get_attack("spear").reconstruct(observation, prior=prior, seed=0)
    assert float(errors(answer, truth).max()) < 1e-3


def test_taken_actions_are_found() -> None:
    problem = chain_problem()
    prior = Prior.none(problem.template)
    rows = [0, 5, 9]
    truth = problem.transitions[rows]
    pairs = {(int(s.argmax()), int(a)) for s, a in zip(truth.state, truth.action, strict=True)}
    answer = get_attack("spear").reconstruct(problem.observe(rows), prior=prior, seed=0)
    z = answer.transitions
    found = {(int(s.argmax()), int(a)) for s, a in zip(z.state, z.action, strict=True)}
    assert found == pairs
    assert answer.objective < 1e-6


def test_layers_with_an_affine_norm_are_found_and_inverted(steps: dict[str, Transitions]) -> None:
    truth = pick(steps["halfcheetah"], 6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(23, 96), nn.LayerNorm(96), nn.ReLU(),
            nn.Linear(96, 64), nn.LayerNorm(64), nn.ReLU(),
            nn.Linear(64, 1),
        )  # fmt: skip
        for norm in (model[1], model[4]):
            nn.init.uniform_(norm.weight, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(norm.bias, -0.2, 0.2)  # type: ignore[arg-type]

    def loss(m: nn.Module, z: Transitions) -> Tensor:
        value = m(torch.cat([z.state, z.action], dim=1)).squeeze(-1)
        return 0.5 * (value - z.reward).square().mean()

    gradient = torch.autograd.grad(loss(model, truth), list(model.parameters()))
    names = [n for n, _ in model.named_parameters()]
    observation = Observation(
        model, dict(zip(names, gradient, strict=True)), loss, 6, truth.template()
    )
    answer = get_attack("spear").reconstruct(
        observation, prior=Prior.none(truth.template()), seed=0
    )
    assert float(errors(answer, truth).max()) < 1e-3


def test_it_says_why_it_cannot(steps: dict[str, Transitions]) -> None:
    attack = get_attack("spear")
    client = Client.build(27, 8, hidden=32)
    observation = client.observe(steps["ant"][:20])
    assert "determine at most 15" in attack.unsupported(observation)
    sparse = Observation(
        client.model,
        observation.gradient,
        client.loss,
        4,
        observation.template,
        Channel.from_description([{"mechanism": "topk", "fraction": 0.1}]),
    )
    assert "not sent" in attack.unsupported(sparse)
    linear = nn.Linear(35, 1)

    def loss(m: nn.Module, z: Transitions) -> Tensor:
        return (m(torch.cat([z.state, z.action], dim=1)).squeeze(-1) - z.reward).square().mean()

    gradient = {n: torch.ones_like(p) for n, p in linear.named_parameters()}
    plain = Observation(linear, gradient, loss, 2, observation.template)
    assert "feeds a ReLU" in attack.unsupported(plain)


def test_a_failed_search_is_said_and_is_not_worse_than_the_prior() -> None:
    client = Client.build(5, 2, hidden=32)
    truth = random_transitions(14, dtype=torch.float32)
    observation = client.observe(truth)
    prior = Prior.fit(random_transitions(50, seed=1, dtype=torch.float32))
    answer = get_attack("spear", iterations=50, attempts=1).reconstruct(
        observation, prior=prior, seed=0
    )
    assert "does not explain" in answer.notes
    assert answer.objective <= 1.0


def test_binary_vectors_are_all_found() -> None:
    generator = torch.Generator().manual_seed(3)
    patterns = torch.rand(20, 100, generator=generator) < 0.5
    scale = torch.randn(100, generator=generator, dtype=torch.float64)
    mixing = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    columns = torch.linalg.qr((patterns * scale).T @ mixing)[0]
    subspace = Subspace(columns, torch.full((20,), 1e-12, dtype=torch.float64))
    found = binary_vectors(subspace, scale[None], 20, generator=generator)
    assert bool(found.accepted.all())
    got = {tuple(row.tolist()) for row in found.vectors != 0}
    assert {tuple(row.tolist()) for row in patterns} <= got


def test_sparse_vectors_are_all_found() -> None:
    generator = torch.Generator().manual_seed(3)
    true = torch.randn(10, 160, generator=generator, dtype=torch.float64)
    true = true * (torch.rand(10, 160, generator=generator) < 0.5)
    left = torch.linalg.qr(true.T)[0]
    std = torch.full((10,), 1e-12, dtype=torch.float64)
    found = sparse_vectors(left, std, generator=generator)
    values = found.coefficients @ left.T
    cosine = torch.nn.functional.normalize(values) @ torch.nn.functional.normalize(true).T
    assert bool(found.accepted.all())
    assert float(cosine.abs().amax(dim=0).min()) > 1 - 1e-9


def test_independence() -> None:
    rows = torch.tensor([[1.0, 0, 0], [2, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 3]])
    assert independent(rows, 3).tolist() == [0, 2, 4]


def test_exchanges_lead_to_the_patterns_that_their_inputs_activate() -> None:
    """Records alike, as frames of a game are: patterns in between lie in the same subspace."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(60, 31, generator=generator, dtype=torch.float64)
    head = torch.randn(60, generator=generator, dtype=torch.float64)
    usual = torch.randn(30, generator=generator, dtype=torch.float64)
    inputs = usual + 0.1 * torch.randn(6, 30, generator=generator, dtype=torch.float64)
    inputs = torch.cat([inputs, torch.ones(6, 1, dtype=torch.float64)], dim=1)
    true = (inputs @ weight.T > 0).double()
    # Sums of two patterns less a third that are patterns too, before the true ones.
    combined = torch.tensor(
        [(i, j, k) for i in range(6) for j in range(i) for k in range(6) if k not in (i, j)]
    )
    between = true[combined[:, 0]] + true[combined[:, 1]] - true[combined[:, 2]]
    binary = ((between == 0) | (between == 1)).all(dim=1)
    known = (between[:, None] == true).all(dim=2).any(dim=1)
    wrong = between[binary & ~known].unique(dim=0)
    assert len(wrong) > 6, "or there is nothing to choose between"
    patterns = torch.cat([wrong, true])
    loudness = torch.tensor([1.0, -0.3, 0.1, 0.03, -0.02, 0.5], dtype=torch.float64)
    basis = torch.linalg.qr((head * true).T)[0]
    gradient = ((head * true).T * loudness) @ inputs
    rows = basis.T @ gradient @ torch.cat([weight.T, torch.eye(31, dtype=torch.float64)[:, -1:]], 1)

    def costs(outputs: Tensor, sets: Tensor) -> Tensor:
        active = outputs[..., :-1] / outputs[..., -1:] > 0
        return (active != (patterns[sets] == 1)).sum(dim=-1)

    start = independent(head * patterns, 6)
    assert int(start.min()) < len(wrong)
    chosen, cost = exchange(head * patterns @ basis, rows, start, costs)
    assert cost == 0
    assert sorted(chosen.tolist()) == list(range(len(wrong), len(patterns)))
