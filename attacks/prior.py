"""What the adversary knew about the environment before it saw any gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from attacks.knowledge.frame_model import FrameModel
from attacks.knowledge.shrinkage import shrunk_correlation, shrunk_std
from attacks.knowledge.transition_model import TransitionModel
from attacks.transitions import (
    Bound,
    Template,
    Transitions,
    bound_tensor,
    flatten_state,
    flatten_state_action,
)

Simulator: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(state (B, *state_shape), action (B, *action_shape)) -> next state and reward (B,)."""

MODEL_LIMIT = 2048
"""Above this many state coordinates (images) nothing is learned that relates each coordinate to
each: no covariance, and no dynamics but those of stacked frames, else s' is taken as s."""


@dataclass(frozen=True, eq=False)
class Prior:
    """Knowledge from samples of the environment, from the environment itself, or none at all.

    Use ``Prior.fit`` or ``Prior.none``. All tensors are float32 unless the samples are float64.

    Attributes:
        template: shapes and ranges of transitions.
        samples: number of known transitions; 0 for the zero-knowledge prior.
        joint_mean, joint_std: (D,) of the rows [state, action], discrete actions one-hot.
        next_state_mean: (S,) of the flattened next state.
        reward_low, reward_high: range of rewards seen; infinite without knowledge.
        reward_mean, reward_std: moments of the reward.
        terminated_rate: share of terminal transitions.
        simulator: steps the public environment, if the adversary can.
        known: the transitions that all this was fitted from; None without knowledge.
    """

    template: Template
    samples: int
    joint_mean: Tensor
    joint_std: Tensor
    next_state_mean: Tensor
    reward_low: float
    reward_high: float
    reward_mean: float
    reward_std: float
    terminated_rate: float
    simulator: Simulator | None
    known: Transitions | None
    _rows: Tensor
    _model: TransitionModel | FrameModel | None

    @classmethod
    def fit(
        cls,
        z_known: Transitions,
        *,
        template: Template | None = None,
        simulator: Simulator | None = None,
        seed: int = 0,
    ) -> Prior:
        """Estimates everything from known transitions (one or more); deterministic in ``seed``.

        Give the ``template`` where the samples may not show every discrete action.
        """
        if z_known.batch_size < 1:
            raise ValueError("a prior needs at least one known transition")
        template = template or z_known.template()
        z = z_known.to(device="cpu")
        rows = flatten_state_action(z, template)
        sizes = [template.state_size, template.action_size]
        if rows.shape[1] != sum(sizes):
            raise ValueError("the known transitions do not fit the template")
        state = flatten_state(z.state, z.reward.dtype)
        next_state = flatten_state(z.next_state, z.reward.dtype)
        model: TransitionModel | FrameModel | None = None
        if template.state_size <= MODEL_LIMIT:
            model = TransitionModel(rows, state, next_state, z.reward, seed=seed)
        elif template.image:
            model = _frame_model(state, next_state, template)
        return cls(
            template=template,
            samples=z.batch_size,
            joint_mean=rows.mean(dim=0),
            joint_std=torch.cat(
                [shrunk_std(part) for part in rows.split(sizes, dim=1)],
            ),
            next_state_mean=next_state.mean(dim=0),
            reward_low=float(z.reward.min()),
            reward_high=float(z.reward.max()),
            reward_mean=float(z.reward.mean()),
            reward_std=float(z.reward.std(correction=0)),
            terminated_rate=float(z.terminated.mean()),
            simulator=simulator,
            known=z,
            _rows=rows,
            _model=model,
        )

    @classmethod
    def none(cls, template: Template) -> Prior:
        """The template alone: means are the middle of finite ranges, else zero; deviations one.

        Grey levels have the deviation of a uniform one.
        """
        state = _middle(template.state_low, template.state_high, template.state_size)
        if template.action_count is None:
            action = _middle(template.action_low, template.action_high, template.action_size)
        else:
            action = torch.full((template.action_size,), 1 / template.action_count)
        joint = torch.cat([state, action])
        deviation = template.state_unit / math.sqrt(12) if template.state_unit > 1 else 1.0
        return cls(
            template=template,
            samples=0,
            joint_mean=joint,
            joint_std=torch.cat([torch.full_like(state, deviation), torch.ones_like(action)]),
            next_state_mean=state,
            reward_low=-math.inf,
            reward_high=math.inf,
            reward_mean=0.0,
            reward_std=1.0,
            terminated_rate=0.0,
            simulator=None,
            known=None,
            _rows=joint[None, :0].expand(0, 0),
            _model=None,
        )

    @property
    def state_mean(self) -> Tensor:
        """(S,) mean of each flattened state coordinate."""
        return self.joint_mean[: self.template.state_size]

    @property
    def state_std(self) -> Tensor:
        """(S,) standard deviation of each flattened state coordinate."""
        return self.joint_std[: self.template.state_size]

    @property
    def grants(self) -> frozenset[str]:
        """The knowledge that attacks may ask for: of "samples" and "simulator"."""
        granted = {"samples"} if self.samples else set()
        if self.simulator is not None:
            granted.add("simulator")
        return frozenset(granted)

    @property
    def knowledge(self) -> str:
        """The strongest knowledge in words: "none", "samples" or "simulator"."""
        if self.simulator is not None:
            return "simulator"
        return "samples" if self.samples else "none"

    def raw_std(self) -> Tensor:
        """(D,) standard deviation of the samples as they are, zero where they never moved.

        ``joint_std`` is an estimate for an adversary with few samples and never zero.
        """
        if not self.samples:
            return self.joint_std
        return self._rows.std(dim=0, correction=0)

    def joint_covariance(self) -> Tensor:
        """(D, D) covariance of [state, action], correlations shrunk (``knowledge.shrinkage``).

        The identity without samples.

        Raises:
            ValueError: states have more than ``MODEL_LIMIT`` coordinates; use ``joint_std``.
        """
        if self.template.state_size > MODEL_LIMIT:
            raise ValueError(
                f"no covariance is formed of {self.template.state_size} state coordinates "
                f"(at most {MODEL_LIMIT})"
            )
        size = len(self.joint_mean)
        if not self.samples:
            return torch.eye(size)
        std = self.joint_std
        x = (self._rows - self.joint_mean) / std
        shrunk = shrunk_correlation(x)
        return shrunk * std[:, None] * std[None, :]

    def whitening(self) -> tuple[Tensor, Tensor]:
        """Mean (K,) and a square root (K, K) of the covariance of what a search may move, float64.

        That is [state, action] where actions are a box, the state alone where they are discrete.
        """
        size = self.template.continuous_size
        covariance = self.joint_covariance()[:size, :size].double()
        values, vectors = torch.linalg.eigh(covariance)
        factor = vectors * values.clamp_min(1e-12).sqrt()
        return self.joint_mean[:size].double(), factor

    def leverage(self) -> Tensor:
        """(n,) how much each sample pulls the learned dynamics to itself, in [0, 1).

        An error of the dynamics on a sample is 1 / (1 - leverage) times as large on one like it
        that they were not fitted on.
        """
        if isinstance(self._model, TransitionModel):
            return self._model.leverage
        return torch.zeros(self.samples)

    def transition(self, state: Tensor, action: Tensor) -> Tensor:
        """Learned f(s, a), differentiable: (B, *state_shape) to the same shape.

        Discrete actions may be int64 or relaxed weights. Without a learned model this is s itself.
        """
        if self._model is None:
            return state
        return self._learned(self._model, state, action)[0]

    def predicted_reward(self, state: Tensor, action: Tensor) -> Tensor:
        """Learned reward (B,) of s and a, differentiable; its mean without a learned model."""
        if not isinstance(self._model, TransitionModel):
            return torch.full_like(state.reshape(len(state), -1)[:, 0], self.reward_mean)
        return self._learned(self._model, state, action)[1]

    def predict(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor] | None:
        """Best guess of next state and reward (B,), from the simulator if there is one.

        None without any knowledge of the dynamics.
        """
        if self.simulator is not None:
            return self.simulator(state, action)
        if self._model is not None:
            return self._learned(self._model, state, action)
        if self.samples:
            return state, torch.full_like(state.reshape(len(state), -1)[:, 0], self.reward_mean)
        return None

    def mean_transitions(self, batch_size: int, template: Template | None = None) -> Transitions:
        """The answer of an adversary that ignores the gradient: the mean, the commonest action."""
        template = template or self.template

        def repeat(row: Tensor, shape: tuple[int, ...]) -> Tensor:
            return row.reshape(1, *shape).repeat(batch_size, *[1] * len(shape))

        action_row = self.joint_mean[template.state_size :]
        if template.discrete:
            action = action_row.argmax().repeat(batch_size)
        else:
            action = repeat(action_row, template.action_shape)
        rewards = self.state_mean.new_full((batch_size,), self.reward_mean)
        return Transitions(
            state=repeat(self.state_mean, template.state_shape),
            action=action,
            reward=rewards,
            next_state=repeat(self.next_state_mean, template.state_shape),
            terminated=torch.full_like(rewards, self.terminated_rate),
        )

    def _learned(
        self, model: TransitionModel | FrameModel, state: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor]:
        if isinstance(model, FrameModel):
            frames = state if state.is_floating_point() else state.to(self.joint_mean.dtype)
            reward = torch.full_like(frames[:, 0, 0, 0], self.reward_mean)
            return model(frames), reward
        flat = flatten_state(state, self.joint_mean.dtype).to(self.joint_mean)
        if self.template.action_count is not None and not action.is_floating_point():
            action = torch.nn.functional.one_hot(action, self.template.action_count)
        rows = torch.cat([flat, action.reshape(len(action), -1).to(flat)], dim=-1)
        next_state, reward = model(flat, rows)
        if state.is_floating_point():
            next_state, reward = next_state.to(state), reward.to(state)
        return next_state.reshape(len(flat), *self.template.state_shape), reward


def _frame_model(state: Tensor, next_state: Tensor, template: Template) -> FrameModel | None:
    """The dynamics of flattened samples (n, S), if they are stacks of frames."""
    before, after = (x.reshape(-1, *template.state_shape) for x in (state, next_state))
    if not FrameModel.fits(before, after):
        return None
    low, high = (bound_tensor(b, state[:1]) for b in (template.state_low, template.state_high))
    return FrameModel(before, after, float(low.min()), float(high.max()))


def _middle(low: Bound, high: Bound, size: int) -> Tensor:
    like = torch.zeros(1, size)
    middle = (bound_tensor(low, like) + bound_tensor(high, like)) / 2
    return torch.where(torch.isfinite(middle), middle, 0.0).expand(size).clone()
