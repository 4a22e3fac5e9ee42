"""Multiply-adds from the arguments equal those of the network's operations when it is run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ghn_fast._core import core
from ghn_fast.nets import (
    DARTS,
    SPLITS,
    Genotype,
    build_ghost,
    count_multiply_adds,
    count_parameters,
    graph_of,
    sample_net_args,
)

SAMPLED = tuple(split for split in SPLITS if split != "predefined")


def counted(net_args: dict[str, Any], num_classes: int, large: bool) -> int:
    """By hooks on every operation of a forward pass."""
    network = build_ghost(net_args, num_classes, large)
    size = network.expected_input_sz
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("split", SAMPLED)
@pytest.mark.parametrize("large", [False, True])
def test_sampled_networks(split: str, large: bool) -> None:
    classes = 1000 if large else 10
    for index in range(4):
        net_args = {**sample_net_args(split, 11, index, large), "C": (80, 32)[index % 2]}
        assert count_multiply_adds(net_args, classes, large) == counted(net_args, classes, large)


DEAD = Genotype(
    [("conv_3x3", 0), ("conv_7x1_1x7", 1), ("none", 0), ("cse", 1)], [2],
    [("sep_conv_3x3", 0), ("skip_connect", 1), ("none", 0), ("none", 1)], [3],
)  # fmt: skip


@pytest.mark.parametrize("genotype", [DARTS, DEAD._replace(reduce_concat=[2, 3])])
@pytest.mark.parametrize("stem", [{"stem_type": 1}, {"stem_pool": True}, {}])
@pytest.mark.parametrize("large", [False, True])
def test_odd_networks(genotype: Genotype, stem: dict[str, Any], large: bool) -> None:
    for cells in (1, 6):
        net_args = {"C": 16, "genotype": genotype, "n_cells": cells, "fc_dim": 24, **stem}
        net_args |= {"fc_layers": 3, "glob_avg": cells < 3}
        assert count_multiply_adds(net_args, 10, large) == counted(net_args, 10, large)


def test_network_without_output() -> None:
    genotype = Genotype([("none", 0), ("none", 1)], [2], [("none", 0), ("none", 1)], [2])
    net_args = {"C": 16, "genotype": genotype, "n_cells": 3}
    with pytest.raises(ValueError, match="cut every path"):
        count_multiply_adds(net_args)


def test_measures_of_the_core() -> None:
    indices = [7, 3, 1 << 40]
    parameters, multiply_adds, depths = core.deepnets_measures("dense", 4, indices, 10, False, 2)
    for i, index in enumerate(indices):
        net_args = sample_net_args("dense", 4, index)
        assert parameters[i] == count_parameters(net_args)
        assert multiply_adds[i] == count_multiply_adds(net_args)
        graph = graph_of(net_args)
        longest = [0] * graph.num_nodes
        for source, target in graph.edges.tolist():
            longest[target] = max(longest[target], longest[source] + 1)
        assert depths[i] == longest[-1] == max(longest)
