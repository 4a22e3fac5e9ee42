"""A training step of 8 networks and 64 images, and the share of it that is the GHN's own.

The networks are of the train split with the widths and the work that a CPU can afford; all else
of the step (batching, prediction, backward through the GHN, optimiser) is the GHN's.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch

from ghn_fast._system.workers import one_core_workers
from ghn_fast.ghn import ghn2
from ghn_fast.graph import GraphBatch
from ghn_fast.train import NetworkStream, TrainConfig, train_step

TARGETS = "networks"
"""The part of a step that is spent in the target networks."""


@pytest.mark.parametrize(("networks", "images"), [(2, 32), (8, 64)])
def bench_train_step(benchmark: Any, networks: int, images: int) -> None:
    benchmark.group = "training step"
    torch.manual_seed(0)
    config = TrainConfig(
        meta_batch=networks,
        image_batch=images,
        widths=(32, 48, 64, 96, 128),
        max_work=60.0,
        max_parameters=6_000_000,
    )
    stream = NetworkStream(config, num_classes=10)
    ghn = ghn2().train()
    optimizer = torch.optim.AdamW(ghn.parameters(), lr=1e-3, fused=True)
    x = torch.randn(images, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (images,))
    seconds: dict[str, float] = {}
    nodes = []
    position = 0
    steps = count()

    def draw() -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal position
        drawn, position = stream.draw(position)
        return (drawn,), {}

    with one_core_workers(torch.get_num_threads()) as workers:

        def step(drawn: Any) -> None:
            graphs = GraphBatch([network.graph for network in drawn])
            nets = [network.model for network in drawn]
            result = train_step(ghn, nets, graphs, x, y, optimizer, workers=workers)
            if next(steps) > 0:  # the first warms up
                nodes.append(int(graphs.num_nodes.sum()))
                for part, spent in result.seconds.items():
                    seconds[part] = seconds.get(part, 0.0) + spent

        benchmark.pedantic(step, setup=draw, rounds=1 if benchmark.disabled else 12)
    if seconds:
        total = sum(seconds.values())
        shares = {part: f"{100 * spent / total:.1f} %" for part, spent in seconds.items()}
        own = 100 * (1 - seconds[TARGETS] / total)
        mean = round(sum(nodes) / len(nodes))
        benchmark.extra_info.update(
            mean_nodes=mean, **shares, ghn=f"{own:.1f} %", limit="10 % of 8 x 64"
        )
