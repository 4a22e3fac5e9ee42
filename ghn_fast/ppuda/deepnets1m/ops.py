"""``ppuda.deepnets1m.ops``: what can be asked of a network's layers."""

from __future__ import annotations

from torch import nn
from torchvision.models.convnext import LayerNorm2d

from ghn_fast.nets.space.operations import PositionEncoding

__all__ = ["NormLayers", "PosEnc"]

NormLayers = [nn.BatchNorm2d, nn.LayerNorm, LayerNorm2d]
"""The layers whose bias is predicted together with their weight."""


class PosEnc(PositionEncoding):
    """Adds a learned (1, C, ks, ks) table."""

    def __init__(self, C: int, ks: int) -> None:
        super().__init__(C, ks)
