"""Predicting a torchvision model, nothing cached, beside what it is compared to.

The peers are the model's own random initialisation, an in-place copy of its parameters (the least
that writing them takes), and the public code (ppuda, where it is importable).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ghn_fast
from ghn_fast.ghn import GHN, ghn2

MODELS = ("resnet18", "resnet50", "densenet121", "vit_b_16")
IMAGENET = {"num_classes": 1000, "max_shape": (64, 64, 16, 16)}


def predicting(ghn: GHN, model: nn.Module) -> Callable[[], object]:
    return lambda: ghn_fast.predict(model, ghn)


def copying(ghn: GHN, model: nn.Module) -> Callable[[], object]:
    parameters = [parameter.detach() for parameter in model.parameters()]
    sources = [parameter.clone() for parameter in parameters]
    return lambda: torch._foreach_copy_(parameters, sources)


def ppuda(ghn: GHN, model: nn.Module) -> Callable[[], object]:
    peer = pytest.importorskip("ppuda.ghn.nn", reason="ppuda is not importable")
    if type(model).__name__ == "VisionTransformer":
        pytest.skip("ppuda does not take torchvision's vision transformers")
    config = ghn.config.to_dict()
    public = peer.GHN(**config, debug_level=0).eval()
    public.load_state_dict(ghn.state_dict())
    return lambda: public(model)


def initialising(ghn: GHN, model: nn.Module, name: str) -> Callable[[], object]:
    from torchvision import models

    return lambda: models.get_model(name)


@pytest.mark.parametrize("way", ["ghn_fast", "random", "copy", "ppuda"])
@pytest.mark.parametrize("name", MODELS)
def bench_predict(benchmark: Any, name: str, way: str) -> None:
    from torchvision import models

    benchmark.group = f"predict {name}"
    torch.manual_seed(0)
    ghn, model = ghn2(**IMAGENET).eval(), models.get_model(name).eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    benchmark.extra_info["millions"] = round(count / 1e6, 1)
    ways = {"ghn_fast": predicting, "copy": copying, "ppuda": ppuda}
    run = initialising(ghn, model, name) if way == "random" else ways[way](ghn, model)
    benchmark(run)
