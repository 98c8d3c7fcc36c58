"""Convolutional features and their gradients, read from the dense layers above the convolutions.

The gradient of those dense layers, side by side, is D^T [F | 1] for features F (b, n) and output
gradients D (b, m). One record's is of rank one, so its top singular pair is F and D up to a scale:
what the constant input says of the scale is weighed against what features usually are, which
matters under noise alone. Several records are un-mixed as in ``spear``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.batches.dense_stacks import stack_above
from attacks.batches.unmixing import capacity, unmix
from attacks.bayes.posterior import received_by
from attacks.observation import Observation
from attacks.pixels.conv_chains import ConvChain


@dataclass(frozen=True, eq=False)
class HeardFeatures:
    """Of the records that could be told apart, at most b.

    Attributes:
        features: (k, n) of the last convolution, after its ReLU.
        std: (k,) standard deviation of each record's features.
        deltas: (k, n) gradients of the loss with respect to them.
        actions: (k,) int64, the discrete actions taken; None if the dense layers do not show them.
    """

    features: Tensor
    std: Tensor
    deltas: Tensor
    actions: Tensor | None


def hear_features(
    observation: Observation, chain: ConvChain, usual: Tensor, *, seed: int
) -> HeardFeatures:
    """Reads them; ``usual`` (N, n) are features of likely states."""
    if observation.batch_size == 1:
        return _single(observation, chain, usual)
    return _several(observation, chain, seed)


def features_capacity(observation: Observation, chain: ConvChain) -> int:
    """Records that can be told apart at most."""
    stack = stack_above(observation, chain.heads[0]) if len(chain.heads) == 1 else None
    return 1 if stack is None else max(1, capacity(stack))


def _stacked(observation: Observation, chain: ConvChain) -> Tensor:
    parts = []
    for head in chain.heads:
        assert head.weight is not None
        assert head.bias is not None
        parts += [observation.gradient[head.weight], observation.gradient[head.bias][:, None]]
    rows = [torch.cat(parts[i : i + 2], dim=1) for i in range(0, len(parts), 2)]
    return torch.cat(rows).detach().cpu().double()


def _weights(chain: ConvChain) -> Tensor:
    return torch.cat([h.module.weight for h in chain.heads]).detach().cpu().double()


def _noise(observation: Observation, chain: ConvChain) -> float:
    """Standard deviation of the dense layers' received coordinates, at least what is rounded."""
    name = chain.heads[0].weight
    assert name is not None
    return float(received_by([observation]).precision[name]) ** -0.5


def _single(observation: Observation, chain: ConvChain, usual: Tensor) -> HeardFeatures:
    gradient, std = _stacked(observation, chain), _noise(observation, chain)
    _, left = torch.linalg.eigh(gradient @ gradient.T)
    d = left[:, -1]
    heard = gradient.T @ d
    feature, one = heard[:-1], heard[-1]
    if not observation.channel.random:
        scale = one
    else:
        # 1 / scale is one + noise of ``std``, or what makes the features as large as usual.
        typical = usual.double().mean(dim=0)
        spread = (usual.double() - typical).norm(dim=1).mean() / typical.norm().clamp_min(1e-12)
        guessed = (feature @ typical) / typical.square().sum().clamp_min(1e-12)
        doubt = (spread.clamp_min(0.05) * guessed).square()
        scale = (one / std**2 + guessed / doubt) / (1 / std**2 + 1 / doubt)
    scale = torch.where(scale == 0, 1e-300, scale)
    deltas = scale * d @ _weights(chain)
    told = (feature / scale)[None]
    return HeardFeatures(
        told, std / scale.abs()[None], deltas[None], _action(observation, len(told))
    )


def _action(observation: Observation, count: int) -> Tensor | None:
    """The output with the largest gradient of the last dense layer with one for each action."""
    actions = observation.template.action_count
    heads = [g for g in observation.gradient.values() if g.dim() == 2 and len(g) == actions]
    if not heads:
        return None
    return heads[-1].norm(dim=1).argmax().cpu().repeat(count)


def _several(observation: Observation, chain: ConvChain, seed: int) -> HeardFeatures:
    gradient = _stacked(observation, chain)
    stack = stack_above(observation, chain.heads[0])
    assert stack is not None
    generator = torch.Generator().manual_seed(seed)
    found = unmix(observation, stack, generator=generator, iterations=4000)
    told = found.rows.isfinite().all(dim=1)
    features = found.rows[told]
    inputs = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
    # Frames of a game are nearly alike: their Gram matrix would square what is lost.
    d = torch.linalg.lstsq(inputs.T, gradient.T).solution  # (k, m)
    std = _noise(observation, chain) * torch.linalg.pinv(d.T).norm(dim=1)
    actions = None if found.outputs is None else found.outputs[told]
    return HeardFeatures(features, std, d @ _weights(chain), actions)
