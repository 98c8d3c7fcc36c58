"""Fake tuples (s, a, r, s') as rows of numbers that an optimiser may move freely."""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.prior import Prior
from attacks.transitions import Template, Transitions


class FakeTuples:
    """Rows of optimised numbers [state, action or logits, reward, next state] <-> transitions."""

    def __init__(self, template: Template, scale: Prior | None, like: Tensor) -> None:
        """Rows in units of ``scale``, around its mean; without it in the states' own unit."""
        self._template = template
        self._sizes = [template.state_size, template.action_size, 1, template.state_size]
        self.width = sum(self._sizes)
        center, unit = torch.zeros(self.width), torch.ones(self.width)
        unit[: template.state_size] = unit[-template.state_size :] = template.state_unit
        if scale is not None:
            center = torch.cat([scale.joint_mean, center[:1], scale.next_state_mean])
            unit = torch.cat([scale.joint_std, unit[:1], scale.state_std])
            at = template.state_size + template.action_size
            center[at], unit[at] = scale.reward_mean, max(scale.reward_std, 1e-3)
            if template.discrete:  # logits have no scale of their own
                center[template.state_size : at], unit[template.state_size : at] = 0.0, 1.0
        self._center, self._unit = center.to(like), unit.to(like)

    def decode(self, rows: Tensor) -> Transitions:
        """Differentiable fakes; discrete actions as softmax weights (see ``observation``)."""
        shape = self._template.state_shape
        rows = self._center + self._unit * rows
        state, action, reward, next_state = rows.split(self._sizes, dim=-1)
        if self._template.discrete:
            action = action.softmax(dim=-1)
        else:
            action = action.reshape(-1, *self._template.action_shape)
        return Transitions(
            state=state.reshape(-1, *shape),
            action=action,
            reward=reward.squeeze(-1),
            next_state=next_state.reshape(-1, *shape),
            terminated=torch.zeros_like(reward.squeeze(-1)),
        )

    def finish(self, rows: Tensor) -> Transitions:
        """Final answers: discrete actions int64, everything inside its known range."""
        z = self.decode(rows)
        if self._template.discrete:
            z = Transitions(z.state, z.action.argmax(dim=-1), z.reward, z.next_state, z.terminated)
        return self._template.clamp(z)
