"""Predicting and training with everything on a GPU, and where the time goes.

Skipped without a CUDA device. ``graph`` is the part of prediction that stays on the CPU. The
public code (ppuda, where it is importable) runs on the same card.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
import torch
from rates import CUDA, bytes_per_second, card, waiting
from torch import nn

import ghn_fast
from ghn_fast.ghn import GHN, ghn2
from ghn_fast.graph import Graph, GraphBatch
from ghn_fast.train import NetworkStream, TrainConfig, train_step
from ghn_fast.train.networks import Drawn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

IMAGENET = {"num_classes": 1000, "max_shape": (64, 64, 16, 16)}


def make_ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2(**IMAGENET).eval().to(CUDA)


def copying(model: nn.Module) -> Any:
    parameters = [parameter.detach() for parameter in model.parameters()]
    sources = [parameter.clone() for parameter in parameters]
    return lambda: torch._foreach_copy_(parameters, sources)


def initialising(name: str) -> Any:
    models = pytest.importorskip("torchvision.models")

    def initialise() -> nn.Module:
        with CUDA:
            return models.get_model(name)

    return initialise


def public(model: nn.Module) -> Any:
    peer = pytest.importorskip("ppuda.ghn.nn", reason="ppuda is not importable")
    ours = make_ghn()
    net = peer.GHN(**ours.config.to_dict(), debug_level=0).eval().to(CUDA)
    net.load_state_dict(ours.state_dict())
    try:
        net(model)
    except Exception as error:
        pytest.skip(f"ppuda fails: {type(error).__name__}: {error}")
    return lambda: net(model)


@pytest.mark.parametrize("way", ["ghn_fast", "graph_given", "graph", "copy", "random", "ppuda"])
@pytest.mark.parametrize("name", ["resnet50", "vit_l_16"])
def bench_predict(benchmark: Any, name: str, way: str) -> None:
    models = pytest.importorskip("torchvision.models")
    benchmark.group = f"predict {name}, cuda"
    model = models.get_model(name).eval().to(CUDA)
    size = sum(parameter.nbytes for parameter in model.parameters())
    benchmark.extra_info.update(
        mbytes=round(size / 1e6, 1),
        bytes_ms=round(1e3 * size / bytes_per_second(CUDA), 3),
        **card(CUDA),
    )
    ghn = make_ghn()
    graph = ghn.graph_of(model)
    ways = {
        "ghn_fast": lambda: lambda: ghn_fast.predict(model, ghn),
        "graph_given": lambda: lambda: ghn_fast.predict(model, ghn, graph=graph),
        "graph": lambda: lambda: Graph.from_model(model),
        "copy": lambda: copying(model),
        "random": lambda: initialising(name),
        "ppuda": lambda: public(model),
    }
    benchmark(waiting(ways[way](), CUDA))


@pytest.mark.parametrize(("networks", "images"), [(8, 64)])
def bench_train_step(benchmark: Any, networks: int, images: int) -> None:
    """A step of :func:`ghn_fast.train.train_step`; its parts are timed by the host.

    ``ghn_ms`` is the time of the GHN alone on the last step's graphs: forward to the parameters
    and backward from them.
    """
    benchmark.group = "training step, cuda"
    torch.manual_seed(0)
    config = TrainConfig(meta_batch=networks, image_batch=images)
    stream = NetworkStream(config, num_classes=10)
    ghn = ghn2().train().to(CUDA)
    optimizer = torch.optim.AdamW(ghn.parameters(), lr=1e-3, fused=True)
    x = torch.randn(images, 3, 32, 32, device=CUDA)
    y = torch.randint(10, (images,), device=CUDA)
    seconds: dict[str, float] = {}
    position, steps = 0, count()
    last: Sequence[Drawn] = ()

    def draw() -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal position
        drawn, position = stream.draw(position)
        return (drawn,), {}

    def step(drawn: Sequence[Drawn]) -> None:
        nonlocal last
        last = drawn
        graphs = GraphBatch([network.graph for network in drawn], CUDA)
        result = train_step(ghn, [network.model for network in drawn], graphs, x, y, optimizer)
        torch.cuda.synchronize()
        if next(steps) > 0:  # the first warms up
            for part, spent in result.seconds.items():
                seconds[part] = seconds.get(part, 0.0) + spent

    benchmark.pedantic(step, setup=draw, rounds=1 if benchmark.disabled else 12)
    total = sum(seconds.values())
    if total:
        benchmark.extra_info.update(
            {part: f"{100 * spent / total:.1f} %" for part, spent in seconds.items()}
        )
    benchmark.extra_info.update(ghn_ms=round(_ghn_milliseconds(ghn, last), 2), **card(CUDA))


def _ghn_milliseconds(ghn: GHN, drawn: Sequence[Drawn]) -> float:
    """By CUDA events, the best of some steps on one meta-batch."""
    graphs = GraphBatch([network.graph for network in drawn], CUDA)
    models = [network.model for network in drawn]
    own = [dict(module._parameters) for model in models for module in model.modules()]
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        ghn(models, graphs)
        predicted = [
            tensor
            for model in models
            for module in model.modules()
            for tensor in module._parameters.values()
            if tensor is not None and tensor.grad_fn is not None
        ]
        torch.autograd.backward(predicted, [torch.ones_like(tensor) for tensor in predicted])
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
        modules = (module for model in models for module in model.modules())
        for module, parameters in zip(modules, own, strict=True):
            module._parameters.update(parameters)
    return min(times)
