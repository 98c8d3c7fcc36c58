"""The networks that clients share: dense critics and actors, dense and convolutional Q-networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


def dense(sizes: Sequence[int], *, layer_norm: bool) -> list[nn.Module]:
    """Linear layers of the given sizes with ReLU between them, optionally normalised before it.

    LayerNorm has no affine parameters, so that every shared parameter belongs to a linear layer.
    """
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        # skip_init keeps the constructor from drawing on the global generator.
        layers.append(skip_init(nn.Linear, inputs, outputs))
        if index < len(sizes) - 2:
            if layer_norm:
                layers.append(nn.LayerNorm(outputs, elementwise_affine=False))
            layers.append(nn.ReLU())
    return layers


class Affine(nn.Module):
    """Maps [-1, 1] to the action box [low, high]."""

    center: Tensor
    half_width: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", (high + low) / 2)
        self.register_buffer("half_width", (high - low) / 2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, A) in [-1, 1] to (B, A) in the box."""
        return self.center + self.half_width * x


def actor(
    state_size: int, low: Tensor, high: Tensor, hidden: Sequence[int], *, layer_norm: bool
) -> nn.Sequential:
    """Deterministic policy: (B, state_size) -> (B, action_size) inside the box."""
    sizes = [state_size, *hidden, len(low)]
    return nn.Sequential(*dense(sizes, layer_norm=layer_norm), nn.Tanh(), Affine(low, high))


class TwinCritic(nn.Module):
    """The two action values of TD3, Q1(s, a) and Q2(s, a)."""

    def __init__(self, inputs: int, hidden: Sequence[int], *, layer_norm: bool) -> None:
        super().__init__()
        self.q1 = nn.Sequential(*dense([inputs, *hidden, 1], layer_norm=layer_norm))
        self.q2 = nn.Sequential(*dense([inputs, *hidden, 1], layer_norm=layer_norm))

    def forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """State (B, S) and action (B, A) to two values, each (B,)."""
        x = torch.cat([state, action], dim=-1)
        return self.q1(x).squeeze(-1), self.q2(x).squeeze(-1)


class GreyLevels(nn.Module):
    """Maps grey levels 0..255, uint8 or floating point, to [0, 1].

    The network scales, so that states are grey levels everywhere else: in the replay, in captures,
    and in what attacks optimise.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Floating-point numbers of the same shape; integers become the weights' float32."""
        return x / 255


def nature_cnn(
    shape: Sequence[int], hidden: Sequence[int], actions: int, *, layer_norm: bool
) -> list[nn.Module]:
    """The Q-network of Mnih et al. 2015 for grey levels of ``shape`` (K, H, W).

    Three convolutions (32 of 8x8 by 4, 64 of 4x4 by 2, 64 of 3x3 by 1), then dense layers of the
    ``hidden`` sizes; the paper has one of 512.
    """
    channels, height, width = shape
    layers: list[nn.Module] = [GreyLevels()]
    for outputs, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
        layers += [skip_init(nn.Conv2d, channels, outputs, kernel, stride), nn.ReLU()]
        channels, height, width = (
            outputs,
            (height - kernel) // stride + 1,
            (width - kernel) // stride + 1,
        )
    sizes = [channels * height * width, *hidden, actions]
    return [*layers, nn.Flatten(), *dense(sizes, layer_norm=layer_norm)]


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draws all layers from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's default law."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            assert layer.bias is not None
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)


def flatten_storage(module: nn.Module) -> Tensor:
    """Makes all parameters of ``module`` views of one vector and returns it.

    A server step, a target update or a copy is then one operation on (P,) instead of one a layer.
    """
    parameters = list(module.parameters())
    vector = torch.cat([p.detach().reshape(-1) for p in parameters])
    offset = 0
    for p in parameters:
        p.data = vector[offset : offset + p.numel()].view(p.shape)
        offset += p.numel()
    return vector


def alias_frozen(source: nn.Module, copy: nn.Module) -> nn.Module:
    """Lets ``copy``'s parameters share ``source``'s storage without taking gradients.

    The actor's loss goes through such a view of the critic: always the current weights, yet its
    backward pass leaves the critic's own (per-sample) gradients alone.
    """
    for mine, theirs in zip(_tensors(copy), _tensors(source), strict=True):
        mine.data = theirs.data
    return copy.requires_grad_(False)


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
