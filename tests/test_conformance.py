"""The same parameters as the public implementations, from the same checkpoints."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ghn_fast.checkpoint import from_pretrained
from ghn_fast.ghn import GHN
from ghn_fast.graph import NODE_TYPES, Graph
from ghn_fast.nets import DeepNets1M, Network, adjust_net

# Entries of the file, without those of GHN-3 that take longest; tests/ghn/test_ghn3.py has more.
TORCHVISION = [
    f"ghn2_{data}/{model}"
    for data in ("cifar10", "imagenet")
    for model in (
        "resnet18",
        "resnet50",
        "mobilenet_v2",
        "densenet121",
        "vgg16_bn",
        "alexnet",
        "convnext_tiny",
    )
] + ["ghn2_imagenet/regnet_x_400mf"]
DEEPNETS = range(20)
GHNS = ("ghn1_cifar10", "ghn2_cifar10", "mlp_cifar10")


@lru_cache
def entries(shared: Path, name: str) -> Any:
    return json.loads((shared / "conformance" / name).read_text())


@lru_cache
def checkpoint(shared: Path, name: str) -> GHN:
    return from_pretrained(shared / "conformance" / "checkpoints" / f"{name}_random.pt")


def torchvision_model(entry: str) -> nn.Module:
    from torchvision import models

    ghn, name = entry.split("/")
    if ghn.endswith("cifar10"):
        return adjust_net(models.get_model(name, num_classes=10))
    return models.get_model(name)


def assert_same_graph(graph: Graph, expected: dict[str, Any]) -> None:
    assert graph.num_nodes == expected["nodes"]
    counts = torch.bincount(graph.node_types, minlength=len(NODE_TYPES)).tolist()
    assert counts == expected["types"]
    assert len(graph.edges) == expected["edges_1hop"]
    assert int((graph.distances > 0).sum()) == expected["edges_all"]
    assert int(graph.distances.sum(dtype=torch.int64)) == expected["dist_sum"]


def assert_same_parameters(model: nn.Module, ghn: GHN, graph: Graph, expected: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    ghn(model, graph)
    embedding = float(ghn.embed(graph.matched(model)).norm())
    assert embedding == pytest.approx(expected["embedding_mean_norm"], rel=1e-4)
    parameters = dict(model.named_parameters())
    assert expected["params"]
    for name, (count, norm, dot) in expected["params"].items():
        values = parameters[name].detach().double().flatten()
        assert len(values) == count, name
        tolerance = 1e-4 * norm + 1e-6
        waves = torch.cos(0.37 * torch.arange(count, dtype=torch.float64))
        assert float(values.norm()) == pytest.approx(norm, abs=tolerance, rel=0), name
        assert float(values @ waves) == pytest.approx(dot, abs=tolerance, rel=0), name


@pytest.mark.parametrize("entry", TORCHVISION)
def test_torchvision(entry: str, shared: Path) -> None:
    expected = entries(shared, "torchvision_16.json")[entry]
    model = torchvision_model(entry)
    graph = Graph.from_model(model)
    assert_same_graph(graph, expected)
    assert_same_parameters(model, checkpoint(shared, entry.split("/")[0]), graph, expected)


@pytest.mark.parametrize("index", DEEPNETS)
def test_deepnets_graph(index: int, shared: Path) -> None:
    expected = entries(shared, "deepnets_20.json")[index]
    net = Network(**expected["net_args"], num_classes=10, is_imagenet_input=False)
    graph = Graph.from_model(net)
    counts = torch.bincount(graph.node_types, minlength=len(NODE_TYPES))
    missed = counts - torch.tensor(expected["types"])
    # The public code finds attention and squeeze-and-excitation by the positions of autograd nodes
    # and misses them in some networks with recent versions of PyTorch; all else is equal.
    attention_or_gate = torch.tensor([name in ("msa", "cse") for name in NODE_TYPES])
    assert (missed >= 0).all()
    assert (missed[~attention_or_gate] == 0).all()
    if missed.sum() == 0:
        assert_same_graph(graph, expected)


@pytest.mark.parametrize("index", DEEPNETS)
def test_deepnets_predictions(index: int, shared: Path) -> None:
    """On the graphs of the published file, which is what the public code predicted from.

    Its writer lists the nodes cell by cell beside distances in topological order, so that these
    graphs are not quite those of the networks; a checkpoint trained on them expects them so.
    """
    expected = entries(shared, "deepnets_20.json")[index]
    graph = DeepNets1M("train", nets_dir=shared / "conformance" / "deepnets1m")[index]
    for name in GHNS:
        net = Network(**expected["net_args"], num_classes=10, is_imagenet_input=False)
        assert_same_parameters(net, checkpoint(shared, name), graph, expected["predictions"][name])
