"""The number of parameters of a DeepNets-1M network, from its arguments alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghn_fast._core import core
from ghn_fast.nets.space.genotypes import from_dict


def count_parameters(
    net_args: Mapping[str, Any], num_classes: int = 10, is_imagenet_input: bool = False
) -> int:
    """What summing over `Network(**net_args, ...).parameters()` gives, without the network.

    Parameters that do not reach the output are counted, as in the published files.
    """
    arguments = {**net_args, "genotype": from_dict(net_args["genotype"])}
    return core.deepnets_count_parameters(arguments, num_classes, is_imagenet_input)


def operation_parameters(name: str, channels: int, strided: bool, per_norm: int) -> int:
    """The number of parameters of one operation with `channels` inputs and outputs."""
    norm = per_norm * channels
    if name == "skip_connect":
        return channels**2 + norm if strided else 0
    if name == "none" or name.endswith("_pool_3x3"):
        return 0
    if name == "msa":
        return 6 * channels**2 + 7 * channels
    if name == "cse":
        hidden = channels // 2
        return 2 * channels * hidden + hidden + channels
    if name == "conv_7x1_1x7":
        return 14 * channels**2 + norm
    kernel = int(name[-1])
    if name.startswith("conv"):
        return kernel**2 * channels**2 + norm
    once = kernel**2 * channels + channels**2 + norm
    return 2 * once if name.startswith("sep_conv") else once
