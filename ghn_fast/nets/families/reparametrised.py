"""Blocks of parallel branches that become one convolution after training: RepVGG (arXiv
2101.03697), MobileOne (2206.04040)."""

from __future__ import annotations

from torch import nn

from ghn_fast.nets.families.draw import Draw, batch_norm
from ghn_fast.nets.families.parts import Sum, conv, pooled_head


def reparametrised(draw: Draw, num_classes: int) -> nn.Module:
    """Stages of sums of a convolution, one of 1 x 1 and, where its shape stays, the input."""
    activation, depthwise = draw.activation(), draw.coin()
    kernel, copies = draw.pick((3, 3, 3, 5)), draw.pick((1, 1, 1, 2))

    def block(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
        every = branches(inputs, outputs, size, stride, groups, copies)
        return nn.Sequential(Sum(*every), activation())

    channels = draw.between(24, 64, 8)
    layers = [block(3, channels, 3, draw.pick((1, 2, 2)))]
    for _ in range(draw.between(2, 4)):
        outputs = channels + draw.between(0, channels, 8)
        for position in range(draw.between(1, 4)):
            stride = 1 if position else 2
            if depthwise:
                layers.append(block(channels, channels, kernel, stride, channels))
                layers.append(block(channels, outputs, 1))
            else:
                layers.append(block(channels, outputs, kernel, stride))
            channels = outputs
    return nn.Sequential(*layers, *pooled_head(channels, num_classes))


def branches(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, copies: int = 1
) -> list[nn.Module]:
    """Those of a block: what it is, a convolution of 1 x 1, the input."""
    every: list[nn.Module] = [
        conv(inputs, outputs, size, batch_norm, None, stride, groups) for _ in range(copies)
    ]
    if size > 1:
        every.append(conv(inputs, outputs, 1, batch_norm, None, stride, groups))
    if inputs == outputs and stride == 1:
        every.append(batch_norm(inputs))
    return every
