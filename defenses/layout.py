"""Where each parameter lies in a release: a flat vector in ``named_parameters()`` order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Names, shapes and offsets of the parameters in a vector of ``size`` P numbers."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of the parameters of ``module`` that require a gradient."""
        named = [(name, p.shape) for name, p in module.named_parameters() if p.requires_grad]
        return cls(tuple(name for name, _ in named), tuple(shape for _, shape in named))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each parameter starts in the vector."""
        starts = [0]
        for size in self.sizes[:-1]:
            starts.append(starts[-1] + size)
        return tuple(starts)

    @cached_property
    def size(self) -> int:
        """P: entries of all parameters together."""
        return sum(self.sizes)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Views (..., *shape) of ``vector`` (..., P), by parameter name."""
        lead = vector.shape[:-1]
        parts = vector.split(self.sizes, dim=-1)
        return {
            name: part.view(*lead, *shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """A new vector (P,) with ``tensors``, one per parameter in order."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors])
