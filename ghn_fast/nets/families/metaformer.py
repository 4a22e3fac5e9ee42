"""Transformers' blocks over feature maps, mostly without attention: PoolFormer (arXiv 2111.11418),
InceptionNeXt (2303.16900)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ghn_fast.nets.families.attention import Attention
from ghn_fast.nets.families.draw import Draw, Layer, all_norm, batch_norm
from ghn_fast.nets.families.parts import LayerScale, Residual, as_tokens, conv, pooled_head

LAYER_SCALES = (None, None, 1e-5, 1e-6, 0.1)


def metaformer(draw: Draw, num_classes: int) -> nn.Module:
    """Stages that halve the map, each of one mixer."""
    norm, activation = draw.pick((batch_norm, all_norm)), draw.pick((nn.GELU, nn.GELU, nn.ReLU))
    mixers, kernel = draw.pick(_MIXERS), draw.pick((3, 5, 7, 7))
    depthwise, scale = draw.chance(1, 4), draw.pick(LAYER_SCALES)
    ratio = draw.pick((2, 3, 4, 4))
    channels, patch = draw.between(32, 64, 16), draw.pick((2, 2, 4))
    layers: list[nn.Module] = [nn.Conv2d(3, channels, patch + 1, patch, patch // 2)]
    for stage, mixer in enumerate(mixers):
        if stage:
            halve = draw.pick((2, 3))
            layers.append(nn.Conv2d(channels, 2 * channels, halve, 2, (halve - 1) // 2))
            channels *= 2
        for _ in range(draw.between(1, 3)):
            layers.append(_branch(norm, mixer(channels, kernel), channels, scale))
            layers.append(
                _branch(norm, _mlp(channels, ratio, activation, depthwise), channels, scale)
            )
    return nn.Sequential(*layers, norm(channels), *pooled_head(channels, num_classes))


def _branch(norm: Layer, mixer: nn.Module, channels: int, scale: float | None) -> nn.Module:
    scaled = [] if scale is None else [LayerScale(scale, channels, 1, 1)]
    return Residual(nn.Sequential(norm(channels), mixer, *scaled))


def _mlp(channels: int, ratio: int, activation: type[nn.Module], depthwise: bool) -> nn.Sequential:
    hidden = channels * ratio
    before = [conv(channels, channels, 7, batch_norm, groups=channels)] if depthwise else []
    return nn.Sequential(
        *before, nn.Conv2d(channels, hidden, 1), activation(), nn.Conv2d(hidden, channels, 1)
    )


class Pooling(nn.Module):
    """The mean of the neighbours, less what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x


class Strips(nn.Module):
    """A square, a wide and a high depthwise kernel on an eighth of the channels each."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        part, reach = channels // 8, kernel + 4
        self.split = [channels - 3 * part, part, part, part]
        self.square = nn.Conv2d(part, part, 3, padding=1, groups=part)
        self.wide = nn.Conv2d(part, part, (1, reach), padding=(0, reach // 2), groups=part)
        self.high = nn.Conv2d(part, part, (reach, 1), padding=(reach // 2, 0), groups=part)

    def forward(self, x: Tensor) -> Tensor:
        same, square, wide, high = x.split(self.split, dim=1)
        return torch.cat([same, self.square(square), self.wide(wide), self.high(high)], dim=1)


class PixelAttention(nn.Module):
    """Among the pixels of a map."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.mixer = Attention(channels, heads)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(as_tokens(x)).transpose(1, 2).reshape(x.shape)


def _pooling(channels: int, kernel: int) -> nn.Module:
    return Pooling()


def _depthwise(channels: int, kernel: int) -> nn.Module:
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)


def _normed_depthwise(channels: int, kernel: int) -> nn.Module:
    return conv(channels, channels, kernel, batch_norm, groups=channels)


def _separable(channels: int, kernel: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False), nn.SiLU(), _depthwise(channels, kernel),
        nn.Conv2d(channels, channels, 1, bias=False),
    )  # fmt: skip


def _attention(channels: int, kernel: int) -> nn.Module:
    return PixelAttention(channels, channels // 16)


_MIXERS = (
    (_pooling, _pooling, _pooling),
    (_pooling, _pooling, _attention),
    (_depthwise, _depthwise, _depthwise),
    (_normed_depthwise, _normed_depthwise, _normed_depthwise),
    (_normed_depthwise, _normed_depthwise, _attention),
    (Strips, Strips, Strips),
    (Strips, Strips),
    (_separable, _separable, _attention),
    (_attention, _attention),
    (_depthwise, _attention, _attention),
)
"""The mixer of each stage, for so many channels and a kernel."""
