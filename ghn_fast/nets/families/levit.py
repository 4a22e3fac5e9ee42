"""Attention whose linear layers have batch normalisation, behind convolutions: LeViT (arXiv
2104.01136), without its biases by position, which begin as zeros and which no GHN decodes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ghn_fast.nets.families.attention import Attend
from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.families.parts import (
    Residual,
    Sum,
    TokenMean,
    Transpose,
    as_map,
    as_tokens,
    halving_stem,
)


def levit(draw: Draw, num_classes: int) -> nn.Module:
    """A stem that halves the map to 16, 8 or 4 pixels, then one to three stages."""
    activation = draw.pick((nn.Hardswish, nn.Hardswish, nn.GELU))
    halvings, channels = draw.between(1, 3), draw.between(64, 192, 32)
    heads, size, ratio = draw.between(2, 6), draw.pick((16, 16, 32)), draw.pick((2, 2, 4))
    layers = [*halving_stem(halvings, channels, activation), nn.Flatten(2), Transpose(1, 2)]
    for stage in range(draw.between(1, 3)):
        if stage:
            inputs, channels = channels, channels + draw.between(32, 128, 32)
            layers.append(Attention(inputs, channels, inputs // size, size, 4, activation, True))
            layers.append(Residual(perceptron(channels, ratio, activation)))
            heads += draw.between(0, 2)
        for _ in range(draw.between(1, 4)):
            layers.append(Residual(Attention(channels, channels, heads, size, 2, activation)))
            layers.append(Residual(perceptron(channels, ratio, activation)))
    ends = (head(channels, num_classes) for _ in range(draw.between(1, 2)))
    return nn.Sequential(*layers, TokenMean(), Sum(*ends))


def head(channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(_norm(channels), nn.Linear(channels, num_classes))


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm1d(channels, track_running_stats=False)


class Normed(nn.Module):
    """A linear layer of (N, T, C) and batch normalisation over all tokens."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(inputs, outputs, bias=False), _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x).flatten(0, 1)).unflatten(0, x.shape[:2])


def perceptron(channels: int, ratio: int, activation: Callable[[], nn.Module]) -> nn.Module:
    hidden = channels * ratio
    return nn.Sequential(Normed(channels, hidden), activation(), Normed(hidden, channels))


class Attention(nn.Module):
    """Among (N, T, C) tokens; values are wider than keys, and a quarter of the queries may do."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        heads: int,
        size: int,
        wide: int,
        activation: Callable[[], nn.Module],
        halves: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.split = [size, wide * size] if halves else [size, size, wide * size]
        self.query = Normed(inputs, heads * size) if halves else None
        self.others = Normed(inputs, heads * sum(self.split))
        self.attend, self.act = Attend(), activation()
        self.out = Normed(heads * wide * size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        *queries, key, value = self._heads(self.others(x)).split(self.split, dim=3)
        if self.query is not None:
            queries = [self._heads(self.query(as_tokens(as_map(x)[:, :, ::2, ::2])))]
        read = self.attend(*queries, key, value).transpose(1, 2).flatten(2)
        return self.out(self.act(read))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
