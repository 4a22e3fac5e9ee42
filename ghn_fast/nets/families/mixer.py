"""Mixers without attention: MLP-Mixer and ResMLP (arXiv 2105.01601, 2105.03404), ConvMixer
(2201.09792)."""

from __future__ import annotations

from torch import nn

from ghn_fast.nets.families.draw import Draw, batch_norm
from ghn_fast.nets.families.parts import (
    IMAGE_SIZE,
    Residual,
    TokenMean,
    Transpose,
    mlp,
    pooled_head,
)


def mlp_mixer(draw: Draw, num_classes: int) -> nn.Module:
    """Layers over tokens and over channels in turn."""
    patch, width = draw.pick((2, 4, 4, 8)), draw.between(64, 256, 32)
    tokens = (IMAGE_SIZE // patch) ** 2
    plain_tokens = draw.coin()
    over_tokens, over_channels = draw.pick((1, 2)) * tokens // 2, draw.pick((2, 4)) * width
    layers: list[nn.Module] = [nn.Conv2d(3, width, patch, patch), nn.Flatten(2), Transpose(1, 2)]
    for _ in range(draw.between(2, 8)):
        mixing = nn.Linear(tokens, tokens) if plain_tokens else mlp(tokens, over_tokens, nn.GELU)
        turned = (nn.LayerNorm(width), Transpose(1, 2), mixing, Transpose(1, 2))
        layers.append(Residual(nn.Sequential(*turned)))
        layers.append(
            Residual(nn.Sequential(nn.LayerNorm(width), mlp(width, over_channels, nn.GELU)))
        )
    return nn.Sequential(*layers, nn.LayerNorm(width), TokenMean(), nn.Linear(width, num_classes))


def conv_mixer(draw: Draw, num_classes: int) -> nn.Module:
    """Depthwise and pointwise convolutions at one resolution."""
    patch, kernel = draw.pick((2, 2, 4)), draw.pick((3, 5, 7, 9))
    width, activation = draw.between(64, 256, 32), draw.pick((nn.GELU, nn.GELU, nn.ReLU))
    layers: list[nn.Module] = [nn.Conv2d(3, width, patch, patch), activation(), batch_norm(width)]
    for _ in range(draw.between(2, 8)):
        depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        layers.append(Residual(nn.Sequential(depthwise, activation(), batch_norm(width))))
        layers += [nn.Conv2d(width, width, 1), activation(), batch_norm(width)]
    return nn.Sequential(*layers, *pooled_head(width, num_classes))
