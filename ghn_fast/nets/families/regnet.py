"""RegNet X and Y (arXiv 2003.13678)."""

from __future__ import annotations

from torch import nn
from torchvision.models.regnet import BlockParams, RegNet

from ghn_fast.nets.families.draw import Draw
from ghn_fast.nets.space.strides import remove_strides


def regnet(draw: Draw, num_classes: int) -> nn.Module:
    """Widths that grow as the paper's equations have it."""
    group_width = draw.pick((8, 8, 16, 16, 24, 32))
    params = BlockParams.from_init_params(
        depth=draw.between(4, 16),
        w_0=draw.between(16, 80, 8),
        w_a=draw.between(8, 40),
        w_m=draw.between(18, 30) / 10,
        group_width=group_width,
        se_ratio=draw.pick((None, 0.25)),
    )
    activation = draw.pick((nn.ReLU, nn.ReLU, nn.SiLU))
    model = RegNet(params, num_classes, stem_width=draw.pick((16, 32)), activation=activation)
    remove_strides([model.stem, *model.trunk_output[: draw.below(2)]])
    return model
