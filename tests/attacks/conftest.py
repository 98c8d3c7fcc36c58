"""Real transitions and the networks of a federated TD3 client, built without privguard."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from attacks import Channel, Observation, Reconstruction, Template, Transitions

torch.set_num_threads(1)


class TwinCritic(nn.Module):
    def __init__(self, inputs: int, hidden: int, layer_norm: bool) -> None:
        super().__init__()
        self.q1 = dense([inputs, hidden, hidden, 1], layer_norm)
        self.q2 = dense([inputs, hidden, hidden, 1], layer_norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.q1(x).squeeze(-1), self.q2(x).squeeze(-1)


def dense(sizes: list[int], layer_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers.append(nn.Linear(inputs, outputs))
        if layer_norm and outputs != sizes[-1]:
            layers.append(nn.LayerNorm(outputs, elementwise_affine=False))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True, eq=False)
class Client:
    """Twin critics and an actor with TD3's joint loss."""

    model: nn.ModuleDict
    target: nn.ModuleDict
    frozen: TwinCritic

    @classmethod
    def build(
        cls, state: int, action: int, *, hidden: int = 128, layer_norm: bool = True, seed: int = 0
    ) -> Client:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            models = [
                nn.ModuleDict(
                    {
                        "critic": TwinCritic(state + action, hidden, layer_norm),
                        "actor": nn.Sequential(
                            *dense([state, hidden, hidden, action], layer_norm), nn.Tanh()
                        ),
                    }
                )
                for _ in range(2)
            ]
            frozen = TwinCritic(state + action, hidden, layer_norm)
        frozen.load_state_dict(models[0]["critic"].state_dict())
        frozen.requires_grad_(False)
        return cls(models[0], models[1].requires_grad_(False), frozen)

    def loss(self, model: nn.Module, z: Transitions) -> Tensor:
        played = self.target["actor"](z.next_state)
        q1, q2 = self.target["critic"](torch.cat([z.next_state, played], dim=-1))
        y = z.reward + 0.99 * (1 - z.terminated) * torch.minimum(q1, q2)
        p1, p2 = model["critic"](torch.cat([z.state, z.action], dim=-1))  # type: ignore[operator]
        value, _ = self.frozen(torch.cat([z.state, model["actor"](z.state)], dim=-1))  # type: ignore[operator]
        return (0.5 * (p1 - y) ** 2 + 0.5 * (p2 - y) ** 2 - value).mean()

    def observe(self, z: Transitions, channel: Channel | None = None) -> Observation:
        names = [n for n, _ in self.model.named_parameters()]
        loss = self.loss(self.model, z)
        gradient = torch.autograd.grad(loss, list(self.model.parameters()))
        return Observation(
            model=self.model,
            gradient=dict(zip(names, gradient, strict=True)),
            loss=self.loss,
            batch_size=len(z),
            template=z.template(action_low=-1.0, action_high=1.0),
            channel=channel or Channel(),
        )


def noisy(client: Client, z: Transitions, std: float, generator: torch.Generator) -> Observation:
    """The release of the records ``z`` with Gaussian noise, whose law the server knows."""
    clean = client.observe(z, Channel(noise_std=std))
    gradient = {
        name: g + std * torch.randn(g.shape, generator=generator)
        for name, g in clean.gradient.items()
    }
    return dataclasses.replace(clean, gradient=gradient)


def observe_quantiles(model: nn.Module, z: Transitions, template: Template) -> Observation:
    """The undefended release of a model whose several outputs a record are all drawn to r."""

    def loss(m: nn.Module, z: Transitions) -> Tensor:
        values = m(torch.cat([z.state, z.action], dim=1))
        return (values - z.reward[:, None]).square().sum(dim=1).mean()

    gradient = torch.autograd.grad(loss(model, z), list(model.parameters()))
    names = [n for n, _ in model.named_parameters()]
    return Observation(model, dict(zip(names, gradient, strict=True)), loss, len(z), template)


def relative_errors(rows: Tensor, truth: Transitions) -> Tensor:
    """Relative error of (s, a) of each true record, after the best assignment."""
    true = torch.cat([truth.state, truth.action], dim=1).double()
    distance = torch.cdist(rows.double(), true) / true.norm(dim=1)
    ours, theirs = linear_sum_assignment(distance.numpy())
    return distance[ours, theirs]


def errors(answer: Reconstruction, truth: Transitions) -> Tensor:
    z = answer.transitions
    return relative_errors(torch.cat([z.state, z.action], dim=1), truth)


@pytest.fixture(scope="session")
def hopper() -> Transitions:
    """2,000 transitions of Hopper-v5 under random actions."""
    env = gym.make("Hopper-v5")
    rng = np.random.default_rng(0)
    rows = []
    state, _ = env.reset(seed=0)
    for _ in range(2000):
        action = rng.uniform(-1, 1, 3).astype(np.float32)
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((state, action, reward, after, terminated))
        state = env.reset()[0] if terminated or truncated else after
    fields = [torch.tensor(np.array(f), dtype=torch.float32) for f in zip(*rows, strict=True)]
    return Transitions(*fields)


def random_transitions(
    rows: int, state: int = 5, action: int = 2, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Transitions:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator, dtype=dtype)

    return Transitions(
        draw(state), draw(action).tanh(), draw(), draw(state), torch.zeros(rows, dtype=dtype)
    )
