"""The work of a DeepNets-1M network for one image, from its arguments alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghn_fast._core import core
from ghn_fast.nets.space.genotypes import from_dict
from ghn_fast.nets.space.liveness import NetworkPlan, is_reduction, plan_network


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


def reference_multiply_adds(
    net_args: Mapping[str, Any], num_classes: int = 10, is_imagenet_input: bool = False
) -> int:
    """What `count_multiply_adds` gives, in Python: it explains what the core does."""
    plan = plan_network(from_dict(net_args["genotype"]), net_args["n_cells"])
    if plan is None:
        raise ValueError("'none' operations cut every path from the input to the output")
    return _Counter(net_args, plan, is_imagenet_input).total(num_classes)


class _Counter:
    """Follows the feature maps through the network: their sizes and numbers of channels."""

    def __init__(
        self, net_args: Mapping[str, Any], plan: NetworkPlan, is_imagenet_input: bool
    ) -> None:
        self.args = net_args
        self.genotype = from_dict(net_args["genotype"])
        self.plan = plan
        self.large = is_imagenet_input
        self.is_vit = "msa" in self.genotype.operations
        self.sizes = (0, 0)
        self.channels = (0, 0)

    def total(self, num_classes: int) -> int:
        count = self._stem()
        width, num_cells = self.args["C"], self.args["n_cells"]
        for cell in range(num_cells):
            if is_reduction(cell, num_cells):
                width *= self.args.get("C_mult", 2)
            count += self._cell(cell, width, is_reduction(cell, num_cells))
        return count + self._head(num_classes)

    def _stem(self) -> int:
        width, ks = self.args["C"], self.args.get("ks", 3)
        if self.is_vit:
            size, patch = (14, 16) if self.large else (11, 3)
            self.sizes, self.channels = (size, size), (width, width)
            return size**2 * 3 * patch**2 * width
        if self.args.get("stem_type", 0) == 0:
            width *= 3 if self.args.get("preproc", True) and not self.large else 1
            size = 56 if self.large else 32
            after = _halved(size) if self.args.get("stem_pool", False) else size
            self.sizes, self.channels = (after, after), (width, width)
            return size**2 * 3 * ks**2 * width
        first, second = (112, 56) if self.large else (32, 32)
        third = _halved(second)
        self.sizes, self.channels = (second, third), (width, width)
        count = first**2 * 3 * ks**2 * (width // 2) + second**2 * 9 * (width // 2) * width
        return count + (third**2 * 9 * width**2 if self.plan.stem[1] else 0)

    def _cell(self, cell: int, width: int, reduction: bool) -> int:
        edges, concat = self.genotype.normal, self.genotype.normal_concat
        if reduction:
            edges, concat = self.genotype.reduce, self.genotype.reduce_concat
        inputs = self.channels
        size = self.sizes[1]  # the first input is brought to the size of the second
        after = _halved(size) if reduction and not self.is_vit else size
        self.sizes, self.channels = (size, after), (inputs[1], len(concat) * width)
        plan = self.plan.cells[cell]
        if plan is None:
            return 0
        count = 0
        if self.args.get("preproc", True):
            count += sum(
                size**2 * channels * width
                for channels, used in zip(inputs, plan.inputs, strict=True)
                if used
            )
        for (name, source), alive in zip(edges, plan.operations, strict=True):
            if alive:
                before = size if source < 2 else after
                count += _operation(name, width, before, after)
        return count

    def _head(self, num_classes: int) -> int:
        channels = self.channels[1]
        if not self.args.get("glob_avg", True):
            channels *= self.sizes[1] ** 2
        count = 0
        for _ in range(self.args.get("fc_layers", 1) - 1):
            count += channels * self.args["fc_dim"]
            channels = self.args["fc_dim"]
        return count + channels * num_classes


def _halved(size: int) -> int:
    return (size + 1) // 2


def _operation(name: str, width: int, before: int, after: int) -> int:
    """Of one operation from a feature map of before x before pixels to one of after x after."""
    if name == "skip_connect":
        return 0 if before == after else after**2 * width**2
    if name == "none" or name.endswith("_pool_3x3"):
        return 0
    if name == "msa":
        return 6 * before**2 * width**2 + 2 * before**4 * width
    if name == "cse":
        return 2 * width * (width // 2)
    if name == "conv_7x1_1x7":  # halves the width first, then the height
        return 7 * width**2 * (before * after + after**2)
    kernel = int(name[-1])
    if name.startswith("conv"):
        return after**2 * kernel**2 * width**2
    once = after**2 * (kernel**2 * width + width**2)
    return 2 * once if name.startswith("sep_conv") else once
