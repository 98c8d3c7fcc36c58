"""The Gram form against double backpropagation, and the observation's own contract."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks import Channel, Observation, Transitions
from attacks.gradients.choice import choose_gradients
from attacks.gradients.dense import DenseGradients, LoopGradients
from attacks.gradients.linear_layers import dense_layers
from tests.attacks.conftest import Client, random_transitions


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("channel", [Channel(), Channel(0.0, ({"mechanism": "topk"},))])
def test_gram_form_agrees_with_double_backpropagation(
    layer_norm: bool, batch_size: int, channel: Channel
) -> None:
    client = Client.build(5, 2, hidden=16, layer_norm=layer_norm)
    for network in (client.model, client.target, client.frozen):
        network.double()
    observations = [
        client.observe(random_transitions(batch_size, seed=k), channel) for k in range(2)
    ]
    if channel.zeroed:
        for observation in observations:
            for g in observation.gradient.values():
                g[g.abs() < g.abs().mean()] = 0.0
    restarts = 2
    fakes = random_transitions(2 * restarts * batch_size, seed=9)
    results = []
    for gradients in (
        LoopGradients(observations, restarts),
        choose_gradients(observations, restarts),
    ):
        leaves = [t.clone().requires_grad_() for t in (fakes.state, fakes.action, fakes.next_state)]
        z = Transitions(leaves[0], leaves[1], fakes.reward, leaves[2], fakes.terminated)
        with gradients:
            dot, square = gradients.terms(z)
            objective = (square - 2 * dot + gradients.target_square).sum()
            slopes = torch.autograd.grad(objective, leaves)
        results.append([dot, square, *slopes])
    assert isinstance(gradients, DenseGradients)
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


def test_matching_loss_at_the_true_records_is_zero() -> None:
    client = Client.build(5, 2, hidden=16)
    for network in (client.model, client.target, client.frozen):
        network.double()
    z = random_transitions(3)
    observation = client.observe(z)
    with choose_gradients([observation], 1) as gradients:
        dot, square = gradients.terms(z)
    relative = (square - 2 * dot + gradients.target_square) / gradients.target_square
    assert float(relative.detach()) < 1e-12


class BatchMixing(nn.Module):
    """Subtracts the batch mean, so that records are not independent."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x - x.mean(dim=0))


@pytest.mark.parametrize("kind", ["twice", "mixing", "convolution"])
def test_gram_form_is_not_used_where_it_is_wrong(kind: str) -> None:
    z = random_transitions(2, dtype=torch.float32)
    model: nn.Module
    if kind == "twice":
        model = nn.Linear(5, 1)
        value = lambda m, z: m(z.state) + m(z.next_state)  # noqa: E731
    elif kind == "mixing":
        model = BatchMixing()
        value = lambda m, z: m(z.state)  # noqa: E731
    else:
        model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, 1))
        value = lambda m, z: m(z.state[:, None])  # noqa: E731

    def loss(m: nn.Module, z: Transitions) -> Tensor:
        return ((value(m, z).squeeze(-1) - z.reward) ** 2).mean()

    names = [n for n, _ in model.named_parameters()]
    grads = torch.autograd.grad(loss(model, z), list(model.parameters()))
    observation = Observation(model, dict(zip(names, grads, strict=True)), loss, 2, z.template())
    assert dense_layers(observation) is None
    assert isinstance(choose_gradients([observation], 1), LoopGradients)


def test_flat_gradient_follows_the_models_order() -> None:
    client = Client.build(5, 2, hidden=4)
    observation = client.observe(random_transitions(1, dtype=torch.float32))
    shuffled = dict(reversed(observation.gradient.items()))
    again = Observation(client.model, shuffled, client.loss, 1, observation.template)
    assert torch.equal(again.flat_gradient(), observation.flat_gradient())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nothing": torch.zeros(1)}, "no parameter"),
        ({"critic.q1.0.bias": torch.zeros(3)}, "has shape"),
        ({"critic.q1.0.bias": torch.full((4,), torch.nan)}, "not finite"),
    ],
)
def test_malformed_observations_are_refused(change: dict[str, Tensor], message: str) -> None:
    client = Client.build(5, 2, hidden=4)
    good = client.observe(random_transitions(1, dtype=torch.float32))
    with pytest.raises(ValueError, match=message):
        Observation(client.model, {**good.gradient, **change}, client.loss, 1, good.template)
    with pytest.raises(ValueError, match="batch_size"):
        Observation(client.model, good.gradient, client.loss, 0, good.template)
