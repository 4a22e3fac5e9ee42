"""Predicting torchvision models, beside what it is compared to.

``ghn_fast`` starts from a plain module, nothing cached; ``graph_given`` from its graph, with the
plan of an earlier time. The peers are an in-place copy of the parameters (the least that writing
them takes), the model's own random initialisation, and the public codes (ppuda for GHN-2, ghn3 for
GHN-3-T, where they are importable). All GHNs have random weights.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ghn_fast
from ghn_fast.ghn import GHN, ghn2, ghn3
from ghn_fast.ghn.model import _plans as plans

models = pytest.importorskip("torchvision.models")

MODELS = (
    *("mobilenet_v3_small", "resnet18", "resnet50", "densenet121", "vit_b_16"),
    "efficientnet_b7",
)
IMAGENET = {"num_classes": 1000, "max_shape": (64, 64, 16, 16)}
LIMITS = {
    ("resnet50", "ghn_fast"): "4 copies, half of random",
    ("resnet50", "graph_given"): "2 copies",
}
TOO_LARGE = 120_000_000
"""parameters; the public codes need many times their memory"""

Run = Callable[[], object]


@functools.lru_cache
def our_ghn2() -> GHN:
    torch.manual_seed(0)
    return ghn2(**IMAGENET).eval()


@functools.lru_cache
def our_ghn3() -> GHN:
    torch.manual_seed(0)
    return ghn3("t").eval()


@functools.lru_cache
def ppuda_ghn2() -> nn.Module:
    peer = pytest.importorskip("ppuda.ghn.nn", reason="ppuda is not importable")
    public = peer.GHN(**our_ghn2().config.to_dict(), debug_level=0).eval()
    public.load_state_dict(our_ghn2().state_dict())
    return public


@functools.lru_cache
def public_ghn3() -> nn.Module:
    peer = pytest.importorskip("ghn3.nn", reason="ghn3 is not importable")
    shape = (64, 64, 16, 16)
    return peer.GHN3(shape, 1000, 64, weight_norm=True, ve=True, layernorm=True).eval()


def make_model(name: str) -> nn.Module:
    return models.get_model(name, **_arguments(name)).eval()


def predicting(model: nn.Module) -> Run:
    return lambda: _predict(model, our_ghn2())


def _predict(model: nn.Module, ghn: GHN) -> None:
    plans.clear()
    ghn_fast.predict(model, ghn)


def with_graph(model: nn.Module) -> Run:
    graph = our_ghn2().graph_of(model)
    return lambda: ghn_fast.predict(model, our_ghn2(), graph=graph)


def predicting_ghn3(model: nn.Module) -> Run:
    return lambda: _predict(model, our_ghn3())


def copying(model: nn.Module) -> Run:
    parameters = [parameter.detach() for parameter in model.parameters()]
    sources = [parameter.clone() for parameter in parameters]
    return lambda: torch._foreach_copy_(parameters, sources)


def ppuda(model: nn.Module) -> Run:
    public = ppuda_ghn2()
    return lambda: public(model)


def public(model: nn.Module) -> Run:
    peer = public_ghn3()
    return lambda: peer(model)


WAYS: dict[str, Callable[[nn.Module], Run]] = {
    "ghn_fast": predicting,
    "graph_given": with_graph,
    "copy": copying,
    "ppuda": ppuda,
    "ghn_fast, GHN-3-T": predicting_ghn3,
    "ghn3, GHN-3-T": public,
}


@pytest.mark.parametrize("way", [*WAYS, "random"])
@pytest.mark.parametrize("name", MODELS)
def bench_predict(benchmark: Any, name: str, way: str) -> None:
    benchmark.group = f"predict {name}"
    model = make_model(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    benchmark.extra_info.update(parameters=count, way=way)
    if (name, way) in LIMITS:
        benchmark.extra_info["limit"] = LIMITS[name, way]
    run = functools.partial(models.get_model, name) if way == "random" else WAYS[way](model)
    run_or_skip(run, way, name)
    benchmark(run)


@pytest.mark.parametrize("threads", [1, 2])
def bench_threads(benchmark: Any, threads: int) -> None:
    benchmark.group = "predict resnet50, by threads"
    benchmark.extra_info.update(threads=threads, way="ghn_fast")
    run = predicting(make_model("resnet50"))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        benchmark(run)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("peer", "mine"), [("ppuda", "ghn_fast"), ("ghn3, GHN-3-T", "ghn_fast, GHN-3-T")]
)
def bench_all_torchvision(benchmark: Any, peer: str, mine: str) -> None:
    """All classifiers on which a public code works: its time by ours, in one run.

    CPU time of one thread, which other work on the machine disturbs least.
    """
    benchmark.group = "predict all torchvision classifiers"
    benchmark.extra_info["limit"] = "10 in the mean, none below 4"
    names = ["resnet18"] if benchmark.disabled else models.list_models(module=models)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ratios = benchmark.pedantic(lambda: {name: _ratio(name, peer, mine) for name in names})
    finally:
        torch.set_num_threads(before)
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    if not known:
        pytest.skip(f"{peer} fails on all of them")
    worst = min(known, key=lambda name: known[name])
    benchmark.extra_info.update(
        peer=peer,
        models=len(known),
        peer_by_ours=round(statistics.geometric_mean(known.values()), 1),
        least=f"{known[worst]:.1f} ({worst})",
        below_4=sum(ratio < 4 for ratio in known.values()),
    )


def _ratio(name: str, peer: str, mine: str) -> float | None:
    if models.get_model_weights(name).DEFAULT.meta["num_params"] > TOO_LARGE:
        return None
    model = make_model(name)
    try:
        slow = _seconds(WAYS[peer](model), 2)
    except Exception:
        return None
    return slow / _seconds(WAYS[mine](make_model(name)), 2)


def _arguments(name: str) -> dict[str, Any]:
    """Of the two models whose own initialisation takes half a minute."""
    return {"init_weights": False} if name in ("googlenet", "inception_v3") else {}


def _seconds(run: Run, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def run_or_skip(run: Run, way: str, name: str) -> None:
    """Once, so that a public code that cannot do the model is skipped."""
    if way not in ("ppuda", "ghn3, GHN-3-T"):
        return
    try:
        run()
    except Exception as error:
        pytest.skip(f"{way} fails on {name}: {type(error).__name__}: {error}")
