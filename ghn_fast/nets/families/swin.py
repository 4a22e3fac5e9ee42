"""Swin transformers 1 and 2 (arXiv 2103.14030, 2111.09883)."""

from __future__ import annotations

from torch import nn
from torchvision.models import SwinTransformer
from torchvision.models.swin_transformer import (
    PatchMerging,
    PatchMergingV2,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)

from ghn_fast.nets.families.draw import Draw


def swin(draw: Draw, num_classes: int) -> nn.Module:
    """Two to four stages of attention in shifted windows."""
    patch, window = draw.pick((1, 2, 2, 4, 4)), draw.pick((2, 4, 4, 7, 8))
    depths = draw.several(draw.between(2, 4), 1, 4)
    heads, size = draw.between(1, 3), draw.pick((16, 32, 32))
    second = draw.chance(1, 3)
    model = SwinTransformer(
        [patch, patch],
        heads * size,
        depths,
        [heads * 2**stage for stage in range(len(depths))],
        [window, window],
        mlp_ratio=draw.pick((2.0, 4.0, 4.0)),
        stochastic_depth_prob=0.0,
        num_classes=num_classes,
        block=SwinTransformerBlockV2 if second else SwinTransformerBlock,
        downsample_layer=PatchMergingV2 if second else PatchMerging,
    )
    if patch == 4 and draw.chance(1, 3):
        model.features[0][0].stride = (2, 2)
    return model
