"""Attention in two factors, with depthwise convolutions for positions: CoaT-Lite (arXiv
2104.06399)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.nets.families.attention import Product
from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.families.parts import ClassFirst, as_map, as_tokens, mlp


def coat(draw: Draw, num_classes: int) -> nn.Module:
    """Two to four stages that halve the map, to one pixel in those of four and patches of 4; each
    with a class token of its own."""
    patch, heads = draw.pick((2, 4, 4, 4)), draw.pick((4, 8, 8))
    channels, wide = heads * draw.pick((4, 8, 8)), draw.pick((4, 8))
    stages = draw.pick((2, 3, 4, 4, 4))
    layers: list[nn.Module] = []
    inputs = 3
    for stage in range(stages):
        ratio = draw.pick((2, 4, 4)) if stage > 1 else wide
        depth, stride = draw.between(1, 3), 2 if stage else patch
        layers.append(Stage(inputs, channels, stride, heads, ratio, depth, stage == stages - 1))
        inputs = channels
        channels = heads * draw.between(channels // heads, 2 * channels // heads, 4)
    return nn.Sequential(*layers, nn.LayerNorm(inputs), nn.Linear(inputs, num_classes))


class Stage(nn.Module):
    """(N, C, H, W) to a smaller map; the last one to what the class token has read, (N, C)."""

    def __init__(
        self,
        inputs: int,
        channels: int,
        stride: int,
        heads: int,
        ratio: int,
        depth: int,
        is_last: bool,
    ) -> None:
        super().__init__()
        self.halve, self.norm = nn.Conv2d(inputs, channels, stride, stride), nn.LayerNorm(channels)
        self.first = ClassFirst(channels)
        self.places = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.windows = Windows(channels, heads)
        self.blocks = nn.ModuleList(Block(channels, heads, ratio) for _ in range(depth))
        self.is_last = is_last

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(self.norm(as_tokens(self.halve(x))))
        for block in self.blocks:
            pixels = as_map(tokens[:, 1:])
            tokens = torch.cat([tokens[:, :1], as_tokens(self.places(pixels) + pixels)], dim=1)
            tokens = block(tokens, self.windows)
        return tokens[:, 0] if self.is_last else as_map(tokens[:, 1:])


class Windows(nn.Module):
    """Depthwise kernels of 3, 5 and 7 pixels for some of the heads each."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        quarter, size = heads // 4, channels // heads
        self.split = [quarter * size, (heads - quarter) // 2 * size]
        self.split.append(channels - sum(self.split))
        self.layers = nn.ModuleList(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
            for width, kernel in zip(self.split, (3, 5, 7), strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.layers, x.split(self.split, dim=1), strict=True)
        return torch.cat([layer(part) for layer, part in parts], dim=1)


class Block(nn.Module):
    """Attention and a perceptron over (N, 1 + T, C) tokens."""

    def __init__(self, channels: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = FactorAttention(channels, heads)
        self.mlp = mlp(channels, channels * ratio, nn.GELU)

    def forward(self, x: Tensor, windows: nn.Module) -> Tensor:
        x = x + self.attention(self.norm1(x), windows)
        return x + self.mlp(self.norm2(x))


class FactorAttention(nn.Module):
    """Queries read a summary of all values, and by ``windows`` of the values near to them."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (channels // heads) ** -0.5
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.summary, self.read = Product(), Product()

    def forward(self, x: Tensor, windows: nn.Module) -> Tensor:
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        far = self.read(query, self.summary(key.softmax(dim=2).transpose(2, 3), value))
        pixels = as_map(value[:, :, 1:].transpose(1, 2).flatten(2))
        near = as_tokens(windows(pixels)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        near = F.pad(query[:, :, 1:] * near, (0, 0, 1, 0))
        return self.out((self.scale * far + near).transpose(1, 2).flatten(2))
