"""Transformers whose map is halved on the way: PiT (arXiv 2103.16302)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.families.parts import (
    IMAGE_SIZE,
    ClassFirst,
    Token,
    Transpose,
    as_map,
    as_tokens,
)
from ghn_fast.nets.families.transformer import pre_norm_layer


def pit(draw: Draw, num_classes: int) -> nn.Module:
    """Two or three stages of one to four layers, with twice the heads from one to the next."""
    patch, overlap = draw.pick((2, 4, 4)), draw.pick((1, 2, 2))
    heads, head, ratio = draw.between(1, 4), draw.pick((16, 32, 32, 64)), draw.pick((2, 4, 4))
    width, size = heads * head, IMAGE_SIZE // patch
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, patch * overlap, patch, patch * (overlap - 1) // 2),
        MapPositions(width, size),
        nn.Flatten(2),
        Transpose(1, 2),
        ClassFirst(width),
    ]
    for stage in range(draw.between(2, 3)):
        if stage:
            layers.append(Halve(width))
            width, heads = 2 * width, 2 * heads
        hidden, depth = width * ratio, draw.between(1, 4)
        layers += [pre_norm_layer(width, heads, hidden) for _ in range(depth)]
    return nn.Sequential(*layers, Token(0), nn.LayerNorm(width), nn.Linear(width, num_classes))


class MapPositions(nn.Module):
    """Adds a learned table of positions to (N, C, size, size)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, channels, size, size).normal_(std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pos_embed


class Halve(nn.Module):
    """Of (N, 1 + T, C) tokens the class token, and a map of half the size; twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(channels, 2 * channels, 3, 2, 1, groups=channels)
        self.token = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        pixels = as_tokens(self.pixels(as_map(x[:, 1:])))
        return torch.cat([self.token(x[:, :1]), pixels], dim=1)
