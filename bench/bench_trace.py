"""From a model to its graph: tracing, contraction and distances, all included.

Compares with the public codes (ghn3, ppuda) where they are importable and can do the model, on a
few models of each kind; ``trace_all.py`` does it for all classifiers of torchvision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ghn_fast.graph import Graph
from ghn_fast.graph.trace.contract import contract, contract_reference
from ghn_fast.graph.trace.tracer import trace

models = pytest.importorskip("torchvision.models")

MODELS = (
    *("resnet18", "resnet50", "mobilenet_v3_large", "densenet121", "convnext_tiny"),
    *("swin_t", "vit_b_16", "efficientnet_b0", "regnet_y_400mf", "googlenet"),
)
LIMITS_MS = {"resnet50": 20.0}


def ours(model: nn.Module) -> Callable[[], Any]:
    return lambda: Graph.from_model(model)


def ghn3(model: nn.Module) -> Callable[[], Any]:
    peer = pytest.importorskip("ghn3.graph", reason="ghn3 is not importable")
    return lambda: peer.Graph(model, verbose=False)


def ppuda(model: nn.Module) -> Callable[[], Any]:
    peer = pytest.importorskip("ppuda.deepnets1m.graph", reason="ppuda is not importable")
    return lambda: peer.Graph(model)


BUILDERS = {"ghn_fast": ours, "ghn3": ghn3, "ppuda": ppuda}


def make_model(name: str) -> nn.Module:
    kwargs = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return models.get_model(name, **kwargs)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("name", MODELS)
def bench_graph(benchmark, name: str, builder: str) -> None:
    benchmark.group = f"graph of {name}"
    model = make_model(name)
    build = BUILDERS[builder](model)
    if name in LIMITS_MS and builder == "ghn_fast":
        benchmark.extra_info["limit_ms"] = LIMITS_MS[name]
    benchmark.extra_info["nodes"] = Graph.from_model(model).num_nodes
    try:
        build()
    except Exception as error:
        pytest.skip(f"{builder} fails on {name}: {type(error).__name__}: {error}")
    benchmark(build)


@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def bench_trace(benchmark, name: str) -> None:
    """Without the distances."""
    benchmark.group = f"parts of the graph of {name}"
    with torch.device("meta"):
        model = make_model(name)
    benchmark(lambda: trace(model))


@pytest.mark.parametrize("backend", [contract, contract_reference])
def bench_contract(benchmark, backend: Callable[..., Any]) -> None:
    """A chain of blocks with a residual sum over four contracted records, 5,000 records."""
    benchmark.group = "contraction"
    kinds, parents = [1], [()]
    for block in range(0, 5000, 5):
        kinds += [1, 0, 0, 0, 2]
        parents += [(block,), *((block + i,) for i in (1, 2, 3)), (block, block + 4)]
    benchmark(lambda: backend(kinds, parents, [len(kinds) - 1]))
