"""Vision transformers (arXiv 2010.11929), with a class token, a mean of tokens, or a class token
that only the last layers have (CaiT, arXiv 2103.17239)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from ghn_fast.nets.families.attention import Attention, SeparateAttention
from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.families.parts import (
    IMAGE_SIZE,
    ClassFirst,
    LayerScale,
    Positions,
    Token,
    TokenMean,
    Transpose,
    mlp,
    residuals,
)

LAYER_SCALES = (1e-5, 1e-5, 0.1, 1.0)
encoder_layer = partial(nn.TransformerEncoderLayer, dropout=0.0, batch_first=True)


def transformer(draw: Draw, num_classes: int) -> nn.Module:
    """Patches of 2 to 16 pixels, two to twelve layers."""
    patch = draw.pick((2, 4, 4, 4, 8, 16, 16))
    heads, depth = draw.pick((1, 2, 3, 4, 6, 8)), draw.pick((2, 3, 4, 5, 6, 7, 8, 10, 12))
    width = heads * draw.pick((16, 32, 32, 64))
    hidden = width * draw.pick((2, 3, 4, 4))
    if draw.chance(1, 3):
        return VisionTransformer(
            IMAGE_SIZE, patch, depth, heads, width, hidden, num_classes=num_classes
        )
    classed, tokens = draw.chance(1, 3), (IMAGE_SIZE // patch) ** 2
    parts: list[nn.Module] = [
        nn.Conv2d(3, width, patch, patch),
        nn.Flatten(2),
        Transpose(1, 2),
        *([ClassFirst(width)] if classed else []),
        Positions(tokens + classed, width),
    ]
    layer = _layer(draw)
    parts += [layer(width, heads, hidden) for _ in range(depth)]
    if classed:
        ends: list[nn.Module] = [nn.LayerNorm(width), Token(0)]
    elif draw.chance(1, 4):
        scale = draw.pick(LAYER_SCALES)
        readers = (ClassReader(width, heads, hidden, scale) for _ in range(draw.between(1, 2)))
        ends = [ClassToken(width, *readers), nn.LayerNorm(width)]
    else:
        ends = [nn.LayerNorm(width), TokenMean()]
        ends = ends if draw.coin() else ends[::-1]
    return nn.Sequential(*parts, *ends, nn.Linear(width, num_classes))


def _layer(draw: Draw) -> Callable[[int, int, int], nn.Module]:
    """Makes one of a width, with so many heads and a hidden width."""
    attention = draw.pick((SelfAttention, SelfAttention, Attention, Attention, SeparateAttention))
    if draw.chance(1, 3):
        return partial(pre_norm_layer, attention=attention, scale=draw.pick(LAYER_SCALES))
    if attention is not SelfAttention:
        return partial(pre_norm_layer, attention=attention)
    activation = draw.pick(("gelu", "gelu", "relu"))
    return partial(encoder_layer, activation=activation, norm_first=draw.chance(3, 4))


def pre_norm_layer(
    width: int,
    heads: int,
    hidden: int,
    attention: Callable[[int, int], nn.Module] = Attention,
    scale: float | None = None,
) -> nn.Module:
    """Attention and a perceptron, of what is normalised before; ``scale`` is that of both."""
    branches: list[nn.Module] = [attention(width, heads), mlp(width, hidden, nn.GELU)]
    if scale is not None:
        branches = [nn.Sequential(branch, LayerScale(scale, width)) for branch in branches]
    return residuals(partial(nn.LayerNorm, width), *branches)


class SelfAttention(nn.Module):
    """Among (N, T, C) tokens."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return mixed


class ClassReader(nn.Module):
    """A layer in which the class token alone is written to."""

    def __init__(self, channels: int, heads: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = SeparateAttention(channels, heads)
        self.scale1, self.scale2 = LayerScale(scale, channels), LayerScale(scale, channels)
        self.mlp = mlp(channels, hidden, nn.GELU)

    def forward(self, token: Tensor, x: Tensor) -> Tensor:
        seen = self.norm1(torch.cat([token, x], dim=1))
        token = token + self.scale1(self.attention(seen[:, :1], seen))
        return token + self.scale2(self.mlp(self.norm2(token)))


class ClassToken(nn.Module):
    """(N, T, C) tokens to (N, C): what a token that is there from now on has read in the end."""

    def __init__(self, channels: int, *readers: ClassReader) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, channels))
        self.readers = nn.ModuleList(readers)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(len(x), -1, -1)
        for reader in self.readers:
            token = reader(token, x)
        return token[:, 0]
