"""The number of parameters of a DeepNets-1M network, from its arguments alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghn_fast.nets.space.genotypes import Genotype, from_dict
from ghn_fast.nets.space.liveness import is_reduction


def count_parameters(
    net_args: Mapping[str, Any], num_classes: int = 10, is_imagenet_input: bool = False
) -> int:
    """What summing over `Network(**net_args, ...).parameters()` gives, without the network.

    Parameters that do not reach the output are counted, as in the published files.
    """
    genotype = from_dict(net_args["genotype"])
    return _Counter(net_args, genotype, is_imagenet_input).total(num_classes)


class _Counter:
    def __init__(
        self, net_args: Mapping[str, Any], genotype: Genotype, is_imagenet_input: bool
    ) -> None:
        self.args = net_args
        self.genotype = genotype
        self.large = is_imagenet_input
        self.is_vit = "msa" in genotype.operations
        self.per_norm = 0 if net_args.get("norm", "bnorm") in (None, "", "none") else 2
        self.preproc = net_args.get("preproc", True)
        self.pooled_stem = net_args.get("stem_type", 0) == 1 or net_args.get("stem_pool", False)

    def total(self, num_classes: int) -> int:
        stem, channels = self._stem()
        cells, channels = self._cells(channels)
        return stem + cells + self._head(channels, num_classes)

    def _stem(self) -> tuple[int, int]:
        """The stem's parameters and its output channels."""
        width, ks = self.args["C"], self.args.get("ks", 3)
        if self.is_vit:
            patch, size = (16, 14) if self.large else (3, 11)
            return width * (3 * patch**2 + size**2), width
        if self.args.get("stem_type", 0) == 0:
            width *= 3 if self.preproc and not self.large else 1
            return width * (3 * ks**2 + self.per_norm), width
        half = width // 2
        first = half * (3 * ks**2 + self.per_norm)
        return first + 9 * width * (half + width) + 2 * width * self.per_norm, width

    def _cells(self, channels: int) -> tuple[int, int]:
        """The parameters of all cells and the channels after them."""
        num_cells, width = self.args["n_cells"], self.args["C"]
        previous = (channels, channels)
        total = 0
        for cell in range(num_cells):
            reduction = is_reduction(cell, num_cells)
            edges, concat = self.genotype.normal, self.genotype.normal_concat
            if reduction:
                edges, concat = self.genotype.reduce, self.genotype.reduce_concat
                width *= self.args.get("C_mult", 2)
            if self.preproc:
                total += sum(previous) * width + 2 * width * self.per_norm
            strided = reduction and not self.is_vit
            total += sum(
                operation_parameters(name, width, strided and source < 2, self.per_norm)
                for name, source in edges
            )
            previous = (previous[1], len(concat) * width)
        return total, previous[1]

    def _head(self, channels: int, num_classes: int) -> int:
        if not self.args.get("glob_avg", True):
            size = 14 if self.large else 8
            channels *= (size // 2 if self.pooled_stem else size) ** 2
        total = 0
        for _ in range(self.args.get("fc_layers", 1) - 1):
            total += (channels + 1) * self.args["fc_dim"]
            channels = self.args["fc_dim"]
        return total + (channels + 1) * num_classes


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
