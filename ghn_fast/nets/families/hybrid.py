"""Convolutions first, attention on their small maps, as in CoAtNet (arXiv 2106.04803)."""

from __future__ import annotations

from torch import nn

from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.families.parts import Positions, Residual, TokenMean, Transpose, conv
from ghn_fast.nets.families.transformer import IMAGE_SIZE, encoder_layer


def hybrid(draw: Draw, num_classes: int) -> nn.Module:
    """Residual or depthwise stages that halve the map to 8 or 4 pixels, then a transformer."""
    norm, activation = draw.norm(), draw.activation()
    width, depthwise = draw.between(16, 48, 8), draw.coin()
    layers: list[nn.Module] = [conv(3, width, 3, norm, activation, draw.pick((1, 2)))]
    size, channels = IMAGE_SIZE // (layers[0][0].stride[0]), width  # type: ignore[index]
    end = draw.pick((8, 8, 4))
    while size > end:
        outputs = 2 * channels
        layers.append(conv(channels, outputs, 3, norm, activation, stride=2))
        for _ in range(draw.between(0, 2)):
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
    for _ in range(draw.between(1, 4)):
        hidden = channels * draw.pick((2, 4))
        layers.append(encoder_layer(channels, heads, hidden, activation="gelu", norm_first=True))
    ends = (nn.LayerNorm(channels), TokenMean(), nn.Linear(channels, num_classes))
    return nn.Sequential(*layers, *ends)
