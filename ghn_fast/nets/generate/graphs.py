"""From the arguments of a DeepNets-1M network to its graph, without building or tracing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ghn_fast._core import core
from ghn_fast._system.collection import uncollected
from ghn_fast.graph.graph import Graph
from ghn_fast.graph.layout import Layout
from ghn_fast.graph.node import Node
from ghn_fast.graph.trace.unused import UNREACHED
from ghn_fast.graph.types import NODE_TYPES
from ghn_fast.nets.space.genotypes import from_dict
from ghn_fast.nets.space.network import build_net


def graph_of(
    net_args: Mapping[str, Any],
    num_classes: int = 10,
    is_imagenet_input: bool = False,
    index: int | None = None,
) -> Graph:
    """The graph of `Network(**net_args, ...)`: what `Graph.from_model` gives for it, node for node.

    Args:
        net_args: arguments of `Network` but the next two, or those of ResNet-50 in "predefined".
        num_classes: outputs.
        is_imagenet_input: whether the network is for 224 x 224 images.
        index: kept as `Graph.index`.

    Raises:
        ValueError: no path leads from the input to the output.
    """
    if net_args["genotype"] == "resnet50":
        with torch.device("meta"):
            model = build_net(net_args, num_classes, is_imagenet_input)
        graph = Graph.from_model(model)
        graph.net_args, graph.index = dict(net_args), index
        return graph
    arguments = {**net_args, "genotype": from_dict(net_args["genotype"])}
    with uncollected():
        types, edges, names, shapes, biases, unused = core.deepnets_graph(
            arguments, num_classes, is_imagenet_input
        )
        kinds = [NODE_TYPES[number] for number in types.tolist()]
        nodes = [
            Node(kind, name or kind, shape, name, bias)
            for kind, name, shape, bias in zip(kinds, names, shapes, biases, strict=True)
        ]
        return Graph(
            nodes=with_flat_head(nodes, net_args, is_imagenet_input),
            edges=torch.from_numpy(edges),
            unused=dict.fromkeys(unused, UNREACHED),
            net_args=dict(net_args),
            index=index,
        )


def flat_size(net_args: Mapping[str, Any], is_imagenet_input: bool) -> int:
    """Height and width of the maps that a network with ``glob_avg=False`` flattens."""
    pooled = net_args.get("stem_type", 0) == 1 or net_args.get("stem_pool", False)
    return (14 if is_imagenet_input else 8) // (2 if pooled else 1)


def with_flat_head(
    nodes: Sequence[Node], net_args: Mapping[str, Any], is_imagenet_input: bool
) -> tuple[Node, ...]:
    """The nodes of a network, with the note of what its first linear layer is over flattened
    maps (:attr:`Node.kernel`)."""
    if net_args.get("glob_avg", True):
        return tuple(nodes)
    size = flat_size(net_args, is_imagenet_input)
    kernel = Layout(((-1,), (-1, size, size)), ((0,), (1,), (2,), (3,)))
    return tuple(
        replace(node, kernel=kernel) if node.parameter == "classifier.0.weight" else node
        for node in nodes
    )
