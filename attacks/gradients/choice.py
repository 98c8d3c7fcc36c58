"""The fastest valid way to the gradients of many groups of fake records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from attacks.gradients.convolutional import ConvGradients, convolutional_layers
from attacks.gradients.dense import DenseGradients, LoopGradients
from attacks.gradients.linear_layers import dense_layers
from attacks.gradients.unrolled import UnrolledGradients
from attacks.observation import Observation

GroupGradients: TypeAlias = DenseGradients | ConvGradients | LoopGradients | UnrolledGradients


def choose_gradients(observations: Sequence[Observation], restarts: int) -> GroupGradients:
    """The fastest that is valid for these observations, which must share computation."""
    if observations[0].local is not None:
        return UnrolledGradients(observations, restarts)
    dense = dense_layers(observations[0])
    if dense is not None:
        return DenseGradients(observations, restarts, dense)
    layers = convolutional_layers(observations[0])
    if layers is not None:
        return ConvGradients(observations, restarts, layers)
    return LoopGradients(observations, restarts)
