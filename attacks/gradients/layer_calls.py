"""What passes through a model's layers when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class LayerCalls:
    """Context manager that records the inputs and outputs of layers in a forward pass.

    Calls without gradient are ignored: there the layer computes a constant, such as a target.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._handles: list[RemovableHandle] = []
        self.calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def __enter__(self) -> LayerCalls:
        self._handles = [m.register_forward_hook(self._record) for m in self._modules]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _record(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if torch.is_grad_enabled():
            self.calls.append((module, inputs[0], output))
