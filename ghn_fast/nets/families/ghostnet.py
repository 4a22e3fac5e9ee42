"""Half of the channels by cheap depthwise convolutions of the other half: GhostNet (arXiv
1911.11907)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ghn_fast.nets.families.draw import Draw, batch_norm
from ghn_fast.nets.families.parts import (
    Concat,
    Residual,
    SqueezeExcitation,
    conv,
)


def ghostnet(draw: Draw, num_classes: int) -> nn.Module:
    """Inverted residuals whose 1 x 1 convolutions give half of their channels."""
    activation = draw.pick((nn.ReLU, nn.ReLU, nn.SiLU))

    def half(inputs: int, outputs: int, then: Callable[[], nn.Module] | None) -> nn.Module:
        first = conv(inputs, outputs // 2, 1, batch_norm, then)
        rest = conv(outputs // 2, outputs // 2, 3, batch_norm, then, groups=outputs // 2)
        return nn.Sequential(first, Concat(nn.Identity(), rest))

    def block(inputs: int, hidden: int, outputs: int, stride: int) -> nn.Module:
        kernel, gated = draw.pick((3, 3, 5)), draw.chance(1, 3)
        layers = [half(inputs, hidden, activation)]
        if stride > 1:
            layers.append(conv(hidden, hidden, kernel, batch_norm, None, stride, hidden))
        if gated:
            layers.append(SqueezeExcitation(hidden, hidden // 4, nn.Hardsigmoid))
        shortcut = None
        if stride > 1 or inputs != outputs:
            shortcut = nn.Sequential(
                conv(inputs, inputs, kernel, batch_norm, None, stride, inputs),
                conv(inputs, outputs, 1, batch_norm),
            )
        return Residual(nn.Sequential(*layers, half(hidden, outputs, None)), shortcut)

    channels = draw.between(8, 32, 4)
    layers: list[nn.Module] = [conv(3, channels, 3, batch_norm, activation, draw.pick((1, 2)))]
    for _ in range(draw.between(2, 4)):
        outputs = channels + draw.between(0, 48, 4)
        for position in range(draw.between(1, 4)):
            hidden = channels * draw.pick((2, 3, 4, 6))
            layers.append(block(channels, hidden, outputs, 1 if position else 2))
            channels = outputs
    wide, last = channels * draw.pick((2, 4, 6)), draw.between(256, 1280, 128)
    layers += [conv(channels, wide, 1, batch_norm, activation), nn.AdaptiveAvgPool2d(1)]
    layers += [nn.Conv2d(wide, last, 1), activation(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(last, num_classes))
