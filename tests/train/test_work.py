from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ghn_fast.nets import Network, sample_net_args
from ghn_fast.train.work import network_work


@pytest.mark.parametrize("index", range(8))
def test_work_covers_the_multiply_adds(index: int) -> None:
    """The estimate adds passes over memory to the arithmetic, so it is more, but not far more."""
    net_args = sample_net_args("train", 0, index)
    with torch.device("meta"):
        network = Network(num_classes=10, is_imagenet_input=False, **net_args)
        images = torch.empty(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        network(images)
    arithmetic = counter.get_total_flops() / 2e6
    assert 0.9 * arithmetic < network_work(net_args) < 30 * arithmetic


@pytest.mark.parametrize(
    ("change", "more"),
    [({"C": 64}, True), ({"n_cells": 20}, True), ({"stem_pool": True}, False)],
)
def test_work_grows_with_the_network(change: dict[str, Any], more: bool) -> None:
    net_args = {**sample_net_args("train", 0, 3), "C": 32, "n_cells": 8}
    net_args.update(stem_type=0, stem_pool=False)
    assert (network_work({**net_args, **change}) > network_work(net_args)) is more
