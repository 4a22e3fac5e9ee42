"""Mixers that become one convolution after training, in transformers' blocks: FastViT (arXiv
2303.14189)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ghn_fast.nets.families.draw import Draw, batch_norm
from ghn_fast.nets.families.metaformer import PixelAttention
from ghn_fast.nets.families.parts import (
    LayerScale,
    Residual,
    SqueezeExcitation,
    Sum,
    conv,
    pooled_head,
)
from ghn_fast.nets.families.reparametrised import branches


def fastvit(draw: Draw, num_classes: int) -> nn.Module:
    """Two to four stages that halve the map; attention in the last one of some."""
    channels, ratio = draw.between(32, 64, 16), draw.pick((2, 3, 4))
    scale, attends = draw.pick((1e-5, 1e-5, 0.1)), draw.chance(1, 4)
    stem, inner = draw.pick(((1, 1), (2, 1), (2, 2)))
    stages = draw.between(2, 4)
    layers = [
        *(block(3, channels, 3, stem), block(channels, channels, 3, inner, channels)),
        block(channels, channels, 1),
    ]
    for stage in range(stages):
        if stage:
            layers += [halve(channels), block(2 * channels, 2 * channels, 1)]
            channels *= 2
        for _ in range(draw.between(1, 4)):
            if attends and stage == stages - 1:
                mixer = PixelAttention(channels, channels // 32)
                scaled = batch_norm(channels), mixer, LayerScale(scale, channels, 1, 1)
                layers.append(Residual(nn.Sequential(*scaled)))
            else:
                layers.append(Mixer(channels, scale))
            layers.append(perceptron(channels, ratio, scale))
    return nn.Sequential(*layers, *last(channels), *pooled_head(2 * channels, num_classes))


def block(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(Sum(*reversed(branches(inputs, outputs, size, stride, groups))), nn.GELU())


def halve(channels: int) -> nn.Module:
    """Halves a map, with a large and a small kernel for two outputs of every channel."""
    layer = partial(conv, channels, 2 * channels, norm=batch_norm, stride=2, groups=channels)
    return nn.Sequential(Sum(layer(kernel=7), layer(kernel=3)), nn.GELU())


def last(channels: int) -> list[nn.Module]:
    """Twice the channels, and a gate."""
    wide = Sum(*reversed(branches(channels, 2 * channels, 3, 1, channels)))
    return [wide, SqueezeExcitation(2 * channels, channels // 8, nn.Sigmoid), nn.GELU()]


class Mixer(nn.Module):
    """Adds what depthwise branches make of a map beyond its normalisation."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.mixer = Sum(*reversed(branches(channels, channels, 3, 1, channels)))
        self.norm, self.scale = batch_norm(channels), LayerScale(scale, channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale(self.mixer(x) - self.norm(x))


def perceptron(channels: int, ratio: int, scale: float) -> nn.Module:
    hidden = channels * ratio
    return Residual(
        nn.Sequential(
            conv(channels, channels, 7, batch_norm, groups=channels),
            nn.Conv2d(channels, hidden, 1),
            nn.GELU(),
            nn.Conv2d(hidden, channels, 1),
            LayerScale(scale, channels, 1, 1),
        )
    )
