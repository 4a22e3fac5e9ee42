"""The graph of a network: operations and parameters as nodes, data flow as edges."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ghn_fast.graph.node import Node
from ghn_fast.graph.types import CHANNEL_NODE_TYPES, LANGUAGE_NODE_TYPES, NODE_TYPES
from ghn_fast.ops.shortest_paths import MAX_DISTANCE, as_pairs, check_edges, shortest_paths

_TYPE_INDEX = {
    name: index
    for types in (LANGUAGE_NODE_TYPES, CHANNEL_NODE_TYPES)
    for index, name in enumerate(types)
}

if TYPE_CHECKING:
    from ghn_fast.graph.draw.picture import Drawing


@dataclass(eq=False)
class Graph:
    """A directed acyclic graph of operations (arXiv 2110.13100, section 2).

    Attributes:
        nodes: N nodes in topological order, the input first. In a classifier the last two are
            the weight and the bias of the classification layer.
        edges: (E, 2) int64, the 1-hop edges (source, target), sorted and unique; on the CPU.
        max_distance: paths longer than this have no virtual edge.
        unused: parameters that no node carries, and why.
        other: parameters that reach the output but are no layer of the published definition of
            the graph (class tokens, layer scales, embeddings, ...), and what they are.
        heads: the last node of the output layer (its bias, or its weight where it has none), if the
            first output comes from one layer and has no positions, as that of a classifier: one
            value a class. Those of several layers if it is their sum or mean, as that of networks
            with a head for distillation. Empty if it has none; where left out, what ends the
            graph as a classifier of the published graphs ends.
        net_args: what builds the network, for graphs of DeepNets-1M.
        index: position in its split, for graphs of DeepNets-1M.
        types: what its nodes could be when a model was traced; None where that makes no difference,
            as for graphs of DeepNets-1M.
        node_types: (N,) int64, indices into ``NODE_TYPES``, or into the longer list that a graph
            has the types of: ``LANGUAGE_NODE_TYPES`` and ``CHANNEL_NODE_TYPES`` begin with these.
        distances: (N, N) uint8, shortest path lengths from 1 to ``max_distance``, else 0; computed
            when they are first asked for.

    Raises:
        ValueError: an unknown node type, or an edge out of range or against the order.

    Examples:
        >>> graph = ghn_fast.Graph.from_model(torchvision.models.resnet18(num_classes=10))
        >>> [node.type for node in graph.nodes[:4]]
        ['input', 'conv', 'bn', 'max_pool']
        >>> graph.distances.shape
        torch.Size([..., ...])
    """

    nodes: tuple[Node, ...]
    edges: Tensor
    max_distance: int = MAX_DISTANCE
    unused: Mapping[str, str] = field(default_factory=dict)
    other: Mapping[str, str] = field(default_factory=dict)
    heads: tuple[int, ...] = (-1,)
    net_args: dict[str, Any] | None = None
    index: int | None = None
    types: tuple[str, ...] | None = None
    node_types: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = tuple(self.nodes)
        given = self.edges
        if not isinstance(given, Tensor):
            given = torch.tensor(given, dtype=torch.int64, device="cpu")
        edges = as_pairs(given).cpu()
        self.edges = edges if _ascending(edges) else torch.unique(edges, dim=0)
        self.node_types = torch.tensor(_type_indices(self.nodes), dtype=torch.int64, device="cpu")
        check_edges(len(self.nodes), self.edges)
        if self.heads == (-1,):
            self.heads = _published_heads(self.nodes)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        example_inputs: Any = None,
        types: tuple[str, ...] = NODE_TYPES,
    ) -> Graph:
        """The graph of a model, which is left exactly as it was.

        Args:
            model: any module that can be called.
            example_inputs: what to call it with: a tensor, a tuple of arguments or a dict of
                keyword arguments. Without it the input is worked out from the model.
            types: of its nodes, ``NODE_TYPES``, ``LANGUAGE_NODE_TYPES`` or
                ``CHANNEL_NODE_TYPES``; a GHN says which it knows
                (:attr:`ghn_fast.GHN.node_types`).

        Raises:
            TypeError: the model is no module.
            ghn_fast.graph.TraceError: the model could not be run; says what to pass.
        """
        from ghn_fast.graph.trace import trace

        traced = trace(model, example_inputs, types)
        return cls(
            nodes=tuple(traced.nodes),
            edges=torch.from_numpy(traced.edges),
            unused=traced.unused,
            other=traced.other,
            heads=traced.heads,
            types=types,
        )

    @cached_property
    def distances(self) -> Tensor:
        return shortest_paths(len(self.nodes), self.edges, self.max_distance)

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    def matched(self, model: nn.Module) -> Graph:
        """This graph with the shapes of a model's parameters, or itself if they are its own.

        The same architecture at another width has the same graph but for its shapes, and factors
        (:attr:`Node.factor`) that follow from the width.

        Raises:
            ValueError: the model lacks a parameter of the graph, or has one that the graph, which
                was traced, does not name.
        """
        return self.with_shapes(dict(model.named_parameters(remove_duplicate=False)))

    def with_shapes(self, parameters: Mapping[str, Tensor]) -> Graph:
        """:meth:`matched`, for a model's parameters by all of their names."""
        self._check_names(parameters)
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        nodes = tuple(_with_shape(node, shapes) for node in self.nodes)
        return self if nodes == self.nodes else replace(self, nodes=nodes)

    def _check_names(self, parameters: Mapping[str, Tensor]) -> None:
        carried = (name for node in self.nodes for name in (node.parameter, node.bias) if name)
        names = (*carried, *self.other, *self.unused)
        for name in names:
            if name not in parameters:
                raise _foreign(f"the graph has parameter {name!r}, which the model has not")
        # A trace accounts for every parameter; graphs of given nodes may leave some out.
        known = {id(parameters[name]) for name in names}
        for name, parameter in parameters.items():
            if self.types is not None and id(parameter) not in known:
                raise _foreign(f"the model has parameter {name!r}, which the graph has not")

    def digest(self) -> str:
        """Hexadecimal SHA-256 of the types, names, shapes and edges."""
        nodes = [repr((node.type, node.parameter, node.bias, node.shape)) for node in self.nodes]
        content = hashlib.sha256("".join(nodes).encode())
        content.update(self.edges.numpy().tobytes())
        content.update(bytes([self.max_distance]))
        return content.hexdigest()

    def draw(self, path: str | Path | None = None, title: str | None = None) -> Drawing:
        """A picture that shows itself in a notebook and can be saved (``ghn_fast.graph.draw``)."""
        from ghn_fast.graph.draw import draw

        return draw(self, path, title)

    def _repr_svg_(self) -> str:
        """The graph as a notebook shows it."""
        from ghn_fast.graph.draw import svg

        return svg(self)

    def to_networkx(self) -> Any:
        """A ``networkx.DiGraph`` of the 1-hop edges; nodes have the fields of :class:`Node`.

        Raises:
            ImportError: networkx is not installed.
        """
        import networkx

        graph = networkx.DiGraph()
        graph.add_nodes_from((index, vars(node)) for index, node in enumerate(self.nodes))
        graph.add_edges_from(self.edges.tolist())
        return graph

    def __repr__(self) -> str:
        parameters = sum(node.parameter is not None for node in self.nodes)
        return f"Graph({self.num_nodes} nodes, {len(self.edges)} edges, {parameters} weights)"


def _published_heads(nodes: Sequence[Node]) -> tuple[int, ...]:
    """The last node, if it is the bias of a linear layer or a pointwise convolution."""
    if len(nodes) < 2:
        return ()
    weight, bias = nodes[-2:]
    if weight.type != "conv" or bias.type != "bias" or len(weight.shape or ()) < 2:
        return ()
    outputs, _, *kernel = weight.shape or ()
    fits = outputs == (bias.shape or (0,))[0] and max(kernel, default=1) == 1
    return (len(nodes) - 1,) if fits else ()


def _ascending(edges: Tensor) -> bool:
    """Whether edges are sorted and unique, as those of a trace are."""
    pairs = edges.numpy()
    source, target = pairs[:, 0], pairs[:, 1]
    same = source[1:] == source[:-1]
    return bool(((source[1:] > source[:-1]) | (same & (target[1:] > target[:-1]))).all())


def _with_shape(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> Node:
    if node.parameter is None:
        return node
    shape, storage = shapes[node.parameter], node.storage
    if storage is not None:
        storage = replace(storage, shape=shape)
        shape = storage.used_shape()
    if node.origins is not None:
        node.origins.shape(shape)
    return node if shape == node.shape else replace(node, shape=shape, storage=storage)


def _foreign(fault: str) -> ValueError:
    return ValueError(f"{fault}: they are not of the same network")


def _type_indices(nodes: Sequence[Node]) -> list[int]:
    try:
        return [_TYPE_INDEX[node.type] for node in nodes]
    except KeyError as error:
        raise ValueError(
            f"unknown node type {error.args[0]!r}; known types: {', '.join(_TYPE_INDEX)}"
        ) from None
