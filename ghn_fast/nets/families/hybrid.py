"""Convolutions first, attention on their small maps, as in CoAtNet (arXiv 2106.04803)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from ghn_fast.nets.families.draw import Draw, Layer
from ghn_fast.nets.families.parts import (
    IMAGE_SIZE,
    Positions,
    Residual,
    SqueezeExcitation,
    TokenMean,
    Transpose,
    conv,
)
from ghn_fast.nets.families.transformer import encoder_layer, pre_norm_layer

_LAYERS: tuple[Callable[[int, int, int], nn.Module], ...] = (
    pre_norm_layer,
    partial(encoder_layer, activation="gelu", norm_first=True),
)
"""Transformers' layers of a width, with so many heads and a hidden width."""


def hybrid(draw: Draw, num_classes: int) -> nn.Module:
    """Stages of residual, depthwise or inverted blocks that halve the map to 8 or 4 pixels, then a
    transformer."""
    norm, activation = draw.norm(), draw.activation()
    width, depthwise, inverted = draw.between(16, 48, 8), draw.coin(), draw.chance(1, 3)
    layers: list[nn.Module] = [conv(3, width, 3, norm, activation, draw.pick((1, 2)))]
    size, channels = IMAGE_SIZE // (layers[0][0].stride[0]), width  # type: ignore[index]
    end = draw.pick((8, 8, 4))
    while size > end:
        outputs = 2 * channels
        if inverted:
            layers.append(_inverted(channels, outputs, draw.pick((2, 4)), norm, activation))
        else:
            layers.append(conv(channels, outputs, 3, norm, activation, stride=2))
        for _ in range(draw.between(0, 2)):
            if inverted:
                layers.append(_inverted(outputs, outputs, draw.pick((2, 4)), norm, activation))
                continue
            groups = outputs if depthwise else 1
            branch = nn.Sequential(
                conv(outputs, outputs, 3, norm, activation, groups=groups),
                conv(outputs, outputs, 1, norm),
            )
            layers.append(Residual(branch, None, activation))
        size, channels = size // 2, outputs
    heads = draw.pick((2, 4, 8))
    layers += [nn.Flatten(2), Transpose(1, 2)]
    layers += [Positions(size**2, channels)] if draw.coin() else []
    layer = draw.pick(_LAYERS)
    for _ in range(draw.between(1, 4)):
        layers.append(layer(channels, heads, channels * draw.pick((2, 4))))
    ends = (nn.LayerNorm(channels), TokenMean(), nn.Linear(channels, num_classes))
    return nn.Sequential(*layers, *ends)


def _inverted(
    inputs: int, outputs: int, ratio: int, norm: Layer, activation: Callable[[], nn.Module]
) -> nn.Module:
    """Normalisation first, and a gate between the depthwise layer and the last.

    Where channels change, the map is halved too, by pools.
    """
    hidden = inputs * ratio
    pool = [nn.AvgPool2d(2)] if inputs != outputs else []
    branch = nn.Sequential(
        norm(inputs),
        *pool,
        conv(inputs, hidden, 1, norm, activation),
        conv(hidden, hidden, 3, norm, activation, groups=hidden),
        SqueezeExcitation(hidden, hidden // 4, nn.Sigmoid),
        nn.Conv2d(hidden, outputs, 1),
    )
    return Residual(branch, nn.Sequential(*pool, nn.Conv2d(inputs, outputs, 1)) if pool else None)
