"""A small actor-critic whose every parameter takes part in every row's loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from defenses.layout import Layout

STATE, ACTION = 5, 2


def network(inputs: int, outputs: int, *, affine: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 16),
        nn.LayerNorm(16, elementwise_affine=affine),
        nn.ReLU(),
        nn.Linear(16, outputs),
    )


class Agent(nn.Module):
    """Twin critics and an actor; ``forward`` gives per-sample losses."""

    def __init__(self, *, affine: bool = False) -> None:
        super().__init__()
        self.q1 = network(STATE + ACTION, 1, affine=affine)
        self.q2 = network(STATE + ACTION, 1, affine=affine)
        self.actor = network(STATE, ACTION, affine=affine)
        # In a tuple, so that it is no submodule.
        self.frozen = (copy.deepcopy(self.q1).requires_grad_(False),)

    def forward(self, state: Tensor, action: Tensor, target: Tensor) -> Tensor:
        x = torch.cat([state, action], -1)
        value = self.frozen[0](torch.cat([state, self.actor(state).tanh()], -1)).squeeze(-1)
        return self.critic_loss(x, target) - value

    def critic_loss(self, x: Tensor, target: Tensor) -> Tensor:
        errors = [q(x).squeeze(-1) - target for q in (self.q1, self.q2)]
        return 0.5 * (errors[0] ** 2 + errors[1] ** 2)


@dataclass
class Problem:
    module: nn.Module
    data: tuple[Tensor, ...]
    owner: Tensor
    clients: int = 4

    def losses(self, rows: Tensor | slice) -> Tensor:
        return self.module(*(x[rows] for x in self.data))

    def per_sample_gradients(self) -> Tensor:
        """(n, P) by torch.func: the oracle, which shares no code with Opacus or the library."""
        trainable = {k: p.detach() for k, p in self.module.named_parameters() if p.requires_grad}

        def loss(parameters: dict[str, Tensor], *row: Tensor) -> Tensor:
            batch = tuple(x.unsqueeze(0) for x in row)
            return functional_call(self.module, parameters, batch).squeeze(0)

        gradients = vmap(grad(loss), in_dims=(None, *(0 for _ in self.data)))(trainable, *self.data)
        return torch.cat([gradients[name].flatten(1) for name in trainable], dim=1)

    def sums(self, per_sample: Tensor) -> Tensor:
        """(clients, P): sums over each client's rows."""
        out = per_sample.new_zeros(self.clients, per_sample.shape[1])
        return out.index_add_(0, self.owner, per_sample)

    @property
    def layout(self) -> Layout:
        return Layout.of(self.module)

    def bind(self, defense, batch_size: int = 8, seed: int = 0):
        return defense.bind(
            self.module,
            clients=self.clients,
            batch_size=batch_size,
            generator=generator(seed),
        )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_problem(counts: tuple[int, ...] = (8, 8, 8, 8), *, affine: bool = False) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = Agent(affine=affine)
        rows = sum(counts)
        data = (torch.randn(rows, STATE), torch.rand(rows, ACTION) * 2 - 1, torch.randn(rows))
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return Problem(module, data, owner, len(counts))


@pytest.fixture
def problem() -> Problem:
    return make_problem()


@pytest.fixture
def new_problem() -> Callable[..., Problem]:
    return make_problem


@pytest.fixture
def new_generator() -> Callable[[int], torch.Generator]:
    return generator


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
