"""Vision transformers (arXiv 2010.11929), with a class token or a mean of tokens."""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision.models import VisionTransformer

from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.families.parts import Positions, TokenMean, Transpose

IMAGE_SIZE = 32
encoder_layer = partial(nn.TransformerEncoderLayer, dropout=0.0, batch_first=True)


def transformer(draw: Draw, num_classes: int) -> nn.Module:
    """Patches of 2 to 8 pixels, two to eight layers."""
    patch = draw.pick((2, 4, 4, 4, 8))
    heads, layers = draw.pick((1, 2, 3, 4, 6, 8)), draw.between(2, 8)
    width = heads * draw.pick((16, 32, 32, 64))
    hidden = width * draw.pick((2, 3, 4, 4))
    if draw.coin():
        return VisionTransformer(
            IMAGE_SIZE, patch, layers, heads, width, hidden, num_classes=num_classes
        )
    activation = draw.pick(("gelu", "gelu", "relu"))
    norm_first = draw.chance(3, 4)
    parts: list[nn.Module] = [
        nn.Conv2d(3, width, patch, patch),
        nn.Flatten(2),
        Transpose(1, 2),
        Positions((IMAGE_SIZE // patch) ** 2, width),
    ]
    parts += [
        encoder_layer(width, heads, hidden, activation=activation, norm_first=norm_first)
        for _ in range(layers)
    ]
    ends = [nn.LayerNorm(width), TokenMean()] if draw.coin() else [TokenMean(), nn.LayerNorm(width)]
    return nn.Sequential(*parts, *ends, nn.Linear(width, num_classes))
