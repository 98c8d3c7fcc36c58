"""ReLU networks with softened kinks: a homotopy for searches over what a gradient came from.

A gradient jumps wherever a ReLU of the network switches: its derivative is a step. A search that
follows derivatives sees none of these jumps and ends on one of countless ledges. Where every
rectifier is averaged over logistic noise of deviation w on its input,

    E max(0, x + n) = softplus(k x) / k,    k = pi / (sqrt(3) w),

the step becomes a sigmoid, the jumps become slopes, and a minimum can be followed from a wide w
down to none (graduated non-convexity: Blake and Zisserman 1987; Mobahi and Fisher 2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LINEAR = 40.0
"""From here on softplus(x) is x in float64."""

_RECTIFIERS = frozenset({torch.nn.functional.relu, torch.relu, Tensor.relu})


class SmoothedReLU(TorchFunctionMode):
    """Inside this context every ReLU is averaged over logistic noise of deviation ``width``.

    Whatever calls it: modules, functions, the loss and the networks that it holds. In-place
    ones no longer change their input, only their result is smooth.
    """

    def __init__(self, width: float) -> None:
        """``width`` is positive, in the unit of the pre-activations."""
        super().__init__()
        if not (math.isfinite(width) and width > 0):
            raise ValueError(f"the width must be positive and finite, got {width}")
        self.width = width

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls the function, or the smooth one in place of a rectifier."""
        if func in _RECTIFIERS:
            return self._smooth(args[0])
        return func(*args, **(kwargs or {}))

    def _smooth(self, x: Tensor) -> Tensor:
        sharpness = math.pi / (math.sqrt(3) * self.width)
        return torch.nn.functional.softplus(x, beta=sharpness, threshold=_LINEAR)
