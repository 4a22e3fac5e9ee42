"""Residual networks (arXiv 1512.03385) with the blocks of ResNeXt (1611.05431), Wide ResNet
(1605.07146), pre-activation (1603.05027) and squeeze-and-excitation (1709.01507)."""

from __future__ import annotations

from torch import nn

from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.families.parts import Residual, SqueezeExcitation, conv, pooled_head


def residual(draw: Draw, num_classes: int) -> nn.Module:
    """A stem, two to four stages of one kind of block, and a global average."""
    norm, activation = draw.norm(), draw.activation()
    bottleneck, before = draw.coin(), draw.chance(1, 4)
    gated, averaged = draw.chance(1, 4), draw.chance(1, 5)
    groups = draw.pick((1, 1, 2, 4, 8, 16, 32)) if bottleneck else 1
    kernel = draw.pick((3, 3, 3, 3, 5))
    width, stages = draw.between(16, 64, 8), draw.between(2, 4)
    expansion = draw.pick((4, 4, 2)) if bottleneck else 1
    widening = draw.pick((1, 1, 1, 2))

    def unit(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
        if not before:
            return conv(inputs, outputs, size, norm, activation, stride, groups)
        bare = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
        return nn.Sequential(norm(inputs), activation(), bare)

    def last(inputs: int, outputs: int, size: int) -> nn.Module:
        return unit(inputs, outputs, size) if before else conv(inputs, outputs, size, norm)

    def block(inputs: int, planes: int, stride: int) -> nn.Module:
        outputs, middle = planes * expansion, planes * widening
        if bottleneck:
            middle = -(-middle // groups) * groups
            layers = [unit(inputs, middle, 1), unit(middle, middle, kernel, stride, groups)]
            layers.append(last(middle, outputs, 1))
        else:
            layers = [unit(inputs, middle, kernel, stride), last(middle, outputs, kernel)]
        if gated:
            layers.append(SqueezeExcitation(outputs, max(8, outputs // 16), nn.Sigmoid))
        shortcut = None
        if stride > 1 or inputs != outputs:
            pool = [nn.AvgPool2d(stride)] if averaged and stride > 1 else []
            shortcut = nn.Sequential(
                *pool, conv(inputs, outputs, 1, norm, None, 1 if pool else stride)
            )
        return Residual(nn.Sequential(*layers), shortcut, None if before else activation)

    size, stride = draw.pick(((3, 1), (3, 1), (3, 2), (3, 2), (5, 2), (7, 2)))
    layers: list[nn.Module] = [conv(3, width, size, norm, activation, stride)]
    layers += [nn.MaxPool2d(3, 2, 1)] if draw.chance(1, 5) else []
    channels = width
    for stage in range(stages):
        for position in range(draw.pick((1, 2, 2, 3, 3, 4, 6))):
            layers.append(block(channels, width * 2**stage, 2 if stage and not position else 1))
            channels = width * 2**stage * expansion
    layers += [norm(channels), activation()] if before else []
    return nn.Sequential(*layers, *pooled_head(channels, num_classes))
