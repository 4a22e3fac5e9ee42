"""ShuffleNet 2 (arXiv 1807.11164)."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models import ShuffleNetV2

from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.space.adjust import adjust_net


def shuffle(draw: Draw, num_classes: int) -> nn.Module:
    """Three stages of units that split, transform one half, and shuffle channels."""
    repeats = draw.several(3, 1, 6)
    width = draw.between(24, 160, 8)
    channels = [draw.pick((16, 24, 32)), width, 2 * width, 4 * width, draw.pick((256, 512, 1024))]
    model: Any = adjust_net(ShuffleNetV2(repeats, channels, num_classes))
    if draw.chance(1, 3):
        model.conv1[0].stride = (1, 1)
    return model
