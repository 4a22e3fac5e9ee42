"""Densely connected networks (arXiv 1608.06993)."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models import DenseNet

from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.space.adjust import adjust_net


def dense(draw: Draw, num_classes: int) -> nn.Module:
    """Two to four dense blocks; every layer reads all before it in its block."""
    growth = draw.between(8, 32, 4)
    blocks = draw.several(draw.between(2, 4), 2, 8)
    bottleneck = draw.pick((2, 4, 4))
    model: Any = DenseNet(growth, blocks, 2 * growth, bottleneck, num_classes=num_classes)
    adjust_net(model)
    if draw.coin():
        model.features.conv0.stride = (2, 2)
    return model
