"""Plain stacks of convolutions: AlexNet and VGG (arXiv 1404.5997, 1409.1556)."""

from __future__ import annotations

from torch import nn

from ghn_fast.nets.families.draw import Draw, batch_norm, no_norm
from ghn_fast.nets.families.parts import conv


def plain(draw: Draw, num_classes: int) -> nn.Module:
    """Stages of convolutions with poolings between them, then linear layers on the flat map."""
    norm = draw.pick((batch_norm, batch_norm, no_norm))
    activation = draw.activation()
    kernel, stride = draw.pick(((3, 1), (3, 1), (3, 2), (5, 1), (7, 2), (11, 2)))
    width, stages = draw.between(16, 64, 8), draw.between(2, 5)
    grows = draw.coin()
    layers: list[nn.Module] = []
    channels = 3
    for stage in range(stages):
        outputs = min(512, width * (2**stage if grows else 1 + stage))
        for _ in range(draw.between(1, 3)):
            shape = (kernel, stride) if not layers else (draw.pick((3, 3, 3, 5)), 1)
            layers.append(conv(channels, outputs, shape[0], norm, activation, shape[1]))
            channels = outputs
        if stage < 4 - (stride > 1):
            layers.append(draw.pick((nn.MaxPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1))))
    size = draw.pick((1, 1, 2, 3, 4, 6, 7, 7))
    layers += [nn.AdaptiveAvgPool2d(size), nn.Flatten()]
    return nn.Sequential(*layers, *_classifier(draw, channels * size**2, num_classes))


def _classifier(draw: Draw, features: int, num_classes: int) -> list[nn.Module]:
    """Up to two hidden layers, narrower where the map has more features."""
    options = [hidden for hidden in (128, 256, 512, 1024, 2048, 4096) if hidden * features < 4e6]
    layers: list[nn.Module] = []
    for _ in range(draw.below(3) if options else 0):
        hidden = draw.pick(options)
        layers += [nn.Linear(features, hidden), nn.ReLU(), nn.Dropout()]
        features, options = hidden, [size for size in options if size * hidden < 4e6]
    return [*layers, nn.Linear(features, num_classes)]
