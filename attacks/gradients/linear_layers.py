"""The linear layers of a model, their calls, and whether a release consists of them alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.gradients.layer_calls import LayerCalls
from attacks.observation import Observation
from attacks.transitions import Template, Transitions


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer and the released names of its parameters; None if not released."""

    module: nn.Linear
    weight: str | None
    bias: str | None


def dense_layers(observation: Observation) -> list[LinearLayer] | None:
    """The linear layers that own all released parameters, or None if the Gram form is invalid.

    It is tried out on random records: each layer must be called once with two-dimensional input,
    and D^T X of one record's rows in a batch of two must equal that record's own gradient. This
    rejects weights used outside their layer and models that mix rows. After local training the
    release is no D^T X of the broadcast weights.
    """
    if observation.local is not None:
        return None
    layers = linear_layers(observation)
    names = {n for layer in layers for n in (layer.weight, layer.bias) if n is not None}
    if names != set(observation.gradient):
        return None
    like = next(iter(observation.parameters.values()))
    z = probe_transitions(observation.template, 2, like)
    with LayerCalls([layer.module for layer in layers]) as hooks:
        loss = observation.loss(observation.model, z) * 2
    seen = {module: (x, out) for module, x, out in hooks.calls}
    once = len(hooks.calls) == len(seen) == len(layers)
    if not once or any(x.dim() != 2 or len(x) != 2 for x, _ in seen.values()):
        return None
    deltas = torch.autograd.grad(loss, [seen[layer.module][1] for layer in layers])
    alone = observation.loss(observation.model, z[0])
    expected = dict(
        zip(
            observation.parameters,
            torch.autograd.grad(
                alone, list(observation.parameters.values()), materialize_grads=True
            ),
            strict=True,
        )
    )
    scale = max(float(g.abs().max()) for g in expected.values())
    tolerance = scale * torch.finfo(like.dtype).eps ** 0.5
    for layer, d in zip(layers, deltas, strict=True):
        x = seen[layer.module][0]
        formed = {layer.weight: torch.outer(d[0], x[0]), layer.bias: d[0]}
        for name, gradient in formed.items():
            if name is not None and not torch.allclose(
                gradient, expected[name], rtol=0.0, atol=tolerance
            ):
                return None
    return layers


def linear_layers(observation: Observation) -> list[LinearLayer]:
    """All linear layers with released parameters, in the model's order."""
    found = []
    for prefix, module in observation.model.named_modules():
        if isinstance(module, nn.Linear):
            stem = f"{prefix}." if prefix else ""
            weight, bias = (
                name if name in observation.gradient else None
                for name in (f"{stem}weight", f"{stem}bias")
            )
            if weight is not None or bias is not None:
                found.append(LinearLayer(module, weight, bias))
    return found


def probe_transitions(template: Template, rows: int, like: Tensor) -> Transitions:
    """Random non-terminal records with all numbers different; discrete actions are relaxed."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator, dtype=like.dtype).to(like.device)

    action = draw(*template.action_shape)
    if template.action_count is not None:
        action = draw(template.action_count).softmax(dim=-1)
    return Transitions(
        state=draw(*template.state_shape),
        action=action,
        reward=draw(),
        next_state=draw(*template.state_shape),
        terminated=torch.zeros(rows, dtype=like.dtype, device=like.device),
    )
