"""Pyramids of attention whose keys and values are of a smaller map: PVT 1 and 2 (arXiv 2102.12122,
2106.13797)."""

from __future__ import annotations

from torch import Tensor, nn

from ghn_fast.nets.families.attention import Attend
from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.families.parts import IMAGE_SIZE, Positions, pooled_head


def pyramid(draw: Draw, num_classes: int) -> nn.Module:
    """Two to four stages that halve the map; all but the last reduce what they attend to."""
    patch, overlap = draw.pick((2, 4, 4)), draw.chance(3, 4)
    depthwise, pooled = draw.chance(3, 4), draw.chance(1, 4)
    head, heads, wide = draw.pick((16, 32, 32)), draw.pick((1, 1, 2)), draw.pick((2, 4, 8))
    stages, positions = draw.between(2, 4), draw.coin()
    size, inputs = IMAGE_SIZE // patch, 3
    layers: list[nn.Module] = []
    for stage in range(stages):
        channels = head * heads
        reduction = 1 if stage == stages - 1 else min(size, draw.pick((2, 4, 8)))
        stride = 2 if stage else patch
        kernel = 2 * stride - 1 if overlap else stride
        halve = nn.Conv2d(inputs, channels, kernel, stride, kernel // 2 if overlap else 0)
        embedding: list[nn.Module] = [nn.LayerNorm(channels)]
        if positions and not depthwise:
            embedding.append(Positions(size**2, channels))
        ratio = draw.pick((2, 4)) if stage > 1 else wide
        blocks = (
            Block(channels, heads, reduction, pooled, channels * ratio, depthwise)
            for _ in range(draw.between(1, 3))
        )
        layers.append(Stage(halve, nn.Sequential(*embedding), nn.LayerNorm(channels), *blocks))
        inputs, size, heads = channels, max(size // 2, 1), heads * 2
    return nn.Sequential(*layers, *pooled_head(inputs, num_classes))


class Stage(nn.Module):
    """(N, C, H, W) to a smaller map, whose pixels are tokens to the blocks."""

    def __init__(
        self, halve: nn.Module, embedding: nn.Module, norm: nn.Module, *blocks: nn.Module
    ) -> None:
        super().__init__()
        self.halve, self.embedding, self.norm = halve, embedding, norm
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        halved = self.halve(x)
        tokens = self.embedding(halved.flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens, halved.shape[2], halved.shape[3])
        return self.norm(tokens).transpose(1, 2).reshape(halved.shape)


class Block(nn.Module):
    """Attention and a perceptron, which may have a depthwise convolution, over (N, T, C) tokens."""

    def __init__(
        self, channels: int, heads: int, reduction: int, pooled: bool, hidden: int, depthwise: bool
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = ReducedAttention(channels, heads, reduction, pooled)
        self.fc1, self.fc2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.depthwise = (
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if depthwise else None
        )
        self.act = nn.GELU()

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.attention(self.norm1(x), height, width)
        hidden = self.fc1(self.norm2(x))
        if self.depthwise is not None:
            pixels = hidden.transpose(1, 2).reshape(len(x), -1, height, width)
            hidden = self.depthwise(pixels).flatten(2).transpose(1, 2)
        return x + self.fc2(self.act(hidden))


class ReducedAttention(nn.Module):
    """Queries of all pixels, keys and values of a map that a convolution or a pool made smaller."""

    def __init__(self, channels: int, heads: int, reduction: int, pooled: bool) -> None:
        super().__init__()
        self.heads, self.attend = heads, Attend()
        self.query, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.reduce: nn.Module | None = None
        if reduction > 1:
            self.reduce = nn.Conv2d(channels, channels, reduction, reduction)
            if pooled:
                self.reduce = nn.Sequential(
                    nn.AvgPool2d(reduction), nn.Conv2d(channels, channels, 1)
                )
            self.norm = nn.LayerNorm(channels)
            self.act = nn.GELU() if pooled else nn.Identity()

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        images, _, channels = x.shape
        query = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        if self.reduce is not None:
            pixels = x.transpose(1, 2).reshape(images, channels, height, width)
            x = self.act(self.norm(self.reduce(pixels).flatten(2).transpose(1, 2)))
        pairs = self.key_value(x).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        key, value = pairs.unbind(0)
        return self.out(self.attend(query, key, value).transpose(1, 2).flatten(2))
