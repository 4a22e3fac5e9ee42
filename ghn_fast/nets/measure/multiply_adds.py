"""The work of a DeepNets-1M network for one image, from its arguments alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghn_fast._core import core
from ghn_fast.nets.space.genotypes import from_dict


def count_multiply_adds(
    net_args: Mapping[str, Any], num_classes: int = 10, is_imagenet_input: bool = False
) -> int:
    """Multiply-adds of the forward pass for one image; FLOPs are twice as many.

    Those of convolutions, linear layers and the two products of attention are counted, as is
    usual: not those of normalisations, activations, poolings, biases and sums. Operations whose
    result does not reach the output are not computed and not counted.

    Args:
        net_args: the arguments of `Network` but the next two.
        num_classes: outputs.
        is_imagenet_input: whether the image has 224 x 224 pixels instead of 32 x 32.

    Raises:
        ValueError: no path leads from the input to the output.
    """
    arguments = {**net_args, "genotype": from_dict(net_args["genotype"])}
    return core.deepnets_count_multiply_adds(arguments, num_classes, is_imagenet_input)
