"""The parameters that the public GHN-3 code predicts from the same checkpoint."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ghn_fast.checkpoint import load_ghn
from ghn_fast.ghn import GHN
from ghn_fast.ghn.place.tiling import EXTRA_ROW_STD
from ghn_fast.graph import Graph

CHECKPOINT = "ghn3_tiny_imagenet"
# The public code draws the class token's row of a position table from the global generator.
RANDOM_ROWS = ("encoder.pos_embedding",)

MODELS = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "swin_t",
    "vgg16_bn",
    "vit_b_16",
]


@functools.cache
def expectations(shared: Path) -> dict[str, Any]:
    content = json.loads((shared / "conformance" / "torchvision_16.json").read_text())
    return {
        key.partition("/")[2]: value
        for key, value in content.items()
        if key.startswith(f"{CHECKPOINT}/")
    }


@functools.cache
def checkpoint(shared: Path) -> GHN:
    return load_ghn(shared / "conformance" / "checkpoints" / f"{CHECKPOINT}_random.pt")


def build(name: str) -> nn.Module:
    options = {"init_weights": False} if name == "googlenet" else {}
    return getattr(torchvision.models, name)(**options)


def norm_and_dot(tensor: Tensor, angle: float = 0.37, width: int = 4096) -> tuple[float, float]:
    """The 2-norm and the sum of w_i cos(angle * i), in pieces: some tensors have 100 million."""
    within = angle * torch.arange(width).double()
    waves = torch.stack((within.cos(), within.sin()), dim=1)
    squares = total = 0.0
    for index, piece in enumerate(tensor.detach().flatten().split(256 * width)):
        rows = F.pad(piece.double(), (0, -len(piece) % width)).view(-1, width)
        real, imaginary = (rows @ waves).unbind(1)
        start = angle * width * (256 * index + torch.arange(len(rows)).double())
        total += float((real * start.cos() - imaginary * start.sin()).sum())
        squares += float(rows.square().sum())
    return squares**0.5, total


def test_norm_and_dot(generator: torch.Generator) -> None:
    tensor = torch.randn(3, 5000, generator=generator)
    expected = sum(w * math.cos(0.37 * i) for i, w in enumerate(tensor.flatten().tolist()))
    norm, dot = norm_and_dot(tensor, width=8)
    assert dot == pytest.approx(expected, abs=1e-6)
    assert norm == pytest.approx(float(tensor.norm()))


def test_models_are_those_of_the_file(shared: Path) -> None:
    assert sorted(expectations(shared)) == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_predicts_what_the_public_code_predicts(shared: Path, name: str) -> None:
    expected, ghn, model = expectations(shared)[name], checkpoint(shared), build(name)
    graph = Graph.from_model(model)
    assert graph.num_nodes == expected["nodes"]
    embedding = float(ghn.embed(graph).double().norm())
    assert embedding == pytest.approx(expected["embedding_mean_norm"], rel=1e-5)
    ghn(model, graph)
    parameters = dict(model.named_parameters())
    assert set(expected["params"]) <= set(parameters)
    for parameter, (count, norm, dot) in expected["params"].items():
        value = parameters[parameter]
        assert value.numel() == count
        found_norm, found_dot = norm_and_dot(value)
        tolerance = 1e-4 * norm + 1e-6
        assert found_norm == pytest.approx(norm, abs=tolerance), parameter
        if parameter in RANDOM_ROWS:
            tolerance += 6 * EXTRA_ROW_STD * value.shape[-1] ** 0.5
        assert found_dot == pytest.approx(dot, abs=tolerance), parameter
