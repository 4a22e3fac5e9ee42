"""Small networks as people write them by hand: LeNets (LeCun et al. 1998, "Gradient-based learning
applied to document recognition", section II.B), a few convolutions with a linear layer or two, and
perceptrons."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ghn_fast.nets.families.draw import Draw, batch_norm
from ghn_fast.nets.families.parts import IMAGE_SIZE

SMALLEST_MAP = 4
HIDDEN = (32, 64, 64, 84, 120, 128, 128, 256, 256, 512, 1024)
MOST_WEIGHTS = 4_000_000
"""Of one linear layer."""


def small(draw: Draw, num_classes: int) -> nn.Module:
    """Stages of one or two convolutions, whose map is flattened or averaged; or none at all."""
    activation = nn.ReLU if draw.chance(3, 4) else draw.pick((nn.Tanh, nn.Sigmoid, nn.ELU, nn.GELU))
    if draw.chance(1, 6):
        layers = _linear(draw, 3 * IMAGE_SIZE**2, activation, draw.below(4), num_classes)
        return nn.Sequential(nn.Flatten(), *layers)
    has_norm, kernel, padded = draw.chance(1, 3), draw.pick((3, 3, 3, 5)), draw.chance(2, 3)
    width, grows = draw.pick((6, 8, 16, 16, 24, 32, 32, 48, 64)), draw.chance(2, 3)
    shrinks = draw.pick((nn.MaxPool2d, nn.MaxPool2d, nn.AvgPool2d, None))
    parts: list[nn.Module] = []
    channels, size = 3, IMAGE_SIZE
    for stage in range(draw.pick((1, 2, 2, 3, 3, 4))):
        outputs = width * 2**stage if grows else width
        for _ in range(draw.pick((1, 1, 2))):
            stride = 2 if shrinks is None and size > SMALLEST_MAP else 1
            parts.append(nn.Conv2d(channels, outputs, kernel, stride, kernel // 2 * padded))
            parts += [batch_norm(outputs)] if has_norm else []
            parts.append(activation())
            channels, size = outputs, 1 + (size - 1 - (kernel - 1) * (not padded)) // stride
        if shrinks is not None and draw.chance(5, 6):
            parts.append(shrinks(2))
            size //= 2
        if size < SMALLEST_MAP + kernel:
            break
    if draw.chance(1, 4):
        parts.append(nn.AdaptiveAvgPool2d(1))
        size = 1
    hidden = draw.pick((0, 1, 1, 2))
    head = _linear(draw, channels * size**2, activation, hidden, num_classes)
    return nn.Sequential(*parts, nn.Flatten(), *head)


def _linear(
    draw: Draw, features: int, activation: Callable[[], nn.Module], hidden: int, num_classes: int
) -> list[nn.Module]:
    """Hidden layers, none wider than the one before it, and the output layer."""
    layers: list[nn.Module] = []
    for _ in range(hidden):
        options = [size for size in HIDDEN if size <= features and size * features <= MOST_WEIGHTS]
        if not options:
            break
        width = draw.pick(options)
        layers += [nn.Linear(features, width), activation()]
        features = width
    return [*layers, nn.Linear(features, num_classes)]
