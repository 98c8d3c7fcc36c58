"""A replay against the function it was recorded from, and functions that must not be replayed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attacks import Observation, Prior, Transitions, get_attack, matching
from attacks.gradients.replay import record
from tests.attacks.conftest import Client, dense, random_transitions

Function = Callable[[Tensor], tuple[Tensor, ...]]


def at(function: Function, x: Tensor, elsewhere: Tensor) -> list[Tensor]:
    """What a recording at ``x`` gives at ``elsewhere``."""
    replay = record(function, x, torch.randn(x.shape, dtype=x.dtype))
    assert replay is not None
    x.detach().copy_(elsewhere)
    with torch.inference_mode():
        return [out.clone() for out in replay()]


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_replay_computes_double_backpropagation_exactly(layer_norm: bool, rows: int) -> None:
    torch.manual_seed(0)
    network = dense([4, 16, 16, 1], layer_norm).double()

    def slope_of_the_gradient_norm(x: Tensor) -> tuple[Tensor, ...]:
        value = (network(x) ** 2).mean() + x.tanh().sum()
        grads = torch.autograd.grad(value, list(network.parameters()), create_graph=True)
        square = torch.stack([g.square().sum() for g in grads]).sum()
        return square.detach(), torch.autograd.grad(square, [x])[0]

    x = torch.randn(rows, 4, dtype=torch.float64, requires_grad=True)
    elsewhere = torch.randn(rows, 4, dtype=torch.float64)
    replayed = at(slope_of_the_gradient_norm, x, elsewhere)
    for ours, theirs in zip(replayed, slope_of_the_gradient_norm(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_operations_that_change_nothing_are_left_out_and_others_are_not() -> None:
    def padded(x: Tensor) -> tuple[Tensor, ...]:
        plain = (x * torch.ones(3) + torch.zeros(3)).sum(dim=1, keepdim=True).sum(dim=1)
        shifted = torch.add(torch.zeros(2, 3), x, alpha=2)
        written = torch.zeros(2, 3)
        written[:, 1] = x[:, 0]
        return plain, x * 2 + x * 2, shifted, written, x.mT.reshape(2, 3)

    x = torch.randn(2, 3)
    elsewhere = torch.randn(2, 3)
    replay = record(padded, x, elsewhere)
    assert replay is not None
    assert len(replay) < 10
    replayed = at(padded, x, elsewhere)
    for ours, theirs in zip(replayed, padded(elsewhere), strict=True):
        torch.testing.assert_close(ours, theirs)


def drops_out(x: Tensor) -> tuple[Tensor]:
    return (nn.functional.dropout(x, 0.5),)


def branches(x: Tensor) -> tuple[Tensor]:
    return (x * 2 if bool((x > 0).any()) else x,)


def selects(x: Tensor) -> tuple[Tensor]:
    return (x[x > 0].sum(),)


def leaves_torch(x: Tensor) -> tuple[Tensor]:
    return (x + torch.from_numpy(x.numpy().copy() ** 2),)


TALLY = torch.zeros(3)


def counts(x: Tensor) -> tuple[Tensor]:
    return (TALLY.add_(x),)


def grows(x: Tensor) -> tuple[Tensor]:
    return (x.repeat(6_000_000, 1).sum(),)


@pytest.mark.parametrize("function", [drops_out, branches, selects, leaves_torch, counts, grows])
def test_what_cannot_be_replayed_is_not(function: Function) -> None:
    x = torch.tensor([0.5, -1.0, 2.0])
    assert record(function, x, torch.tensor([-0.3, 1.0, 0.7])) is None
    assert torch.equal(x, torch.tensor([0.5, -1.0, 2.0]))


@pytest.mark.parametrize("name", ["rgia", "geiping"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_matching_finds_the_same_with_and_without_replay(
    name: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client.build(5, 2, hidden=16)
    for network in (client.model, client.target, client.frozen):
        network.double()
    observations = [client.observe(random_transitions(batch_size, seed=k)) for k in range(2)]
    prior = Prior.fit(random_transitions(60, seed=9))
    attack = get_attack(name, iterations=120)
    replayed = attack.reconstruct_many(observations, prior=prior, seed=0)
    recorded = []
    monkeypatch.setattr(matching, "record", lambda *args, **kwargs: recorded.append(1))
    plain = attack.reconstruct_many(observations, prior=prior, seed=0)
    assert recorded
    for ours, theirs in zip(replayed, plain, strict=True):
        torch.testing.assert_close(ours.transitions.state, theirs.transitions.state)
        torch.testing.assert_close(ours.transitions.reward, theirs.transitions.reward)


def test_matching_reaches_the_rounding_of_the_gradient() -> None:
    torch.manual_seed(0)
    critic = dense([7, 64, 64, 1], layer_norm=False)

    def loss(model: nn.Module, z: Transitions) -> Tensor:
        value = model(torch.cat([z.state, z.action], dim=1)).squeeze(1)
        return 0.5 * ((value - z.reward) ** 2).mean()

    z = random_transitions(1, dtype=torch.float32)
    gradient = torch.autograd.grad(loss(critic, z), list(critic.parameters()))
    names = [n for n, _ in critic.named_parameters()]
    observation = Observation(
        critic, dict(zip(names, gradient, strict=True)), loss, 1, z.template()
    )
    attack = get_attack("dlg", iterations=800, restarts=4)
    answer = attack.reconstruct(observation, prior=Prior.none(z.template()), seed=0)
    assert answer.gme < 1e-5  # the Gram form alone cannot tell errors below 3e-4 apart
