"""The networks that people take off the shelf."""

from __future__ import annotations

import pytest

from ghn_fast.graph import Graph
from ghn_fast.nets.families.ghosts import Ghosts
from ghn_fast.nets.families.named import named_architectures
from ghn_fast.nets.families.signature import signature
from ghn_fast.nets.zoo import TORCHVISION, build_zoo_net, zoo_names


@pytest.mark.parametrize("name", [*TORCHVISION[:20:3], "vit_b_16", *zoo_names()[50::6]])
def test_a_network_is_fitted_to_small_images_and_never_trained_on(name: str) -> None:
    with Ghosts(seed=0):
        model = build_zoo_net(name, num_classes=7)
    graph = Graph.from_model(model)
    last = [node.shape for node in graph.nodes if node.parameter is not None][-1]
    assert last == (7,)
    assert signature(graph) in named_architectures()


def test_names_are_different_and_known() -> None:
    names = zoo_names()
    assert names[:20] == TORCHVISION[:20]
    assert len(set(names)) == len(names) >= 50
    with pytest.raises(ValueError, match="unknown network 'resnet19' of the zoo; there are resnet"):
        build_zoo_net("resnet19")
