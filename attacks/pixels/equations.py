"""All that is known of images through a chain of convolutions, while its active units are fixed.

With the active units of each layer given, activations are affine in the pixels, and so are the
equations of every layer's weight gradient (``conv_equations``) and the known outputs of the last
layer considered: active ones are equal to what is known, inactive ones at most zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.pixels.conv_chains import ConvLayer
from attacks.pixels.conv_equations import GradientEquations

POWER_STEPS = 6


@dataclass(frozen=True, eq=False)
class PixelEquations:
    """Blocks: one for each layer's gradient (k, n), then the last layer's outputs (b, m, P).

    Attributes:
        layers: from the pixels to the last layer with known outputs.
        active: (b, m, P) zeros and ones for all layers but the last.
        gradients: of each layer.
        outputs: (b, m, P) of the last layer, after its ReLU.
        fires: (b, m, P) whether each of those is active.
        outputs_std: their standard deviation, of each or of all.
        scales: of each block, so that all are of norm one as maps of the pixels.
        offsets: of each block, what it is for black images.
        stiffness: how much one nat counts: the objective's unit.
    """

    layers: tuple[ConvLayer, ...]
    active: tuple[Tensor, ...]
    gradients: tuple[GradientEquations, ...]
    outputs: Tensor
    fires: Tensor
    outputs_std: Tensor
    scales: tuple[float, ...]
    offsets: tuple[Tensor, ...]
    stiffness: float

    @classmethod
    def of(
        cls,
        layers: Sequence[ConvLayer],
        active: Sequence[Tensor],
        gradients: Sequence[GradientEquations],
        outputs: Tensor,
        fires: Tensor,
        *,
        outputs_std: float | Tensor,
        stiffness: float,
        like: Tensor,
    ) -> PixelEquations:
        """``like`` (b, C, H, W) says the numbers' type."""
        cast = [
            GradientEquations(g.mixing.to(like), g.values.to(like), g.std.to(like))
            for g in gradients
        ]
        std = torch.as_tensor(outputs_std).to(like)
        std = std.expand_as(outputs).flatten(2)
        bare = cls(
            layers=tuple(_cast(layer, like) for layer in layers),
            active=tuple(a.to(like).flatten(2) for a in active),
            gradients=tuple(cast),
            outputs=outputs.to(like).flatten(2),
            fires=fires.flatten(2),
            outputs_std=std,
            scales=(1.0,) * (len(layers) + 1),
            offsets=(),
            stiffness=stiffness,
        )
        offsets = bare._blocks(torch.zeros_like(like), affine=True)
        scales = bare._norms(like)
        return cls(
            bare.layers,
            bare.active,
            bare.gradients,
            bare.outputs,
            bare.fires,
            bare.outputs_std,
            tuple(1 / s for s in scales),
            tuple(offsets),
            stiffness,
        )

    def apply(self, images: Tensor) -> list[Tensor]:
        """Linear parts of the blocks, scaled."""
        found = self._blocks(images, affine=False)
        return [s * block for s, block in zip(self.scales, found, strict=True)]

    def adjoint(self, blocks: Sequence[Tensor]) -> Tensor:
        """Transpose of ``apply``."""
        scaled = [s * block for s, block in zip(self.scales, blocks, strict=True)]
        *rows, seen = scaled
        for level in reversed(range(len(self.layers))):
            layer = self.layers[level]
            patches = layer.weight.T @ seen + self.gradients[level].spread(rows[level])
            images = layer.overlay(patches)
            if level:
                seen = images.flatten(2) * self.active[level - 1]
        return images

    def nearest(self, blocks: Sequence[Tensor], penalty: float) -> list[Tensor]:
        """Blocks between themselves and what is known, by the noise and the price of moving."""
        *rows, seen = blocks
        found = []
        for known, offset, scale, block in zip(
            self.gradients, self.offsets, self.scales, rows, strict=False
        ):
            yielding = penalty * self.stiffness * (scale * known.std[:, None]).square()
            target = scale * (known.values - offset)
            found.append((target + yielding * block) / (1 + yielding))
        scale, offset = self.scales[-1], self.offsets[-1]
        loose = penalty * self.stiffness * (scale * self.outputs_std).square()
        target = scale * (self.outputs - offset)
        most = torch.minimum(seen, target)
        bound = (most + loose * seen) / (1 + loose)
        fitted = (target + loose * seen) / (1 + loose)
        return [*found, torch.where(self.fires, fitted, bound)]

    def exact(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """The same with zeros where only a bound is known."""
        *rows, seen = blocks
        return [*rows, seen * self.fires]

    def missing(self, images: Tensor) -> list[Tensor]:
        """Scaled distances from what is known exactly to what ``images`` give."""
        *rows, seen = self._blocks(images, affine=True)
        found = [k.values - block for k, block in zip(self.gradients, rows, strict=True)]
        found.append(self.outputs - seen)
        return self.exact([s * block for s, block in zip(self.scales, found, strict=True)])

    def misfit(self, images: Tensor) -> float:
        """Relative distance to what is known without noise: gradients and active outputs."""
        square = sum(float(block.square().sum()) for block in self.missing(images))
        known = [*(g.values for g in self.gradients), self.outputs]
        total = sum(
            scale**2 * float(block.square().sum())
            for scale, block in zip(self.scales, known, strict=True)
        )
        return (square / max(total, 1e-300)) ** 0.5

    def _blocks(self, images: Tensor, *, affine: bool) -> list[Tensor]:
        found, x = [], images
        for level, layer in enumerate(self.layers):
            patches = layer.patches(x)
            found.append(self.gradients[level].apply(patches))
            z = layer.weight @ patches
            if affine:
                z = z + layer.bias[:, None]
            if level < len(self.active):
                x = (z * self.active[level]).reshape(len(x), *layer.outputs)
        return [*found, z]

    def _norms(self, like: Tensor) -> list[float]:
        """Norm of each block by power iteration."""
        generator = torch.Generator().manual_seed(0)
        count, norms = len(self.layers) + 1, []
        for index in range(count):
            x = torch.rand(like.shape, generator=generator, dtype=like.dtype).to(like)
            for _ in range(POWER_STEPS):
                x = x / x.norm().clamp_min(1e-30)
                blocks = self._blocks(x, affine=False)
                one = [b if i == index else torch.zeros_like(b) for i, b in enumerate(blocks)]
                x = self.adjoint(one)
            norms.append(max(float(x.norm()) ** 0.5, 1e-6))
        return norms


def _cast(layer: ConvLayer, like: Tensor) -> ConvLayer:
    return ConvLayer(
        layer.name,
        layer.inputs,
        layer.outputs,
        layer.weight.to(like),
        layer.bias.to(like),
        layer.kernel,
        layer.stride,
        layer.padding,
        layer.dilation,
    )
