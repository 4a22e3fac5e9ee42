"""Modules of parallel branches, as in GoogLeNet (arXiv 1409.4842) and Inception 3 (1512.00567)."""

from __future__ import annotations

from functools import partial

from torch import nn

from ghn_fast.nets.families.draw import Draw, batch_norm
from ghn_fast.nets.families.parts import Concat, conv, pooled_head


def inception(draw: Draw, num_classes: int) -> nn.Module:
    """A stem and stages of modules with two to four branches."""
    layer = partial(conv, norm=batch_norm, activation=draw.activation())
    width, channels = draw.between(8, 32, 8), draw.between(16, 64, 16)
    layers: list[nn.Module] = [layer(3, channels, draw.pick((3, 5, 7)), stride=draw.pick((1, 2)))]
    for stage in range(draw.between(2, 3)):
        unit = width * 2**stage
        layers += [nn.MaxPool2d(3, 2, 1)] if stage else []
        for _ in range(draw.between(1, 3)):
            module, channels = _module(draw, layer, channels, unit)
            layers.append(module)
    return nn.Sequential(*layers, *pooled_head(channels, num_classes))


def _module(
    draw: Draw, layer: partial[nn.Sequential], inputs: int, unit: int
) -> tuple[nn.Module, int]:
    """One module and its channels."""
    wide, narrow, pooled = (unit * factor for factor in draw.several(3, 1, 3))
    half = max(8, unit // 2)
    branches: list[nn.Module] = [
        layer(inputs, unit, 1),
        nn.Sequential(layer(inputs, unit, 1), layer(unit, wide, 3)),
    ]
    outputs = unit + wide
    kind = draw.below(4)
    if kind == 0:
        branches.append(nn.Sequential(layer(inputs, half, 1), layer(half, narrow, 5)))
    elif kind == 1:
        branches.append(
            nn.Sequential(layer(inputs, half, 1), layer(half, half, 3), layer(half, narrow, 3))
        )
    elif kind == 2:
        branches.append(nn.Sequential(layer(inputs, half, 1), layer(half, narrow, 3)))
    outputs += narrow if kind < 3 else 0
    if draw.chance(3, 4):
        pool = draw.pick((nn.MaxPool2d, nn.AvgPool2d))(3, 1, 1)
        branches.append(nn.Sequential(pool, layer(inputs, pooled, 1)))
        outputs += pooled
    return Concat(*branches), outputs
