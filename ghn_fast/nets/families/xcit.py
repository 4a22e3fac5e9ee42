"""Attention among channels: XCiT (arXiv 2106.09681)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.nets.families.attention import Attend
from ghn_fast.nets.families.draw import Draw, batch_norm
from ghn_fast.nets.families.parts import (
    IMAGE_SIZE,
    LayerScale,
    Residual,
    TokenMean,
    Transpose,
    as_map,
    as_tokens,
    halving_stem,
    mlp,
    waves,
)
from ghn_fast.nets.families.transformer import ClassReader, ClassToken


def xcit(draw: Draw, num_classes: int) -> nn.Module:
    """A stem that halves the map to 16, 8, 4 or 2 pixels, then two to twelve layers."""
    halvings, heads = draw.between(1, 4), draw.pick((2, 4, 4, 8))
    width, depth = heads * draw.pick((16, 32, 32)), draw.pick((2, 3, 4, 6, 8, 12))
    scale = draw.pick((1.0, 1.0, 0.1, 1e-5))
    layers = halving_stem(halvings, width, nn.GELU)
    layers += [Places(IMAGE_SIZE // 2**halvings, width)] if draw.chance(3, 4) else []
    layers += [nn.Flatten(2), Transpose(1, 2)]
    for _ in range(depth):
        for branch in (ChannelAttention(width, heads), Near(width), mlp(width, 4 * width, nn.GELU)):
            scaled = nn.Sequential(nn.LayerNorm(width), branch, LayerScale(scale, width))
            layers.append(Residual(scaled))
    readers = (ClassReader(width, heads, 4 * width, scale) for _ in range(draw.between(1, 2)))
    ends = draw.pick(
        ((ClassToken(width, *readers), nn.LayerNorm(width)), (nn.LayerNorm(width), TokenMean()))
    )
    return nn.Sequential(*layers, *ends, nn.Linear(width, num_classes))


class Places(nn.Module):
    """Adds to (N, C, size, size) what a layer makes of waves over rows and columns."""

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        places = torch.cartesian_prod(torch.arange(size), torch.arange(size))
        self.register_buffer("waves", waves(places, 64).T.reshape(1, 64, size, size))
        self.layer = nn.Conv2d(64, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.waves)


class ChannelAttention(nn.Module):
    """Each channel of (N, T, C) reads those of its head that are like it over the tokens."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.attend = Attend(scale=1.0)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)
        query, key, value = parts.unbind(0)
        query, key = F.normalize(query, dim=-1) * self.temperature, F.normalize(key, dim=-1)
        return self.out(self.attend(query, key, value).flatten(1, 2).transpose(1, 2))


class Near(nn.Module):
    """Two depthwise layers over the map that (N, T, C) tokens are of."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, 1, 1, groups=channels) for _ in range(2))
        self.layers = nn.Sequential(first, nn.GELU(), batch_norm(channels), second)

    def forward(self, x: Tensor) -> Tensor:
        return as_tokens(self.layers(as_map(x)))
