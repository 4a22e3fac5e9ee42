"""The graphs of the public implementations, and of networks that exist in two forms."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ghn_fast.graph import NODE_TYPES, Graph
from ghn_fast.nets import Network, adjust_net

torchvision_models = pytest.importorskip("torchvision.models")

GHN3_MODELS = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5"),
    *("mobilenet_v2", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50"),
    *("shufflenet_v2_x1_0", "squeezenet1_1", "swin_t", "vgg16_bn", "vit_b_16"),
)
GHN2_CIFAR_MODELS = (
    *("alexnet", "convnext_tiny", "densenet121", "mobilenet_v2", "resnet18", "resnet50"),
    "vgg16_bn",
)


@lru_cache
def entries(shared: Path, name: str) -> Any:
    return json.loads((shared / "conformance" / name).read_text())


def on_meta(name: str, **kwargs: Any) -> torch.nn.Module:
    if name == "googlenet":
        kwargs["init_weights"] = False
    if name.startswith("regnet"):  # its constructor computes with tensors
        return torchvision_models.get_model(name, **kwargs)
    with torch.device("meta"):
        return torchvision_models.get_model(name, **kwargs)


def count_types(graph: Graph) -> list[int]:
    """How many nodes there are of each type, in the order of ``NODE_TYPES``."""
    return torch.bincount(graph.node_types, minlength=len(NODE_TYPES)).tolist()


def assert_same(graph: Graph, expected: dict[str, Any]) -> None:
    distances = graph.distances.long()
    assert {
        "nodes": graph.num_nodes,
        "types": count_types(graph),
        "edges_1hop": len(graph.edges),
        "edges_all": int((distances > 0).sum()),
        "dist_sum": int(distances.sum()),
    } == {key: expected[key] for key in ("nodes", "types", "edges_1hop", "edges_all", "dist_sum")}
    assert set(graph.other) == set(expected["untouched"])
    assert graph.unused == {}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", GHN3_MODELS)
def test_torchvision(shared: Path, name: str, training: bool) -> None:
    expected = entries(shared, "torchvision_16.json")[f"ghn3_tiny_imagenet/{name}"]
    assert_same(Graph.from_model(on_meta(name).train(training)), expected)


@pytest.mark.parametrize("name", GHN2_CIFAR_MODELS)
def test_torchvision_on_small_images(shared: Path, name: str) -> None:
    expected = entries(shared, "torchvision_16.json")[f"ghn2_cifar10/{name}"]
    assert_same(Graph.from_model(adjust_net(on_meta(name, num_classes=10))), expected)


@pytest.mark.parametrize("index", range(20))
def test_deepnets(shared: Path, index: int) -> None:
    entry = entries(shared, "deepnets_20.json")[index]
    with torch.device("meta"):
        model = Network(num_classes=10, is_imagenet_input=False, **entry["net_args"])
    graph = Graph.from_model(model)
    distances = graph.distances.long()
    assert graph.num_nodes == entry["nodes"]
    assert count_types(graph) == entry["types"]
    assert len(graph.edges) == entry["edges_1hop"]
    assert int((distances > 0).sum()) == entry["edges_all"]
    assert int(distances.sum()) == entry["dist_sum"]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_last_nodes_are_the_classifier(name: str) -> None:
    with torch.device("meta"):
        model = torchvision_models.get_model(name, init_weights=False)
    nodes = Graph.from_model(model.eval()).nodes
    assert [node.parameter for node in nodes[-2:]] == ["fc.weight", "fc.bias"]
    assert any((node.parameter or "").startswith(("aux1", "AuxLogits")) for node in nodes)
