"""Inverted residuals: MobileNet 2 and 3 (arXiv 1801.04381, 1905.02244), MNASNet (1807.11626),
EfficientNet 1 and 2 (1905.11946, 2104.00298)."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig

from ghn_fast.nets.families.draw import Draw, batch_norm
from ghn_fast.nets.families.parts import Residual, conv, pooled_head
from ghn_fast.nets.space.strides import remove_strides


def mobilenet2(draw: Draw, num_classes: int) -> nn.Module:
    """Stages of (expansion, channels, blocks, stride)."""
    stages, channels = [[1, 16, 1, 1]], 16
    for stage in range(draw.between(3, 6)):
        channels += draw.between(8, 8 * (stage + 2), 8)
        stages.append([draw.between(2, 6), channels, draw.between(1, 3), draw.pick((1, 2, 2))])
    width = draw.pick((0.35, 0.5, 0.75, 1.0, 1.0, 1.4))
    return _fitted(draw, models.MobileNetV2(num_classes, width, stages))


def _fitted(draw: Draw, model: Any) -> nn.Module:
    """For small images: without the strides of up to four of the first layers."""
    remove_strides(model.features[: draw.below(5)])
    fitted: nn.Module = model
    return fitted


def mobilenet3(draw: Draw, num_classes: int) -> nn.Module:
    """Blocks with kernels, gates and activations of their own."""
    blocks, channels = [], draw.pick((8, 16, 16))
    for stage in range(draw.between(3, 5)):
        outputs = channels + draw.between(0, 8 * (stage + 2), 8)
        kernel, gated = draw.pick((3, 3, 5)), draw.coin()
        activation = draw.pick(("RE", "HS"))
        for position in range(draw.between(1, 3)):
            stride = draw.pick((1, 2, 2)) if not position else 1
            hidden = channels * draw.between(2, 6)
            blocks.append(
                InvertedResidualConfig(
                    channels, kernel, hidden, outputs, gated, activation, stride, 1, 1.0
                )
            )
            channels = outputs
    hidden = draw.between(128, 1280, 128)
    return _fitted(draw, models.MobileNetV3(blocks, hidden, num_classes))


def mnasnet(draw: Draw, num_classes: int) -> nn.Module:
    """Stages of inverted residuals behind a depthwise separable stem."""
    activation = draw.pick((nn.ReLU, nn.ReLU, nn.ReLU6, nn.SiLU))
    act_conv = partial(conv, norm=batch_norm, activation=activation)
    stem, channels = draw.between(16, 32, 8), draw.between(8, 24, 8)
    layers: list[nn.Module] = [
        act_conv(3, stem, 3, stride=draw.pick((1, 2))),
        act_conv(stem, stem, 3, groups=stem),
        conv(stem, channels, 1, batch_norm),
    ]
    for stage in range(draw.between(2, 5)):
        outputs = channels + draw.between(8, 16 * (stage + 1), 8)
        kernel, expansion = draw.pick((3, 5)), draw.pick((3, 4, 6))
        for position in range(draw.between(1, 4)):
            hidden, stride = channels * expansion, draw.pick((1, 2, 2)) if not position else 1
            branch = nn.Sequential(
                act_conv(channels, hidden, 1),
                act_conv(hidden, hidden, kernel, stride=stride, groups=hidden),
                conv(hidden, outputs, 1, batch_norm),
            )
            is_same = stride == 1 and channels == outputs
            layers.append(Residual(branch) if is_same else branch)
            channels = outputs
    last = draw.between(256, 1280, 128)
    return nn.Sequential(*layers, act_conv(channels, last, 1), *pooled_head(last, num_classes))


def efficientnet(draw: Draw, num_classes: int) -> nn.Module:
    """Stages of gated inverted residuals; of version 2, the first ones without depthwise layers."""
    stages: list[MBConvConfig | FusedMBConvConfig] = []
    channels, fused = draw.between(8, 32, 8), draw.pick((0, 0, 1, 2, 3))
    for stage in range(draw.between(3, 6)):
        outputs = max(8, channels + draw.between(-8, 8 * (stage + 2), 8))
        shape = 1 if not stage else draw.pick((1, 2, 2)), channels, outputs, draw.between(1, 3)
        expansion = 1 if not stage else draw.pick((2, 4, 6))
        if stage < fused:
            stages.append(FusedMBConvConfig(expansion, 3, *shape))
        else:
            stages.append(MBConvConfig(expansion, draw.pick((3, 3, 5)), *shape))
        channels = outputs
    last = draw.pick((None, 512, 1280))
    return _fitted(draw, models.EfficientNet(stages, 0.2, 0.2, num_classes, last_channel=last))
