"""The small real problems of the conformance suite: a control system, a chain and a screen.

Their critics are not trained. Numbers are float64: iterative attacks amplify rounding, which in
float32 would look like a dependence on the order of the observations.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.local_training import LocalTraining, local_release
from attacks.observation import Observation
from attacks.transitions import Template, Transitions

SEED = 0
LOCAL_LEARNING_RATE = 0.05


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, a loss on it and transitions of its environment."""

    name: str
    model: nn.Module
    template: Template
    transitions: Transitions
    target: nn.Module

    def loss(self, model: nn.Module, z: Transitions) -> Tensor:
        """Mean of 0.5 (Q(s, a) - y)^2 with y = r + 0.9 (1 - terminated) max V'(s')."""
        value = self.target(z.next_state).amax(dim=-1)
        y = z.reward + 0.9 * (1 - z.terminated) * value
        return (0.5 * (self._taken(model, z) - y) ** 2).mean()

    def observe(self, rows: list[int], local_steps: int = 1) -> Observation:
        """The undefended release of some transitions, each used in every local step."""
        names = [n for n, _ in self.model.named_parameters()]
        local = LocalTraining(local_steps, dict.fromkeys(names, LOCAL_LEARNING_RATE))
        return Observation(
            model=self.model,
            gradient=local_release(self.model, self.loss, self.transitions[rows], local),
            loss=self.loss,
            batch_size=len(rows),
            template=self.template,
            local=None if local_steps == 1 else local,
        )

    def _taken(self, model: nn.Module, z: Transitions) -> Tensor:
        if not self.template.discrete:
            return model(torch.cat([z.state, z.action], dim=-1)).squeeze(-1)
        values = model(z.state)
        if z.action.is_floating_point():
            return (values * z.action).sum(dim=-1)
        return values.gather(-1, z.action[:, None]).squeeze(-1)


def box_problem() -> Problem:
    """A damped two-dimensional system: states (3,), box actions (2,) in [-1, 1]."""
    generator = torch.Generator().manual_seed(SEED)
    state = torch.randn(240, 3, generator=generator, dtype=torch.float64)
    action = torch.rand(240, 2, generator=generator, dtype=torch.float64) * 2 - 1
    mixing = torch.tensor([[0.3, 0.0, 0.1], [0.0, 0.3, -0.2]], dtype=torch.float64)
    next_state = 0.9 * state + action @ mixing
    z = Transitions(
        state, action, -state.square().sum(dim=1), next_state, torch.zeros(240, dtype=torch.bool)
    )
    return Problem(
        "box",
        _dense([5, 32, 1], generator),
        z.template(action_low=-1.0, action_high=1.0),
        z,
        _dense([3, 32, 1], generator).requires_grad_(False),
    )


def chain_problem() -> Problem:
    """Four one-hot states in a row, two actions (left, right), reward one at the right end.

    The first eight records are all different: a gradient does not tell how two equal ones share it.
    """
    generator = torch.Generator().manual_seed(SEED)
    place = torch.randint(4, (240,), generator=generator)
    action = torch.randint(2, (240,), generator=generator)
    pairs = torch.randperm(8, generator=generator)
    place[:8], action[:8] = pairs // 2, pairs % 2
    after = (place + 2 * action - 1).clamp(0, 3)
    end = after == 3
    z = Transitions(
        nn.functional.one_hot(place, 4).double(),
        action,
        end.double(),
        nn.functional.one_hot(after, 4).double(),
        end,
    )
    return Problem(
        "chain",
        _dense([4, 32, 2], generator),
        z.template(action_count=2, state_low=0.0, state_high=1.0),
        z,
        _dense([4, 32, 2], generator).requires_grad_(False),
    )


def screen_problem() -> Problem:
    """A bright curtain moves left or right over noise: states two uint8 frames (2, 12, 12).

    Every pixel varies, so that the mean frame explains no gradient.
    """
    generator = torch.Generator().manual_seed(SEED)
    edge = torch.randint(2, 10, (240,), generator=generator)
    before = torch.randint(2, (240,), generator=generator) * 2 - 1
    action = torch.randint(2, (240,), generator=generator)
    edges = torch.stack([edge - before, edge, edge + 2 * action - 1], dim=1)
    bright = torch.arange(12) < edges[:, :, None, None]
    noise = torch.randint(120, (240, 3, 12, 12), generator=generator)
    frames = (noise + 130 * bright).to(torch.uint8)
    end = edges[:, 2] == 10
    z = Transitions(frames[:, :2], action, end.double(), frames[:, 1:], end)
    return Problem(
        "screen",
        _convolutional(generator),
        z.template(action_count=2),
        z,
        _convolutional(generator).requires_grad_(False),
    )


class GreyLevels(nn.Module):
    """Grey levels, of any type, to float64 numbers in [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """As the networks that learn from uint8 states do."""
        return x.double() / 255


def _convolutional(generator: torch.Generator) -> nn.Sequential:
    convolution = nn.utils.skip_init(nn.Conv2d, 2, 8, 4, 2, dtype=torch.float64)
    _draw(convolution, 2 * 4 * 4, generator)
    return nn.Sequential(
        GreyLevels(), convolution, nn.ReLU(), nn.Flatten(), *_dense([200, 32, 2], generator)
    )


def _dense(sizes: list[int], generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        # skip_init keeps the constructor from drawing on the global generator.
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
        _draw(layer, inputs, generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def _draw(layer: nn.Module, inputs: int, generator: torch.Generator) -> None:
    bound = 1 / math.sqrt(inputs)
    for parameter in layer.parameters():
        parameter.uniform_(-bound, bound, generator=generator)
