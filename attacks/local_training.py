"""Federated averaging: what a client sends after several local steps, as the server simulates it.

In FedAvg (McMahan et al. 2017, arXiv 1602.05629) a client starts from the broadcast weights, takes
plain gradient steps on minibatches of its own and sends where it arrived. Divided by the learning
rates, the difference of weights is the sum of the local gradients,

    (w_0 - w_N) / rate = g(w_0) + g(w_1) + ... + g(w_N-1),    w_k+1 = w_k - rate g(w_k),

so a release has the unit of a gradient whatever the number of steps. Every step but the first is
taken at weights that depend on the records. An attacker who knows the number of steps and the
rates, as the server does, repeats them with made-up records and differentiates through all of them
(Geiping et al. 2020, arXiv 2003.14053, section 6; Dimitrov et al. 2022, arXiv 2206.12395).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.transitions import Transitions


@dataclass(frozen=True)
class LocalTraining:
    """How each client trained before it sent the sum of its local gradients. Public, plain data.

    The b records of a release are ``clients`` equal groups of rows, one a client, and each group is
    ``minibatches`` equal parts; step k uses part k modulo ``minibatches``. One minibatch means that
    every step goes over all of a client's records; as many as steps, that each record is used once.

    Attributes:
        steps: local gradient steps N, at least 1.
        learning_rates: local step size by parameter name, at least 0; other parameters stay.
        minibatches: parts of a client's records, between 1 and ``steps``.
        clients: clients whose sums the release is the mean of.

    Raises:
        ValueError: a number is out of range.
    """

    steps: int
    learning_rates: Mapping[str, float]
    minibatches: int = 1
    clients: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.clients < 1 or not 1 <= self.minibatches <= self.steps:
            raise ValueError(
                "local training needs steps >= 1, clients >= 1 and 1 <= minibatches <= steps, got "
                f"{self.steps}, {self.clients} and {self.minibatches}"
            )
        for name, rate in self.learning_rates.items():
            if not (math.isfinite(rate) and rate >= 0):
                raise ValueError(f"the local learning rate of {name!r} is {rate}, not >= 0")

    def check(self, released: Mapping[str, Tensor], batch_size: int) -> None:
        """Whether a release of these parameters and so many records can be of this kind.

        Raises:
            ValueError: a released parameter has no rate, or the records cannot be divided.
        """
        missing = [name for name in released if name not in self.learning_rates]
        if missing:
            raise ValueError(f"no local learning rate of the released parameter {missing[0]!r}")
        if batch_size % (self.clients * self.minibatches):
            raise ValueError(
                f"{batch_size} records are not {self.clients} clients with {self.minibatches} "
                "minibatches of one size each"
            )


def local_release(
    model: nn.Module,
    loss: Callable[[nn.Module, Transitions], Tensor],
    z: Transitions,
    local: LocalTraining,
) -> dict[str, Tensor]:
    """The release of records ``z`` without a defence, by parameter name; differentiable in ``z``.

    The model keeps its weights. Whatever else the loss reads (target networks, a frozen critic)
    stays as it is through all local steps.

    Args:
        model: at the broadcast weights.
        loss: (model, transitions) -> mean loss; it may run under ``torch.func`` transforms.
        z: b records in the order that ``LocalTraining`` describes.
        local: how the clients trained.
    """
    objective = _Objective(model, loss)
    parameters = dict(model.named_parameters())
    start = {name: parameters[name].detach() for name in local.learning_rates}
    total = {name: torch.zeros_like(value) for name, value in start.items()}
    for own in _parts(z, local.clients):
        parts = _parts(own, local.minibatches)
        weights = start
        for step in range(local.steps):
            gradient = torch.func.grad(objective.at)(weights, parts[step % local.minibatches])
            total = {name: total[name] + gradient[name] for name in total}
            weights = {
                name: weights[name] - rate * gradient[name]
                for name, rate in local.learning_rates.items()
            }
    return {name: value / local.clients for name, value in total.items()}


class _Objective(nn.Module):
    """The loss as a module, so that the model inside may be called at other weights."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Transitions], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, z: Transitions) -> Tensor:
        """The mean loss of ``z``."""
        return self._loss(self.model, z)

    def at(self, weights: Mapping[str, Tensor], z: Transitions) -> Tensor:
        """The mean loss of ``z`` at ``weights``, by the model's parameter names."""
        placed = {f"model.{name}": value for name, value in weights.items()}
        return torch.func.functional_call(self, placed, (z,))


def _parts(z: Transitions, count: int) -> list[Transitions]:
    """The rows of ``z`` in ``count`` equal parts."""
    size, rest = divmod(len(z), count)
    if rest:
        raise ValueError(f"{len(z)} records cannot be divided into {count} equal parts")
    return [z[slice(k * size, (k + 1) * size)] for k in range(count)]
