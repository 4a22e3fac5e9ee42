"""Fire modules, as in SqueezeNet (arXiv 1602.07360)."""

from __future__ import annotations

from torch import nn
from torchvision.models.squeezenet import Fire

from ghn_fast.nets.families.draw import Draw, batch_norm, no_norm
from ghn_fast.nets.families.parts import conv


def fire(draw: Draw, num_classes: int) -> nn.Module:
    """Modules that squeeze channels and expand them; a convolution classifies."""
    norm = draw.pick((batch_norm, no_norm))
    channels = draw.between(32, 96, 16)
    layers: list[nn.Module] = [
        conv(3, channels, draw.pick((3, 3, 5, 7)), norm, nn.ReLU, draw.pick((1, 1, 2)))
    ]
    layers += [nn.MaxPool2d(3, 2, ceil_mode=True)] if draw.coin() else []
    unit = draw.between(16, 64, 16)
    for stage in range(draw.between(2, 4)):
        for _ in range(draw.between(1, 3)):
            half = unit * (stage + 1)
            layers.append(Fire(channels, max(8, half // draw.pick((2, 4, 4))), half, half))
            channels = 2 * half
            layers += [] if norm is no_norm else [norm(channels)]
        layers += [nn.MaxPool2d(3, 2, ceil_mode=True)] if stage < 2 else []
    layers += [nn.Dropout(), nn.Conv2d(channels, num_classes, 1)]
    layers += [nn.ReLU()] if draw.coin() else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
