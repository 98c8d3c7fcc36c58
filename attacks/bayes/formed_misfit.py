"""The misfit of gradients that are formed: the general path beside ``misfits``.

For absolute residuals, coordinates that were not sent, and releases without noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.bayes.layer_derivatives import LayerDerivatives
from attacks.bayes.misfits import Received, gram_hessian


class FormedMisfit:
    """The misfit from the gradients themselves.

    Under Laplace noise it is the weighted sum of absolute residuals, and the Hessian, the Fisher
    information, has the form that it has under Gaussian noise.
    """

    def __init__(self, received: Received) -> None:
        self._received = received
        self._targets = received.targets

    def value(self, layer: LayerDerivatives) -> Tensor:
        """(G,) of one layer."""
        groups = len(layer.d)
        parts = [
            self._misfit(error.flatten(1), self._precision(name, groups))
            for name, error in self._residual(layer).items()
        ]
        return sum(parts[1:], parts[0])

    def equations(self, layer: LayerDerivatives) -> tuple[Tensor, Tensor]:
        """Gradient (G, b K) and Hessian (G, b K, b K) of one layer."""
        return self._over_sent(layer) if self._received.sent is not None else self._over_all(layer)

    def _over_all(self, layer: LayerDerivatives) -> tuple[Tensor, Tensor]:
        groups = len(layer.d)
        residual = self._scores(layer)
        slope = layer.dd.new_zeros(layer.dd.shape[:3])
        if layer.layer.bias is not None:
            weight = self._precision(layer.layer.bias, groups)
            pulled = torch.einsum("gikm,gm->gik", layer.dd, residual[layer.layer.bias])
            slope = slope + weight[:, None, None] * pulled
        if layer.layer.weight is not None:
            weight = self._precision(layer.layer.weight, groups)
            error = residual[layer.layer.weight]  # (G, m, n)
            outputs, inputs = torch.bmm(layer.x, error.mT), torch.bmm(layer.d, error)
            pulled = torch.einsum("gikm,gim->gik", layer.dd, outputs)
            pulled = pulled + torch.einsum("gikn,gin->gik", layer.dx, inputs)
            slope = slope + weight[:, None, None] * pulled
        precision = {n: self._precision(n, groups) for n in self._received.precision}
        return slope.flatten(1), gram_hessian(layer, precision)

    def _over_sent(self, layer: LayerDerivatives) -> tuple[Tensor, Tensor]:
        """From the Jacobian of the sent coordinates, group by group."""
        groups, size, width = layer.dd.shape[:3]
        assert self._received.sent is not None
        gradient = layer.dd.new_zeros(groups, size * width)
        hessian = layer.dd.new_zeros(groups, size * width, size * width)
        each = groups // self._targets
        for name, error in self._scores(layer).items():
            precision = self._precision(name, groups)
            for target, sent in enumerate(self._received.sent[name]):
                where = sent.nonzero(as_tuple=True)
                for group in range(target * each, (target + 1) * each):
                    jacobian = layer.dd[group][:, :, where[0]]
                    if name == layer.layer.weight:
                        x, dx = layer.x[group], layer.dx[group]
                        jacobian = jacobian * x[:, None, where[1]]
                        jacobian = jacobian + layer.d[group][:, None, where[0]] * dx[..., where[1]]
                    jacobian = jacobian.flatten(0, 1)
                    gradient[group] += precision[group] * (jacobian @ error[group][where])
                    hessian[group] += precision[group] * (jacobian @ jacobian.T)
        return gradient, hessian

    def _residual(self, layer: LayerDerivatives) -> dict[str, Tensor]:
        """Gradient minus received one, (G, *shape) by name; zero where nothing was sent."""
        errors = {}
        for name, gradient in layer.gradients().items():
            error = gradient.unflatten(0, (self._targets, -1))
            error = error - self._received.gradient[name][:, None]
            if self._received.sent is not None:
                error = error * self._received.sent[name][:, None]
            errors[name] = error.flatten(0, 1)
        return errors

    def _misfit(self, error: Tensor, precision: Tensor) -> Tensor:
        """Minus log likelihood (G,) of residuals (G, n), up to a constant."""
        if self._received.laplace:
            return precision.sqrt() * error.abs().sum(dim=1)
        return 0.5 * precision * error.square().sum(dim=1)

    def _scores(self, layer: LayerDerivatives) -> dict[str, Tensor]:
        """The misfit's derivative by the gradient over the precision: Gaussian, the residual."""
        errors = self._residual(layer)
        if not self._received.laplace:
            return errors
        groups = len(layer.d)
        return {
            name: error.sign() / _like(self._precision(name, groups).sqrt(), error)
            for name, error in errors.items()
        }

    def _precision(self, name: str, groups: int) -> Tensor:
        return self._received.precision[name].repeat_interleave(groups // self._targets)


def _like(numbers: Tensor, tensor: Tensor) -> Tensor:
    """(G,) in a shape that multiplies ``tensor`` (G, ...)."""
    return numbers.reshape(-1, *[1] * (tensor.dim() - 1))
