"""ConvNeXt 1 and 2 (arXiv 2201.03545, 2301.00808)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock, CNBlockConfig, ConvNeXt
from torchvision.ops.misc import Permute

from ghn_fast.nets.families.draw import Draw

LAYER_SCALES = (1e-6, 1e-6, 1e-6, 0.1, 1.0)


def convnext(draw: Draw, num_classes: int) -> nn.Module:
    """Stages of depthwise blocks with downsampling layers between them."""
    width, stages = draw.between(32, 96, 8), draw.between(2, 4)
    depths = draw.several(stages, 1, 4)
    widths = [width * 2**stage for stage in range(stages)] + [None]
    setting = [
        CNBlockConfig(widths[stage] or 0, widths[stage + 1], depths[stage])
        for stage in range(stages)
    ]
    scale, kernel = draw.pick(LAYER_SCALES), draw.pick((3, 5, 7, 7, 7))
    block = partial(_response_block if draw.chance(1, 3) else _block, kernel)
    model = ConvNeXt(setting, 0.0, scale, num_classes, block)
    # One stage alone has no depth to spread dropped paths over, so there are always two.
    patch, stride = draw.pick(((4, 4), (4, 2), (4, 1), (2, 2)))
    model.features[0][0] = nn.Conv2d(3, width, patch, stride)
    return model


def _block(kernel: int, channels: int, scale: float, drop: float) -> nn.Module:
    block = CNBlock(channels, scale, drop)
    depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
    block.block[0] = depthwise
    return block


class ResponseNorm(nn.Module):
    """Global response normalisation of (N, H, W, C) (arXiv 2301.00808, section 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        spread = x.norm(p=2, dim=(1, 2), keepdim=True)
        normed = spread / (spread.mean(dim=-1, keepdim=True) + 1e-6)
        return x + self.bias + self.weight * x * normed


class ResponseBlock(nn.Module):
    """A block of version 2: without layer scale, with global response normalisation."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels),
            Permute([0, 2, 3, 1]),
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            ResponseNorm(4 * channels),
            nn.Linear(4 * channels, channels),
            Permute([0, 3, 1, 2]),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


def _response_block(kernel: int, channels: int, scale: float, drop: float) -> nn.Module:
    return ResponseBlock(channels, kernel)
