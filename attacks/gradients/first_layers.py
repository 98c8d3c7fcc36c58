"""Finds the linear layers that read states and actions themselves, by running the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.gradients.layer_calls import LayerCalls
from attacks.gradients.linear_layers import LinearLayer, linear_layers, probe_transitions
from attacks.observation import Observation
from attacks.transitions import flatten_state_action


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """A linear layer whose input column i is column ``columns[i]`` of [state, action]."""

    layer: LinearLayer
    columns: Tensor


def first_layers(observation: Observation) -> list[FirstLayer]:
    """Released linear layers with bias whose every input is a coordinate of [state, action].

    Empty unless together they read the whole state.
    """
    layers = [x for x in linear_layers(observation) if x.weight and x.bias]
    like = next(iter(observation.parameters.values()))
    z = probe_transitions(observation.template, 2, like)
    with LayerCalls([layer.module for layer in layers]) as hooks:
        observation.loss(observation.model, z)
    inputs = {module: x.detach() for module, x, _ in hooks.calls}
    rows = flatten_state_action(z, observation.template)
    found = []
    for layer in layers:
        x = inputs.get(layer.module)
        if x is None or x.dim() != 2 or len(x) != 2:
            continue
        # A layer behind others has inputs that are no record's numbers; comparing all is dear.
        if not bool(torch.isin(x[0], rows[0]).all()):
            continue
        equal = (x[:, :, None] == rows[:, None, :]).all(dim=0)  # (inputs, D)
        if equal.any(dim=1).all():
            found.append(FirstLayer(layer, equal.int().argmax(dim=1)))
    reads_state = {int(c) for f in found for c in f.columns}
    return found if set(range(observation.template.state_size)) <= reads_state else []


def stacked_gradients(
    gradient: Mapping[str, Tensor], layers: Sequence[FirstLayer]
) -> dict[tuple[int, ...], Tensor]:
    """[dW | db] (m, n + 1) float64 of the layers that read the same columns, one above the other.

    For one record they are all of rank one and share the right singular vector, (x, 1) up to scale.
    """
    parts: dict[tuple[int, ...], list[Tensor]] = {}
    for first in layers:
        weight, bias = first.layer.weight, first.layer.bias
        assert weight is not None
        assert bias is not None
        both = torch.cat([gradient[weight], gradient[bias][:, None]], dim=1)
        parts.setdefault(tuple(first.columns.tolist()), []).append(both.detach().cpu().double())
    return {columns: torch.cat(stack) for columns, stack in parts.items()}
