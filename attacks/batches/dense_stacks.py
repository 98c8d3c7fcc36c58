"""Finds stacks of dense ReLU layers that read the records and end in one scalar a record.

A stack is linear -> (LayerNorm) -> ReLU, once or more, then a linear head of which each record uses
one output: a critic's only one, or the taken action's of a Q-network. Stacks are found by running
the loss on a few records, and every claim about their forward and backward pass is checked there
in numbers, so that no assumption is made on how the model is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

from attacks.gradients.first_layers import first_layers
from attacks.gradients.layer_calls import LayerCalls
from attacks.gradients.linear_layers import LinearLayer, linear_layers, probe_transitions
from attacks.observation import Observation
from attacks.transitions import Template, Transitions

PROBES = 3


@dataclass(frozen=True, eq=False)
class Hidden:
    """x -> relu(norm(W x + c)), computed in float64 whatever the model's type."""

    layer: LinearLayer
    norm: nn.LayerNorm | None = None

    @property
    def weight(self) -> Tensor:
        """[W | c], (m, n + 1)."""
        module = self.layer.module
        assert module.bias is not None
        return torch.cat([module.weight, module.bias[:, None]], dim=1).detach().cpu().double()

    @property
    def gain(self) -> Tensor:
        """(m,) factors between normalised and rectified numbers, ones without a norm."""
        if self.norm is None or self.norm.weight is None:
            return torch.ones(self.layer.module.out_features, dtype=torch.float64)
        return self.norm.weight.detach().cpu().double()

    @property
    def shift(self) -> Tensor:
        """(m,) what is added after the gain, zeros without a norm."""
        if self.norm is None or self.norm.bias is None:
            return torch.zeros(self.layer.module.out_features, dtype=torch.float64)
        return self.norm.bias.detach().cpu().double()

    def normalise(self, outputs: Tensor) -> Tensor:
        """What the ReLU rectifies, (B, m), from the linear part's outputs (B, m)."""
        if self.norm is None:
            return outputs
        normal = F.layer_norm(outputs, (outputs.shape[-1],), eps=self.norm.eps)
        return self.gain * normal + self.shift

    def activate(self, outputs: Tensor) -> Tensor:
        """The rest of the layer after its linear part, (B, m) to (B, m)."""
        return self.normalise(outputs).relu()

    def backward(self, inputs: Tensor, upstream: Tensor, active: Tensor | None = None) -> Tensor:
        """Gradients at the linear part's outputs (B, m) from those at the activations (B, m).

        ``active`` (B, m) says which units are; by default those that ``inputs`` (B, n) activate.
        """
        weight = self.weight
        outputs = (inputs @ weight[:, :-1].T + weight[:, -1]).requires_grad_(True)
        rectified = self.normalise(outputs)
        active = rectified > 0 if active is None else active
        (gradient,) = torch.autograd.grad(rectified, outputs, upstream * active)
        return gradient

    def received(self, observation: Observation) -> Tensor:
        """[dW | dc] as received, (m, n + 1) float64."""
        assert self.layer.weight is not None
        assert self.layer.bias is not None
        parts = [observation.gradient[self.layer.weight]]
        parts.append(observation.gradient[self.layer.bias][:, None])
        return torch.cat(parts, dim=1).detach().cpu().double()


@dataclass(frozen=True, eq=False)
class Stack:
    """Hidden layers from the records to the head.

    Attributes:
        columns: input i of the first layer is column ``columns[i]`` of [state, action].
        hidden: from the first to the last.
        head: (K, m) weights of the head, of which each record uses one row.
    """

    columns: Tensor
    hidden: tuple[Hidden, ...]
    head: Tensor


@dataclass(frozen=True, eq=False)
class _Calls:
    """Inputs, outputs and output gradients of the layers that the loss called once."""

    inputs: dict[nn.Module, Tensor]
    outputs: dict[nn.Module, Tensor]
    deltas: dict[nn.Module, Tensor]


def dense_stacks(observation: Observation) -> list[Stack]:
    """All stacks whose layers are released with their biases; see the module's text."""
    probed = _Probed.of(observation)
    found = ((first.columns, first.layer) for first in first_layers(observation))
    stacks = (_stack(columns, layer, probed) for columns, layer in found)
    return [stack for stack in stacks if stack is not None]


def stack_above(observation: Observation, layer: LinearLayer) -> Stack | None:
    """The stack that starts with ``layer``, whatever it reads; its columns are its own inputs."""
    return _stack(torch.arange(layer.module.in_features), layer, _Probed.of(observation))


@dataclass(frozen=True, eq=False)
class _Probed:
    """What the loss did on probes, and the layers and norms that took part."""

    calls: _Calls
    layers: list[LinearLayer]
    norms: list[nn.LayerNorm]

    @classmethod
    def of(cls, observation: Observation) -> _Probed:
        calls = _run_probes(observation)
        layers = [x for x in linear_layers(observation) if x.module in calls.outputs]
        norms = [m for m in observation.model.modules() if isinstance(m, nn.LayerNorm)]
        return cls(calls, layers, norms)


def _stack(columns: Tensor, layer: LinearLayer, probed: _Probed) -> Stack | None:
    """The stack from ``layer`` up to a head, if it ends in one."""
    calls, hidden = probed.calls, list[Hidden]()
    while layer.weight and layer.bias and layer.module in calls.outputs:
        readers = _readers(layer, calls, probed.layers, probed.norms)
        if len(readers) != 1:
            break
        activation, layer = readers[0]
        hidden.append(activation)
    head = layer.module
    if hidden and _is_head(hidden, head, calls):
        return Stack(columns, tuple(hidden), head.weight.detach().cpu().double())
    return None


def rectified_layers(observation: Observation) -> list[tuple[Tensor, Hidden]]:
    """First layers, with the columns they read, whose output gradients are zero below zero."""
    calls = _run_probes(observation)
    found = []
    for first in first_layers(observation):
        module = first.layer.module
        if module in calls.deltas:
            below = calls.outputs[module] < 0
            quiet = (calls.deltas[module] == 0) == below
            if bool(quiet.all()) and bool(below.any()):
                found.append((first.columns, Hidden(first.layer)))
    return found


def _readers(
    layer: LinearLayer,
    calls: _Calls,
    layers: Sequence[LinearLayer],
    norms: Sequence[nn.LayerNorm],
) -> list[tuple[Hidden, LinearLayer]]:
    """Layers that read ``layer``'s activations, each with the activation that fits."""
    outputs = calls.outputs[layer.module].double()
    fitting = [n for n in norms if tuple(n.normalized_shape) == (outputs.shape[-1],)]
    # Layers without affine parameters differ in eps alone: the first that fits stands for all.
    candidates = [Hidden(layer), *(Hidden(layer, n) for n in fitting)]
    found = []
    for reader in layers:
        inputs = calls.inputs[reader.module].double()
        if inputs.shape == outputs.shape:
            fits = (c for c in candidates if _near(c.activate(outputs), inputs))
            activation = next(fits, None)
            if activation is not None:
                found.append((activation, reader))
    return found


def _is_head(hidden: Sequence[Hidden], head: nn.Linear, calls: _Calls) -> bool:
    """Whether each record uses one output, and nothing else reads the hidden activations."""
    delta = calls.deltas[head].double()
    if bool(((delta != 0).sum(dim=1) != 1).any()):
        return False
    weight = head.weight.detach().cpu().double()
    for layer in reversed(hidden):
        module = layer.layer.module
        expected = layer.backward(calls.inputs[module].double(), delta @ weight)
        delta = calls.deltas[module].double()
        if not _near(expected, delta):
            return False
        weight = layer.weight[:, :-1]
    return True


def _near(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())


def _run_probes(observation: Observation) -> _Calls:
    layers = linear_layers(observation)
    like = next(iter(observation.parameters.values()))
    z = _taken(probe_transitions(observation.template, PROBES, like), observation.template)
    with LayerCalls([layer.module for layer in layers]) as hooks:
        loss = observation.loss(observation.model, z)
    modules = [module for module, _, _ in hooks.calls]
    once = [call for call in hooks.calls if modules.count(call[0]) == 1 and len(call[1]) == PROBES]
    gradients = torch.autograd.grad(loss, [out for _, _, out in once], materialize_grads=True)
    return _Calls(
        {module: x.detach().cpu() for module, x, _ in once},
        {module: out.detach().cpu() for module, _, out in once},
        {module: g.cpu() for (module, _, _), g in zip(once, gradients, strict=True)},
    )


def _taken(z: Transitions, template: Template) -> Transitions:
    """Probes with taken actions instead of relaxed ones: heads are told by what they leave zero."""
    if template.action_count is None:
        return z
    action = torch.arange(len(z), device=z.reward.device) % template.action_count
    return Transitions(z.state, action, z.reward, z.next_state, z.terminated)
