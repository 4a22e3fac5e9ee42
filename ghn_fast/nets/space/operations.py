"""The operations of DeepNets-1M cells (arXiv 2110.13100, appendix A) as modules.

All map (B, C, H, W) to (B, C', H / stride, W / stride). Module and parameter names are those of
the published networks and checkpoints.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional


def make_norm(norm: str | None, channels: int) -> nn.Module:
    """Batch normalisation for names that start with "bn", the identity for None.

    No running statistics are kept: predicted parameters have none, so the statistics of the batch
    are always used.

    Raises:
        ValueError: an unknown name.
    """
    if norm is None or norm in ("", "none"):
        return nn.Identity()
    if norm.startswith("bn"):
        return nn.BatchNorm2d(channels, track_running_stats=False)
    raise ValueError(f"unknown norm {norm!r}: use 'bnorm' or None")


def make_operation(name: str, channels: int, stride: int, norm: str | None) -> nn.Module:
    """The operation called `name` (one of `genotypes.OPERATIONS`) on `channels` channels.

    Raises:
        ValueError: an unknown name, or channels that the operation cannot split evenly.
    """
    if name == "none":
        return nn.Identity()  # holds the place in the list of operations; never called
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, norm)
    if name == "msa":
        return Transformer(channels, stride=stride)
    if name == "cse":
        return ChannelSqueezeExcitation(channels, stride=stride)
    if name == "conv_7x1_1x7":
        return ReLUConvNorm(channels, channels, 7, stride, norm, factorised=True)
    match = re.fullmatch(r"(max_pool|avg_pool|sep_conv|dil_conv|conv)_(\d)x\2", name)
    if match is None:
        raise ValueError(f"unknown operation {name!r}")
    kind, kernel = match[1], int(match[2])
    if kind == "max_pool":
        return nn.MaxPool2d(kernel, stride, padding=kernel // 2)
    if kind == "avg_pool":
        return nn.AvgPool2d(kernel, stride, padding=kernel // 2, count_include_pad=False)
    if kind == "sep_conv":
        return SeparableConv(channels, kernel, stride, norm)
    if kind == "dil_conv":
        return DilatedConv(channels, kernel, stride, norm)
    return ReLUConvNorm(channels, channels, kernel, stride, norm)


class ReLUConvNorm(nn.Module):
    """ReLU, a k x k convolution (or, factorised, 1 x k and k x 1), normalisation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        norm: str | None = "bnorm",
        factorised: bool = False,
    ) -> None:
        super().__init__()
        pad = kernel // 2
        if factorised:
            convs = [
                nn.Conv2d(in_channels, in_channels, (1, kernel), (1, stride), (0, pad), bias=False),
                nn.Conv2d(
                    in_channels, out_channels, (kernel, 1), (stride, 1), (pad, 0), bias=False
                ),
            ]
        else:
            convs = [nn.Conv2d(in_channels, out_channels, kernel, stride, pad, bias=False)]
        self.op = nn.Sequential(nn.ReLU(), *convs, make_norm(norm, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class DilatedConv(nn.Module):
    """ReLU, a depthwise convolution of dilation 2, a pointwise one, normalisation."""

    def __init__(self, channels: int, kernel: int, stride: int, norm: str | None) -> None:
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            _depthwise(channels, kernel, stride, padding=kernel - 1, dilation=2),
            nn.Conv2d(channels, channels, 1, bias=False),
            make_norm(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class SeparableConv(nn.Module):
    """Twice: ReLU, a depthwise convolution, a pointwise one, normalisation."""

    def __init__(self, channels: int, kernel: int, stride: int, norm: str | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for step in (stride, 1):
            layers += [
                nn.ReLU(),
                _depthwise(channels, kernel, step, padding=kernel // 2),
                nn.Conv2d(channels, channels, 1, bias=False),
                make_norm(norm, channels),
            ]
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def _depthwise(
    channels: int, kernel: int, stride: int, padding: int, dilation: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(
        channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False
    )


class FactorizedReduce(nn.Module):
    """Halves the resolution with two pointwise convolutions, the second shifted by a pixel."""

    def __init__(self, in_channels: int, out_channels: int, norm: str | None) -> None:
        super().__init__()
        if out_channels % 2:
            raise ValueError(f"a reduction needs an even number of channels, got {out_channels}")
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.bn = make_norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.bn(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class Subsample(nn.Module):
    """Keeps every `stride`-th pixel."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]


class ChannelSqueezeExcitation(nn.Module):
    """Scales channels by a gate computed from their averages (arXiv 1709.01507).

    The gate is a hard swish, as in the published networks.
    """

    def __init__(self, channels: int, reduction: int = 2, stride: int = 1) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction)
        self.fc2 = nn.Linear(channels // reduction, channels)
        self.relu = nn.ReLU()
        self.gate = nn.Hardswish()
        self.subsample = Subsample(stride)

    def forward(self, x: Tensor) -> Tensor:
        average = x.flatten(2).mean(dim=2)
        gate = self.gate(self.fc2(self.relu(self.fc1(average))))
        return self.subsample(x * gate[:, :, None, None])


class FeedForward(nn.Module):
    """The MLP of a transformer block, without a wider hidden layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The identities hold the places of dropout layers: parameters are net.0 and net.3.
        self.net = nn.Sequential(
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Identity(),
            nn.Linear(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Transformer(nn.Module):
    """A pre-norm transformer block over the pixels (arXiv 2010.11929, equations 2 and 3)."""

    def __init__(self, channels: int, heads: int = 8, stride: int = 1) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"'msa' has {heads} heads: {channels} channels do not split evenly")
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))
        self.ln1 = nn.LayerNorm(channels)
        self.ln2 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)
        self.subsample = Subsample(stride)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.to_out(self._attend(self.ln1(tokens)))
        tokens = tokens + self.ff(self.ln2(tokens))
        return self.subsample(tokens.transpose(1, 2).reshape(x.shape))

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, length, channels = tokens.shape
        qkv = self.to_qkv(tokens).view(batch, length, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attention = torch.softmax(query @ key.transpose(-2, -1) * self.scale, dim=-1)
        return (attention @ value).transpose(1, 2).reshape(batch, length, channels)


class PositionEncoding(nn.Module):
    """Adds a learned (1, C, size, size) table, interpolated to maps of another size."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, channels, size, size))

    def forward(self, x: Tensor) -> Tensor:
        table: Tensor = self.weight
        if table.shape[2:] != x.shape[2:]:
            # As for vision transformers at another resolution (arXiv 2010.11929, section 3.2).
            table = functional.interpolate(table, x.shape[2:], mode="bilinear", align_corners=False)
        return x + table
