"""Transitions (s, a, r, s', terminated) and the template that says what they look like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsFloat, TypeAlias

import torch
from torch import Tensor

Bound: TypeAlias = float | tuple[float, ...]
"""One limit for all coordinates, or one for each coordinate in flattened order."""

BoundLike: TypeAlias = SupportsFloat | Sequence[float] | Tensor


@dataclass(frozen=True)
class Template:
    """What the adversary knows about every transition before seeing any: shapes and ranges.

    Ranges are inclusive and may be infinite. ``action_count`` is the number of discrete actions,
    or None where actions are points of a box.
    """

    state_shape: tuple[int, ...]
    state_dtype: torch.dtype
    action_shape: tuple[int, ...]
    action_count: int | None = None
    state_low: Bound = -math.inf
    state_high: Bound = math.inf
    action_low: Bound = -math.inf
    action_high: Bound = math.inf

    def __post_init__(self) -> None:
        if self.action_count is not None and (self.action_count < 1 or self.action_shape != ()):
            raise ValueError(
                "discrete actions need action_count >= 1 and action_shape (), "
                f"got {self.action_count} and {self.action_shape}"
            )
        for name, size in (("state", self.state_size), ("action", self.action_size)):
            for end in ("low", "high"):
                bound = getattr(self, f"{name}_{end}")
                if isinstance(bound, tuple) and len(bound) != size:
                    raise ValueError(f"{name}_{end} has {len(bound)} entries, expected {size}")

    @property
    def discrete(self) -> bool:
        """Whether actions are choices out of ``action_count``."""
        return self.action_count is not None

    @property
    def state_size(self) -> int:
        """Number of state coordinates."""
        return math.prod(self.state_shape)

    @property
    def image(self) -> bool:
        """Whether states are stacks of images (channels, height, width)."""
        return len(self.state_shape) == 3

    @property
    def state_unit(self) -> float:
        """What counts as one to who knows no deviation: for grey levels (uint8) their whole range.

        States of uint8 are grey levels 0..255 wherever they occur, floating point or not. To scale
        them is the network's business.
        """
        return 255.0 if self.state_dtype == torch.uint8 else 1.0

    @property
    def action_size(self) -> int:
        """Number of action coordinates: box dimensions, or one for each discrete action."""
        return math.prod(self.action_shape) if self.action_count is None else self.action_count

    @property
    def continuous_size(self) -> int:
        """Coordinates of (s, a) that a search may move: not those of discrete actions."""
        return self.state_size + (0 if self.discrete else self.action_size)

    def clamp(self, z: Transitions) -> Transitions:
        """Moves states, next states and box actions into their ranges; NaN stays NaN."""
        action = z.action
        if not self.discrete:
            action = _clamp(action, self.action_low, self.action_high)
        return Transitions(
            state=_clamp(z.state, self.state_low, self.state_high),
            action=action,
            reward=z.reward,
            next_state=_clamp(z.next_state, self.state_low, self.state_high),
            terminated=z.terminated,
        )


@dataclass(frozen=True, eq=False)
class Transitions:
    """A batch of transitions; the first dimension of every field is the batch B.

    Attributes:
        state: (B, *state_shape), any dtype.
        action: (B, *action_shape) floating point for a box; (B,) int64 for discrete actions; or
            (B, action_count) floating-point weights while an attack relaxes a discrete choice.
        reward: (B,).
        next_state: like ``state``.
        terminated: (B,), 1 where the episode ended for good (time limits do not count). Booleans
            are converted to the reward's dtype, so that ``1 - terminated`` is always valid.

    Raises:
        ValueError: if shapes or dtypes do not fit together.
    """

    state: Tensor
    action: Tensor
    reward: Tensor
    next_state: Tensor
    terminated: Tensor

    def __post_init__(self) -> None:
        if self.reward.dim() != 1:
            raise ValueError(f"reward must have shape (B,), got {tuple(self.reward.shape)}")
        if not self.reward.is_floating_point():
            raise ValueError(f"reward must be floating point, got {self.reward.dtype}")
        batch = len(self.reward)
        for name in ("state", "action", "next_state", "terminated"):
            field = getattr(self, name)
            if field.dim() == 0 or len(field) != batch:
                raise ValueError(
                    f"{name} must have {batch} rows like reward, got shape {tuple(field.shape)}"
                )
        if self.next_state.shape != self.state.shape:
            raise ValueError(
                f"next_state must have the shape of state {tuple(self.state.shape)}, "
                f"got {tuple(self.next_state.shape)}"
            )
        if self.terminated.dim() != 1:
            raise ValueError(f"terminated must have shape (B,), got {tuple(self.terminated.shape)}")
        if not self.action.is_floating_point() and self.action.dim() != 1:
            raise ValueError(
                f"discrete action must have shape (B,), got {tuple(self.action.shape)}"
            )
        if not self.terminated.is_floating_point():
            object.__setattr__(self, "terminated", self.terminated.to(self.reward.dtype))

    @property
    def batch_size(self) -> int:
        """Number of transitions B."""
        return len(self.reward)

    def __len__(self) -> int:
        return self.batch_size

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Transitions:
        """Selected rows; the batch dimension stays, also for a single row."""
        if isinstance(index, int):
            if not -self.batch_size <= index < self.batch_size:
                raise IndexError(f"row {index} of a batch of {self.batch_size}")
            index = slice(index, index + 1 or None)
        rows = index if isinstance(index, slice | Tensor) else torch.tensor(index)
        return Transitions(
            self.state[rows],
            self.action[rows],
            self.reward[rows],
            self.next_state[rows],
            self.terminated[rows],
        )

    @staticmethod
    def cat(parts: Sequence[Transitions]) -> Transitions:
        """Concatenates batches in order."""
        if not parts:
            raise ValueError("cat needs at least one batch of transitions")
        return Transitions(
            torch.cat([z.state for z in parts]),
            torch.cat([z.action for z in parts]),
            torch.cat([z.reward for z in parts]),
            torch.cat([z.next_state for z in parts]),
            torch.cat([z.terminated for z in parts]),
        )

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Transitions:
        """Moves to a device; ``dtype`` is given to floating-point fields only."""

        def move(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None)

        return Transitions(
            move(self.state),
            move(self.action),
            move(self.reward),
            move(self.next_state),
            move(self.terminated),
        )

    def template(
        self,
        *,
        action_count: int | None = None,
        state_low: BoundLike | None = None,
        state_high: BoundLike | None = None,
        action_low: BoundLike | None = None,
        action_high: BoundLike | None = None,
    ) -> Template:
        """The template of this data.

        Integer actions are discrete; their count is then the largest one seen plus one, unless
        ``action_count`` says more. Ranges are infinite unless given, and 0..255 for uint8 states.
        """
        if not self.action.is_floating_point():
            seen = int(self.action.max()) + 1
            action_count = seen if action_count is None else action_count
            if action_count < seen:
                raise ValueError(f"action_count is {action_count}, but action {seen - 1} occurs")
        elif action_count is not None:
            raise ValueError("action_count is for discrete (integer) actions, got a box")
        pixels = self.state.dtype == torch.uint8
        return Template(
            state_shape=tuple(self.state.shape[1:]),
            state_dtype=self.state.dtype,
            action_shape=tuple(self.action.shape[1:]),
            action_count=action_count,
            state_low=_bound(state_low, 0.0 if pixels else -math.inf),
            state_high=_bound(state_high, 255.0 if pixels else math.inf),
            action_low=_bound(action_low, -math.inf),
            action_high=_bound(action_high, math.inf),
        )


def flatten_state_action(z: Transitions, template: Template) -> Tensor:
    """(B, D) floating-point rows [state, action]; discrete actions become one-hot.

    Relaxed discrete actions, already (B, action_count) weights, are taken as they are.
    """
    state = flatten_state(z.state, z.reward.dtype)
    action = z.action
    if template.action_count is not None and not action.is_floating_point():
        action = torch.nn.functional.one_hot(action, template.action_count)
    return torch.cat([state, action.reshape(len(action), -1).to(state.dtype)], dim=-1)


def unflatten_state_action(rows: Tensor, template: Template) -> tuple[Tensor, Tensor]:
    """Inverse of ``flatten_state_action``: (B, D) to state and action; the state stays floating.

    A discrete action is its largest weight.
    """
    expected = template.state_size + template.action_size
    if rows.dim() != 2 or rows.shape[1] != expected:
        raise ValueError(f"rows must have shape (B, {expected}), got {tuple(rows.shape)}")
    state, action = rows.split([template.state_size, template.action_size], dim=-1)
    state = state.reshape(-1, *template.state_shape)
    if template.discrete:
        return state, action.argmax(dim=-1)
    return state, action.reshape(-1, *template.action_shape)


def flatten_state(state: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, *state_shape) of any dtype to (B, S), floating point."""
    flat = state.reshape(len(state), -1)
    return flat if flat.is_floating_point() else flat.to(dtype)


def bound_tensor(bound: Bound, like: Tensor) -> Tensor:
    """A range's end as a tensor that broadcasts against ``like`` (B, *shape)."""
    limit = torch.as_tensor(bound, dtype=like.dtype, device=like.device)
    return limit.reshape(like.shape[1:]) if limit.dim() else limit


def _clamp(x: Tensor, low: Bound, high: Bound) -> Tensor:
    return x.clamp(bound_tensor(low, x), bound_tensor(high, x))


def _bound(value: BoundLike | None, default: float) -> Bound:
    if value is None:
        return default
    tensor = torch.as_tensor(value, dtype=torch.float64)
    return float(tensor) if tensor.dim() == 0 else tuple(tensor.flatten().tolist())
