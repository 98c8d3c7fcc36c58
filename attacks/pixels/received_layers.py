"""What is received of each convolution's gradient, with its noise, as equations of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attacks.bayes.posterior import received_by
from attacks.observation import Observation
from attacks.pixels.conv_chains import ConvLayer
from attacks.pixels.conv_equations import GradientEquations
from attacks.pixels.layer_beliefs import LayerBelief
from attacks.pixels.problem import PixelProblem


@dataclass(frozen=True, eq=False)
class ReceivedLayer:
    """One layer's gradient as received.

    Attributes:
        layer: in numbers; the first one reads images in [0, 1].
        gradient: (m, n) of the weight.
        bias: (m,); None where not received.
        noise: standard deviation of the weight's entries.
        bias_noise: of the bias's.
        factor, offset: the gradient is that of a layer which sees ``factor`` x + ``offset``.
    """

    layer: ConvLayer
    gradient: Tensor
    bias: Tensor | None
    noise: float
    bias_noise: float
    factor: float = 1.0
    offset: float = 0.0

    def equations(self, belief: LayerBelief, inputs: Tensor, doubt: Tensor) -> GradientEquations:
        """Of the inputs; doubtful units and ``doubt`` (m,) count as noise of a channel's row."""
        seen = self.seen(inputs).square().mean(dim=1)[:, None]  # (b, 1, P)
        doubtful = (belief.doubt.flatten(2) * seen).sum(dim=(0, 2))
        noise = (self.noise**2 + doubt.square() + doubtful).sqrt()
        shifted = self.gradient - self.offset * belief.sent.sum(dim=(0, 2, 3))[:, None]
        return GradientEquations.of(
            belief.sent.flatten(2), shifted / self.factor, noise / abs(self.factor)
        )

    def seen(self, inputs: Tensor) -> Tensor:
        """Patches (b, n, P) of inputs, as the gradient counts them."""
        return self.factor * self.layer.patches(inputs) + self.offset


def received_layers(problem: PixelProblem, observation: Observation) -> list[ReceivedLayer]:
    """Of all convolutions, from the first to the last."""
    precision, found = received_by([observation]).precision, list[ReceivedLayer]()
    for level, layer in enumerate(problem.layers):
        name = layer.name.removesuffix("weight") + "bias"
        bias = observation.gradient.get(name)
        factor, offset = problem.scaling if level == 0 else (1.0, 0.0)
        found.append(
            ReceivedLayer(
                layer=layer,
                gradient=observation.gradient[layer.name].detach().cpu().double().flatten(1),
                bias=None if bias is None else bias.detach().cpu().double(),
                noise=float(precision[layer.name]) ** -0.5,
                bias_noise=float(precision[layer.name if bias is None else name]) ** -0.5,
                factor=factor,
                offset=offset,
            )
        )
    return found
