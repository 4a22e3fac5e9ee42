"""How much work a DeepNets-1M network is, from its arguments alone.

Training on a CPU spends nearly all its time in the target networks, whose costs differ more than
a hundredfold. The estimate decides which networks a small machine can afford, before any is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghn_fast.nets.measure.count import count_parameters, operation_parameters
from ghn_fast.nets.space.genotypes import from_dict
from ghn_fast.nets.space.liveness import is_reduction

VALUE_COST = 50
"""Multiply-adds that take as long as one pass over one value of an activation does (measured on
a CPU with channels-last images)."""

_PASSES = {
    "none": 0,
    "max_pool_3x3": 2,
    "avg_pool_3x3": 2,
    "skip_connect": 0,
    "sep_conv_3x3": 9,
    "sep_conv_5x5": 12,
    "dil_conv_3x3": 5,
    "dil_conv_5x5": 7,
    "conv_7x1_1x7": 5,
    "msa": 20,
    "cse": 3,
}
"""Passes over a feature map by each operation: activations, normalisation, depthwise filters."""
_CONVOLUTION_PASSES = 3
_HEADS = 8
_ATTENTION_PASSES = 2


def network_work(
    net_args: Mapping[str, Any],
    image_size: int = 32,
    num_classes: int = 10,
    is_imagenet_input: bool = False,
) -> float:
    """Estimated work for one image in millions of multiply-adds, forward only.

    Args:
        net_args: the arguments of :class:`ghn_fast.nets.Network` but the number of classes.
        image_size: height and width of the images.
        num_classes: outputs of the network.
        is_imagenet_input: whether it has the stem for large images, whose strides are longer.
    """
    genotype = from_dict(net_args["genotype"])
    is_vit = "msa" in genotype.operations
    cells, width = net_args["n_cells"], net_args["C"]
    pixels, width_factor = _stem(net_args, is_vit, image_size, is_imagenet_input)
    work = pixels * (27 * width * width_factor + _CONVOLUTION_PASSES * VALUE_COST * width)
    previous = (width * width_factor, width * width_factor)
    for cell in range(cells):
        edges, concat = genotype.normal, genotype.normal_concat
        if is_reduction(cell, cells):
            edges, concat = genotype.reduce, genotype.reduce_concat
            width *= net_args["C_mult"]
            pixels /= 1 if is_vit else 4
        if net_args["preproc"]:
            work += pixels * width * (sum(previous) + 2 * _CONVOLUTION_PASSES * VALUE_COST)
        for name, _ in edges:
            passes = _PASSES.get(name, _CONVOLUTION_PASSES)
            work += pixels * operation_parameters(name, width, False, 0)
            work += pixels * width * passes * VALUE_COST
            if name == "msa":
                work += _HEADS * pixels**2 * _ATTENTION_PASSES * VALUE_COST
        previous = (previous[1], len(concat) * width)
    return (work + count_parameters(net_args, num_classes, is_imagenet_input)) / 1e6


def _stem(
    net_args: Mapping[str, Any], is_vit: bool, image_size: int, is_imagenet_input: bool
) -> tuple[float, int]:
    """Pixels after the stem, and its width as a multiple of C."""
    if is_vit:
        return (image_size // 16 if is_imagenet_input else (image_size + 2) // 3) ** 2, 1
    pixels = image_size**2 / (16 if is_imagenet_input else 1)
    if net_args["stem_type"] == 1:
        return pixels / 4, 4
    pixels /= 4 if net_args["stem_pool"] else 1
    return pixels, 3 if net_args["preproc"] and not is_imagenet_input else 1
