"""Finds the convolutions between the state and the first dense layer, by running the loss.

A chain is (affine scaling) -> Conv2d -> ReLU, once or more, flattened into one or several dense
layers, as in the Q-network of Mnih et al. 2015 with or without separate heads. Every claim about
its forward and backward pass is checked in numbers on two random records, so that no assumption is
made on how the model is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

from attacks.gradients.layer_calls import LayerCalls
from attacks.gradients.linear_layers import LinearLayer, linear_layers, probe_transitions
from attacks.observation import Observation
from attacks.transitions import Transitions

PROBES = 2


@dataclass(frozen=True, eq=False)
class ConvLayer:
    """One convolution, in numbers of its own: x (b, *inputs) to z (b, *outputs).

    Attributes:
        name: of the released weight.
        inputs, outputs: (channels, height, width).
        weight: (m, n) float64, n the size of a patch.
        bias: (m,) float64; zeros without one.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weight: Tensor
    bias: Tensor
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def patches(self, x: Tensor) -> Tensor:
        """(b, *inputs) to (b, n, P): what each of P places of the kernel sees."""
        return F.unfold(x, self.kernel, self.dilation, self.padding, self.stride)

    def overlay(self, patches: Tensor) -> Tensor:
        """The adjoint of ``patches``: (b, n, P) to (b, *inputs), where places overlap the sum."""
        return F.fold(
            patches, self.inputs[1:], self.kernel, self.dilation, self.padding, self.stride
        )

    def linear(self, x: Tensor) -> Tensor:
        """z (b, *outputs) in float64, before the ReLU."""
        z = self.weight @ self.patches(x) + self.bias[:, None]
        return z.reshape(len(x), *self.outputs)

    def backward(self, d: Tensor) -> Tensor:
        """Gradients at the inputs from those at z."""
        return self.overlay(self.weight.T @ d.flatten(2))


@dataclass(frozen=True, eq=False)
class ConvChain:
    """Convolutions from the state to the dense layers that read their features.

    Attributes:
        layers: from the first to the last.
        heads: dense layers, weight and bias released, that read the last ReLU's flattened outputs.
        scale, shift: the first convolution sees scale * state + shift.
        channels_last: whether it sees the state's last dimension as channels.
    """

    layers: tuple[ConvLayer, ...]
    heads: tuple[LinearLayer, ...]
    scale: float
    shift: float
    channels_last: bool

    def features(self, images: Tensor) -> list[Tensor]:
        """Activations after each convolution of inputs (b, *layers[0].inputs), in float64."""
        found, x = [], images.double()
        for layer in self.layers:
            x = layer.linear(x).relu()
            found.append(x)
        return found

    def images(self, states: Tensor) -> Tensor:
        """States (b, *state_shape) as what the first convolution sees, without scale and shift."""
        x = states.movedim(-1, 1) if self.channels_last else states
        return x.reshape(len(x), *self.layers[0].inputs)

    def states(self, images: Tensor, shape: Sequence[int]) -> Tensor:
        """Inverse of ``images``."""
        x = images.movedim(1, -1) if self.channels_last else images
        return x.reshape(len(x), *shape)


def find_chain(observation: Observation) -> tuple[ConvChain | None, str]:
    """The chain, or None and why there is none, in one line."""
    convolutions = {
        module: f"{prefix}.weight" if prefix else "weight"
        for prefix, module in observation.model.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    if not convolutions:
        return None, "the model has no convolutions"
    if any(name not in observation.gradient for name in convolutions.values()):
        return None, "a convolution's weight is not released"
    if any(m.groups != 1 or m.padding_mode != "zeros" for m in convolutions):
        return None, "a convolution is grouped or does not pad with zeros"
    if any(isinstance(m.padding, str) for m in convolutions):
        return None, "a convolution's padding is not given in numbers"
    dense = [x for x in linear_layers(observation) if x.weight and x.bias]
    like = next(iter(observation.parameters.values()))
    z = probe_transitions(observation.template, PROBES, like)
    with LayerCalls([*convolutions, *(x.module for x in dense)]) as calls:
        loss = observation.loss(observation.model, z)
    order = [call for call in calls.calls if isinstance(call[0], nn.Conv2d)]
    if [m for m, _, _ in order] != list(dict.fromkeys(m for m, _, _ in order)):
        return None, "a convolution runs more than once"
    if len(order) != len(convolutions):
        return None, "a convolution takes no part in the loss"
    layers = []
    for index, (module, x, out) in enumerate(order):
        assert isinstance(module, nn.Conv2d)
        if index and not _near(order[index - 1][2].relu(), x):
            return None, "convolutions do not follow one another through ReLUs alone"
        layers.append(_layer(module, convolutions[module], x, out))
    features = order[-1][2].relu().flatten(1)
    heads, outputs = [], []
    for layer in dense:
        for module, x, out in calls.calls:
            if module is layer.module and x.shape == features.shape and _near(x, features):
                heads.append(layer)
                outputs.append(out)
    if not heads:
        return None, "no released dense layer with a bias reads the last convolution's features"
    if not _feeds_only(loss, order[-1][2], heads, outputs):
        return None, "something besides dense layers reads the last convolution's features"
    return _with_scaling(observation, layers, heads, z, order[0][1])


def _layer(module: nn.Conv2d, name: str, x: Tensor, out: Tensor) -> ConvLayer:
    weight = module.weight.detach().cpu().double().flatten(1)
    bias = module.bias
    assert not isinstance(module.padding, str)
    return ConvLayer(
        name=name,
        inputs=tuple(x.shape[1:]),
        outputs=tuple(out.shape[1:]),
        weight=weight,
        bias=torch.zeros_like(weight[:, 0]) if bias is None else bias.detach().cpu().double(),
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=tuple(module.padding),
        dilation=tuple(module.dilation),
    )


def _feeds_only(
    loss: Tensor, last: Tensor, heads: Sequence[LinearLayer], outputs: Sequence[Tensor]
) -> bool:
    """Whether the gradient at the last convolution is what comes back through ``heads``."""
    found = torch.autograd.grad(loss, [last, *outputs], materialize_grads=True)
    back = sum(d @ head.module.weight for head, d in zip(heads, found[1:], strict=True))
    assert isinstance(back, Tensor)
    return _near(back.reshape(last.shape) * (last > 0), found[0])


def _with_scaling(
    observation: Observation,
    layers: Sequence[ConvLayer],
    heads: Sequence[LinearLayer],
    z: Transitions,
    seen: Tensor,
) -> tuple[ConvChain | None, str]:
    for channels_last in (False, True):
        if channels_last and z.state.dim() < 3:
            continue
        x = z.state.movedim(-1, 1) if channels_last else z.state
        if x[0].numel() != seen[0].numel():
            continue
        flat, target = x.reshape(-1).double(), seen.detach().reshape(-1).double()
        scale = ((flat - flat.mean()) @ target) / (flat - flat.mean()).square().sum()
        shift = target.mean() - scale * flat.mean()
        if _near(scale * flat + shift, target) and float(scale) != 0:
            padded = any(sum(layer.padding) for layer in layers[:1])
            small = abs(float(shift)) <= 1e-6 * abs(float(scale)) * float(flat.abs().max())
            if padded and not small:
                return None, "the first convolution pads states that are shifted"
            offset = 0.0 if small else float(shift)
            return ConvChain(tuple(layers), tuple(heads), float(scale), offset, channels_last), ""
    return None, "the first convolution sees no scaled copy of the state"


def _near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())
