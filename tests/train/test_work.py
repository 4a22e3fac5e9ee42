from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ghn_fast.nets import Network, sample_net_args
from ghn_fast.nets.measure.work import network_work


@pytest.mark.parametrize(("size", "num_classes"), [(32, 10), (224, 1000)])
@pytest.mark.parametrize("index", range(12))
def test_work_covers_the_multiply_adds(index: int, size: int, num_classes: int) -> None:
    """The estimate adds passes over memory to the arithmetic, so it is more, but not far more."""
    is_large = size == 224
    net_args = sample_net_args("train", 0, index, is_large)
    with torch.device("meta"):
        network = Network(num_classes=num_classes, is_imagenet_input=is_large, **net_args)
        images = torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        network(images)
    arithmetic = counter.get_total_flops() / 2e6
    work = network_work(net_args, size, num_classes, is_large)
    assert 0.9 * arithmetic < work < 10 * arithmetic


@pytest.mark.parametrize(
    ("index", "work"),
    [
        (0, 76.900106),
        (1, 63.275674),
        (3, 236.164138),
        (5, 327.424938),
        (7, 670.25793),
        (11, 42.802538),
    ],
)
def test_work_for_small_images_stays(index: int, work: float) -> None:
    """It decides which networks a run is trained on, also one that goes on."""
    assert network_work(sample_net_args("train", 0, index)) == work


@pytest.mark.parametrize(
    ("change", "more"),
    [({"C": 64}, True), ({"n_cells": 20}, True), ({"stem_pool": True}, False)],
)
def test_work_grows_with_the_network(change: dict[str, Any], more: bool) -> None:
    net_args = {**sample_net_args("train", 0, 3), "C": 32, "n_cells": 8}
    net_args.update(stem_type=0, stem_pool=False)
    assert (network_work({**net_args, **change}) > network_work(net_args)) is more
