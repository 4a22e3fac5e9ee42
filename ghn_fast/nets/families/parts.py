"""Modules that several families are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from ghn_fast.nets.families.draw import Layer, batch_norm

IMAGE_SIZE = 32
"""Of the images that all families are for."""
_WAVES = 32


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    norm: Layer,
    activation: Callable[[], nn.Module] | None = None,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """A convolution without bias, a normalisation and an activation.

    Where there is no normalisation the convolution has a bias.
    """
    after = norm(outputs)
    bias = isinstance(after, nn.Identity)
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
    ]
    layers += [] if bias else [after]
    layers += [] if activation is None else [activation()]
    return nn.Sequential(*layers)


def halving_stem(
    halvings: int, channels: int, activation: Callable[[], nn.Module]
) -> list[nn.Module]:
    """Convolutions that halve a map and double its channels, up to ``channels``."""
    widths = [channels // 2**step for step in reversed(range(halvings))]
    return [
        conv(inputs, outputs, 3, batch_norm, activation if outputs < channels else None, 2)
        for inputs, outputs in pairwise([3, *widths])
    ]


class SqueezeExcitation(nn.Module):
    """Scales channels by a gate of their global averages (arXiv 1709.01507)."""

    def __init__(self, channels: int, hidden: int, gate: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.relu(self.fc1(self.avgpool(x)))))


class Residual(nn.Module):
    """x + branch(x), with a projection of x where shapes change and an activation after it."""

    def __init__(
        self,
        branch: nn.Module,
        shortcut: nn.Module | None = None,
        activation: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.act = None if activation is None else activation()

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x) + (x if self.shortcut is None else self.shortcut(x))
        return y if self.act is None else self.act(y)


class Concat(nn.Module):
    """What several branches make of the same input, side by side."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Sum(nn.Module):
    """The sum of what several branches make of the same input."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches
        return sum((branch(x) for branch in others), start=first(x))


class LayerScale(nn.Module):
    """Scales channels, each by a constant at first (arXiv 2103.17239)."""

    def __init__(self, value: float, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full(shape, value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Transpose(nn.Module):
    """Exchanges two dimensions."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.dims = first, second

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(*self.dims)


def residuals(norm: Callable[[], nn.Module], *branches: nn.Module) -> nn.Sequential:
    """Branches that are added, one after another, to what each reads normalised."""
    return nn.Sequential(*(Residual(nn.Sequential(norm(), branch)) for branch in branches))


def as_map(tokens: Tensor) -> Tensor:
    """(N, T, C) tokens of a square to (N, C, side, side)."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def as_tokens(pixels: Tensor) -> Tensor:
    """(N, C, H, W) to (N, T, C)."""
    return pixels.flatten(2).transpose(1, 2)


class ClassFirst(nn.Module):
    """Puts a class token, of zeros at first, before (N, T, C) tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)


class Token(nn.Module):
    """(N, T, C) to (N, C): one of the tokens."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.position]


class TokenMean(nn.Module):
    """(N, T, C) to (N, C): the mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


class Positions(nn.Module):
    """Adds a learned table of positions to (N, T, C) tokens."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, channels).normal_(std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pos_embed


def waves(values: Tensor, channels: int) -> Tensor:
    """(count, K) values to (count, channels) sines and cosines of them (arXiv 1706.03762, 3.5).

    Those of 64 channels come again and again, as do the weights that a GHN decodes.
    """
    number = torch.arange(_WAVES)
    angles = values[:, number % values.shape[1]] * 100 ** (-number / _WAVES)
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    return table[:, torch.arange(channels) % (2 * _WAVES)]


def mlp(channels: int, hidden: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Two linear layers over the last dimension."""
    return nn.Sequential(nn.Linear(channels, hidden), activation(), nn.Linear(hidden, channels))


def pooled_head(channels: int, num_classes: int) -> list[nn.Module]:
    """Global average and classification layer for (N, C, H, W)."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
