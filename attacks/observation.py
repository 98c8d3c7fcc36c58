"""What an honest-but-curious server holds in one round: weights, a gradient, and how it was made.

Relaxed discrete actions. A loss receives ``z.action`` of discrete problems in one of two forms:
int64 (B,), the taken actions; or floating point (B, action_count), non-negative weights that sum to
one, standing for a mixture of actions (Q(s, a) becomes sum_a weights_a Q(s, a)). Both must agree on
one-hot weights. Attacks optimise logits and hand the loss their softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from attacks.channel import Channel
from attacks.local_training import LocalTraining, local_release
from attacks.transitions import Template, Transitions

Loss: TypeAlias = Callable[[nn.Module, Transitions], Tensor]
"""Mean over the batch of per-record losses, differentiable in the model and in the transitions."""


@dataclass(frozen=True, eq=False)
class Observation:
    """One release as the adversary sees it. It carries no ground truth.

    Attributes:
        model: the network at the weights that the client used. Attacks leave it unchanged.
        gradient: received gradient, name -> tensor, with names from ``model.named_parameters()``.
            Parameters that were not released are left out.
        loss: (model, transitions) -> scalar, the client's loss (see ``Loss``).
        batch_size: number of records b behind the release, all of them unknown.
        template: shapes and ranges of transitions.
        channel: what the defence did to the gradient.
        local: how clients trained before they sent; ``gradient`` is then the sum of local
            gradients. None (FedSGD): the gradient of the mean loss of all b records.

    Raises:
        ValueError: on unknown names, wrong shapes, non-finite values, frozen parameters, a batch
            size below one, or local training that does not fit the release.
    """

    model: nn.Module
    gradient: Mapping[str, Tensor]
    loss: Loss
    batch_size: int
    template: Template
    channel: Channel = field(default_factory=Channel)
    local: LocalTraining | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not self.gradient:
            raise ValueError("the gradient is empty")
        parameters = dict(self.model.named_parameters())
        for name, value in self.gradient.items():
            if name not in parameters:
                raise ValueError(f"gradient names {name!r}, which is no parameter of the model")
            if value.shape != parameters[name].shape:
                raise ValueError(
                    f"gradient of {name!r} has shape {tuple(value.shape)}, "
                    f"the parameter has {tuple(parameters[name].shape)}"
                )
            if not torch.isfinite(value).all():
                raise ValueError(f"gradient of {name!r} is not finite")
            if not parameters[name].requires_grad:
                raise ValueError(f"parameter {name!r} is frozen (requires_grad is False)")
        if self.local is not None:
            for name in self.local.learning_rates:
                if name not in parameters:
                    raise ValueError(f"local rates name {name!r}, which is no parameter")
            self.local.check(self.gradient, self.batch_size)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The released parameters by name, in the model's order."""
        return {n: p for n, p in self.model.named_parameters() if n in self.gradient}

    def flat_gradient(self) -> Tensor:
        """The received gradient as one vector (P,), in the model's parameter order."""
        return torch.cat([self.gradient[name].reshape(-1) for name in self.parameters])

    def flat_gradient_at(self, z: Transitions) -> Tensor:
        """What the records ``z`` would give without a defence, (P,), detached.

        After local training ``z`` must hold all records, in the order of ``LocalTraining``.
        """
        if self.local is not None:
            release = local_release(self.model, self.loss, z, self.local)
            return torch.cat([release[name].detach().reshape(-1) for name in self.parameters])
        loss = self.loss(self.model, z)
        parameters = list(self.parameters.values())
        grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return torch.cat([g.detach().reshape(-1) for g in grads])

    def shares_computation_with(self, other: Observation) -> bool:
        """Whether both come from the same model object, loss and channel, so can be batched."""
        return (
            self.model is other.model
            and self.loss == other.loss
            and self.batch_size == other.batch_size
            and self.template == other.template
            and self.channel == other.channel
            and self.local == other.local
            and self.gradient.keys() == other.gradient.keys()
        )


def gradient_matching_error(observation: Observation, z: Transitions) -> float:
    """Relative distance ||g(z) - g|| / ||g|| to the received gradient; infinite if g is zero."""
    received = observation.flat_gradient()
    distance = (observation.flat_gradient_at(z) - received).norm()
    return float(distance / received.norm()) if received.any() else float("inf")
