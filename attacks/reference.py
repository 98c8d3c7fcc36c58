"""The scale on which records are compared, and which reconstructed row answers for which record.

Errors are measured in sigma_j, the standard deviation of coordinate j over reference transitions of
the environment; coordinates with sigma_j < 1e-6 are left out. A discrete action is one coordinate:
right or wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.transitions import Template, Transitions, flatten_state

SIGMA_FLOOR = 1e-6
"""Coordinates that vary less are left out."""
DECOYS = 999


@dataclass(frozen=True, eq=False)
class Fields:
    """Transitions as float64 matrices; a discrete action is its number, (B, 1).

    Grey levels are float32, which holds them exactly: a thousand images take half the time.
    """

    state: Tensor
    action: Tensor
    reward: Tensor
    next_state: Tensor

    @classmethod
    def of(cls, z: Transitions, template: Template) -> Fields:
        """The fields of B transitions.

        Raises:
            ValueError: discrete actions are relaxed weights.
        """
        z = z.to(device="cpu")
        if template.discrete and z.action.is_floating_point() and z.action.dim() == 2:
            raise ValueError("scores need decided discrete actions, got relaxed weights")
        dtype = torch.float32 if template.state_dtype == torch.uint8 else torch.float64
        return cls(
            state=flatten_state(z.state, dtype).detach().to(dtype),
            action=z.action.reshape(len(z), -1).detach().double(),
            reward=z.reward[:, None].detach().double(),
            next_state=flatten_state(z.next_state, dtype).detach().to(dtype),
        )

    def take(self, rows: slice | Tensor) -> Fields:
        """Some of the rows."""
        return Fields(self.state[rows], self.action[rows], self.reward[rows], self.next_state[rows])


@dataclass(frozen=True, eq=False)
class Reference:
    """Scale of an environment's transitions, and decoys to tell the true record from.

    Attributes:
        template: shapes, and whether actions are discrete.
        state, action, reward, next_state: sigma of each flattened coordinate, (S,), (A,), (1,),
            (S,). For discrete actions the single entry is the square root of the error rate of
            always guessing the commonest action, so that this guess has nmse one.
        decoys: other records of the environment, at least one.
    """

    template: Template
    state: Tensor
    action: Tensor
    reward: Tensor
    next_state: Tensor
    decoys: Transitions

    @cached_property
    def decoy_fields(self) -> Fields:
        """Of the decoys; converting hundreds of images takes longer than comparing with them."""
        return Fields.of(self.decoys, self.template)

    @classmethod
    def fit(
        cls,
        transitions: Transitions,
        *,
        template: Template,
        decoys: Transitions | None = None,
        seed: int = 0,
    ) -> Reference:
        """Sigmas of ``transitions``; decoys are up to 999 of them, drawn from ``seed``.

        Neither should contain an attacked record, nor one that the prior was fitted from.
        """
        if transitions.batch_size < 2:
            raise ValueError("a reference needs at least two transitions")
        if decoys is None:
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(transitions.batch_size, generator=generator)
            decoys = transitions[order[:DECOYS]]
        elif not decoys.batch_size:
            raise ValueError("a reference needs at least one decoy")
        flat = Fields.of(transitions, template)
        if template.discrete:
            counts = flat.action.flatten().long().bincount()
            action = (1 - counts.max() / counts.sum()).double().sqrt()[None]
        else:
            action = flat.action.std(dim=0, correction=0)
        return cls(
            template=template,
            state=flat.state.std(dim=0, correction=0),
            action=action,
            reward=flat.reward.std(dim=0, correction=0),
            next_state=flat.next_state.std(dim=0, correction=0),
            decoys=decoys,
        )


def state_action_error(ours: Fields, theirs: Fields, reference: Reference) -> Tensor:
    """(B, K) errors of the varying (s, a) coordinates, in sigma; a wrong discrete action is one.

    The single row of ``ours`` may be compared with many of ``theirs``.
    """
    keep = reference.state >= SIGMA_FLOOR
    state = (ours.state[:, keep] - theirs.state[:, keep]) / reference.state[keep]
    if reference.template.discrete:
        return torch.cat([state, (ours.action != theirs.action).to(state)], dim=1)
    keep = reference.action >= SIGMA_FLOOR
    action = (ours.action[:, keep] - theirs.action[:, keep]) / reference.action[keep]
    return torch.cat([state, action], dim=1)


def match_rows(guess: Transitions, truth: Transitions, reference: Reference) -> Tensor:
    """For each true row, the index of the reconstructed row assigned to it, (B,).

    Hungarian assignment on the mean squared (s, a) error in sigma. An unknown coordinate costs one
    sigma squared, as the prior's mean would on average.
    """
    ours, theirs = Fields.of(guess, reference.template), Fields.of(truth, reference.template)
    rows = [
        state_action_error(ours.take(slice(i, i + 1)), theirs, reference) for i in range(len(truth))
    ]
    cost = torch.stack([e.square().nan_to_num(nan=1.0).mean(dim=1) for e in rows], dim=1)
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
