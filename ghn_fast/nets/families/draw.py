"""Random choices of a network's parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from torch import nn

from ghn_fast.nets.generate.philox import Stream

T = TypeVar("T")
Layer = Callable[[int], nn.Module]
"""Makes a layer for so many channels."""

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    partial(nn.LeakyReLU, 0.1),
    nn.ELU,
)


class Draw(Stream):
    """A stream of random integers with the choices that families need."""

    def between(self, low: int, high: int, step: int = 1) -> int:
        """One of low, low + step, ... up to and with high."""
        return low + step * self.below((high - low) // step + 1)

    def pick(self, options: Sequence[T]) -> T:
        """One of the options; what is named twice is twice as likely."""
        return options[self.below(len(options))]

    def several(self, count: int, low: int, high: int, step: int = 1) -> list[int]:
        """So many numbers from low to high, each by itself."""
        return [self.between(low, high, step) for _ in range(count)]

    def activation(self) -> Callable[[], nn.Module]:
        """ReLU half of the time, else any."""
        return nn.ReLU if self.coin() else self.pick(ACTIVATIONS)

    def norm(self) -> Layer:
        """Batch normalisation mostly, else by groups of channels or over all of them."""
        return self.pick((batch_norm, batch_norm, batch_norm, batch_norm, group_norm, all_norm))


def batch_norm(channels: int) -> nn.Module:
    """With the statistics of the batch: predicted parameters have no running ones."""
    return nn.BatchNorm2d(channels, track_running_stats=False)


def group_norm(channels: int) -> nn.Module:
    """With as many groups, up to 8, as divide the channels."""
    return nn.GroupNorm(next(groups for groups in (8, 4, 2, 1) if channels % groups == 0), channels)


def all_norm(channels: int) -> nn.Module:
    """Layer normalisation of a feature map, over channels and pixels."""
    return nn.GroupNorm(1, channels)


def no_norm(channels: int) -> nn.Module:
    return nn.Identity()
