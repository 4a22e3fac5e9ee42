"""From a model to its graph: tracing, contraction and distances, all included.

Compares with the public codes (ghn3, ppuda) where they are importable and can do the model. The
models are those that take them least to most; ``bench_all_torchvision`` gives the geometric mean
over all classifiers that fit into memory beside each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ghn_fast.graph import Graph
from ghn_fast.graph.contract import contract, contract_reference
from ghn_fast.graph.trace import trace

models = pytest.importorskip("torchvision.models")

MODELS = (
    *("resnet18", "resnet50", "mobilenet_v3_large", "densenet121", "convnext_tiny"),
    *("swin_t", "vit_b_16", "efficientnet_b0", "regnet_y_400mf", "googlenet"),
)
LIMITS_MS = {"resnet50": 20.0}
TOO_LARGE = 120_000_000
"""parameters; the public codes need many times their memory"""


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


def bench_all_torchvision(benchmark) -> None:
    """The geometric mean, over all classifiers, of ghn3's time by ours, both sides in one run."""
    benchmark.group = "graphs of all torchvision classifiers"
    names = models.list_models(module=models)
    ratios = {}
    if not benchmark.disabled:
        for name in names:
            ratio = _ratio(name)
            if ratio is not None:
                ratios[name] = ratio
        mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
        worst = min(ratios, key=lambda name: ratios[name])
        benchmark.extra_info.update(
            models=len(ratios),
            ghn3_by_ours=round(mean, 1),
            least=f"{ratios[worst]:.1f} ({worst})",
            limit=10,
        )
    with torch.device("meta"):
        model = make_model("resnet50")
    benchmark(ours(model))


def _ratio(name: str) -> float | None:
    model = make_model(name)
    if sum(p.numel() for p in model.parameters()) > TOO_LARGE:
        return None
    mine, theirs = ours(model), ghn3(model)
    try:
        slow = _seconds(theirs, 1)
    except Exception:
        return None
    return slow / _seconds(mine, 3)


def _seconds(function: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
