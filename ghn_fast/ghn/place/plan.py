"""What a GHN predicts for a batch of graphs: which nodes, into which parameters, by which rule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from ghn_fast.ghn.config import GHNConfig
from ghn_fast.ghn.place.keep import (
    EMBEDDING,
    EMPTY,
    MISSHAPEN,
    NO_NODE,
    NORM_OFFSET,
    SCALAR,
    STACKED,
    STACKED_BIAS,
    TOO_MANY_DIMENSIONS,
    complex_values,
    output_layer,
)
from ghn_fast.ghn.place.uses import Uses
from ghn_fast.graph import Graph, GraphBatch, Node, Storage

NORM_TYPES = ("bn", "ln", "rmsnorm")


class Target(NamedTuple):
    """One parameter of one model, and the node it is decoded from.

    Attributes:
        storage: where the parameter is stored in another shape than it is decoded in.
    """

    graph: int
    node: int
    parameter: str
    storage: Storage | None = None

    def view(self, stored: Tensor) -> Tensor:
        """A parameter's elements in the shape that is decoded (:meth:`Layout.view`)."""
        return stored if self.storage is None else self.storage.view(stored)

    def stored(self, decoded: Tensor) -> Tensor:
        """What was decoded, in the shape of the parameter."""
        return decoded if self.storage is None else self.storage.stored(decoded)


def keep_copies(
    targets: Sequence[Target], views: Sequence[Tensor], parameters: Sequence[Tensor]
) -> None:
    """Copies what was written into views that are no memory of the parameters."""
    for target, view, parameter in zip(targets, views, parameters, strict=True):
        if target.storage is not None and view.data_ptr() != parameter.data_ptr():
            parameter.copy_(target.stored(view))


def as_stored(targets: Sequence[Target], decoded: Iterable[Tensor]) -> list[Tensor]:
    """What was decoded for each target, in the shape of its parameter."""
    return [target.stored(tensor) for target, tensor in zip(targets, decoded, strict=True)]


@dataclass(frozen=True)
class Group:
    """Parameters of one shape that are decoded, tiled and normalised together.

    Attributes:
        rule: one of

            - ``weight``: of convolutions, linear layers and small embeddings;
            - ``transposed_weight``: of transposed convolutions, decoded (in, out, ...) as by the
              published GHNs, normalised by the fan-in it has;
            - ``video_weight``: the kernel (out, in, h, w), the same at each of t times and
              divided by t, so that a still image gives what the image kernel gives
              (arXiv 1705.07750, section 2.4);
            - ``pos_enc``: tables of positions;
            - ``embedding``: tables of which single rows are looked up, as they are decoded;
            - ``norm_weight``, ``norm_bias``, ``bias``: vectors; where they have several
              dimensions, along the first that is larger than one;
            - ``class_weight``, ``class_bias``: of the classification layer.
        shape: of each parameter, as it is decoded.
        fan_in: of a weight, where it does not follow from the shape.
        std: of a language model's weights, as its configuration says, whatever is decoded.
        factor: by which the layers multiply their weights, so that what is decoded is divided by
            it (:attr:`ghn_fast.graph.Node.factor`).
        targets: where the predicted tensors go; ``node`` counts through the whole batch.
    """

    rule: str
    shape: tuple[int, ...]
    fan_in: float | None = None
    std: float | None = None
    factor: float = 1.0
    targets: Sequence[Target] = ()

    @property
    def nodes(self) -> list[int]:
        return [target.node for target in self.targets]


@dataclass(frozen=True)
class Plan:
    """All groups of a batch, and for each graph the parameters that are in none.

    Plans are kept for the next model of the same architecture, so nothing of them can be changed.

    Attributes:
        groups: every parameter that is decoded from a node is in one of them.
        kept: for each graph {parameter name: why it is not decoded} of all others
            (:mod:`ghn_fast.ghn.place.keep`).
        kinds: for each graph {parameter name: what it is} of those that the tracer knows.
        stacks: for each graph {parameter name: fan-in} of stacks of matrices, which are kept.
        raised_layer_scales: as in :class:`ghn_fast.GHNConfig`.
    """

    groups: Sequence[Group]
    kept: Sequence[Mapping[str, str]]
    kinds: Sequence[Mapping[str, str]]
    stacks: Sequence[Mapping[str, int]]
    raised_layer_scales: bool

    def rules(self, graph: int) -> dict[str, str]:
        """{parameter name: rule} of what is decoded for one graph, in the order of its nodes."""
        found = sorted(
            (target.node, position, target.parameter, group.rule)
            for position, group in enumerate(self.groups)
            for target in group.targets
            if target.graph == graph
        )
        return {parameter: rule for _, _, parameter, rule in found}


def make_plan(
    batch: GraphBatch, config: GHNConfig, models: Sequence[nn.Module] | None = None
) -> Plan:
    """:func:`plan_for` models, or for graphs of which nothing else is known."""
    uses = [Uses() for _ in batch] if models is None else [Uses.of(model) for model in models]
    return plan_for(batch, config, uses)


def plan_for(batch: GraphBatch, config: GHNConfig, uses: Sequence[Uses]) -> Plan:
    """Sorts the parameters of a batch into groups of equal rule and shape.

    Every node is decoded by its own shape alone: two layers of equal embedding and shape get
    equal parameters whatever else is in the batch.

    Args:
        batch: the graphs.
        config: of the GHN.
        uses: how the graphs' models use their parameters.
    """
    groups: dict[tuple[str, tuple[int, ...], float | None, float | None, float], list[Target]] = {}
    kept = []
    offsets = batch.offsets.tolist()
    for index, graph in enumerate(batch):
        decoded, reasons = _sort(graph, config, uses[index])
        kept.append(MappingProxyType(reasons))
        for position, rule, shape, parameter, storage, factor in decoded:
            fan_in = uses[index].fan_in.get(parameter)
            std = uses[index].initializer_range if config.is_of_language else None
            targets = groups.setdefault((rule, shape, fan_in, std, factor), [])
            targets.append(Target(index, offsets[index] + position, parameter, storage))
    made = tuple(Group(*kind, tuple(targets)) for kind, targets in groups.items())
    kinds = tuple(MappingProxyType(dict(graph.other)) for graph in batch)
    stacks = tuple(MappingProxyType(_stacks(graph)) for graph in batch)
    return Plan(made, tuple(kept), kinds, stacks, config.raised_layer_scales)


def _stacks(graph: Graph) -> dict[str, int]:
    stacks = [node for node in graph.nodes if node.parameter is not None and _is_stack(node)]
    return {node.parameter or "": math.prod((node.shape or ())[1:]) for node in stacks}


# Of parameters that have a node.
_REASONS = {"embedding": EMBEDDING, "norm_offset": NORM_OFFSET}

_Decoded = list[tuple[int, str, tuple[int, ...], str, Storage | None, float]]
"""(node, rule, shape, parameter name, storage, factor) of parameters that are decoded."""


def _sort(graph: Graph, config: GHNConfig, uses: Uses) -> tuple[_Decoded, dict[str, str]]:
    """The parameters of a graph: those that are decoded, and why the others are not."""
    decoded: _Decoded = []
    kept = dict(graph.unused)
    for name, kind in graph.other.items():
        if kind != "embedding" or not config.decodes_embeddings:
            kept[name] = _REASONS.get(kind, NO_NODE)
    kept.update((name, complex_values(dtype)) for name, dtype in uses.complex.items())
    kept.update(uses.kept)
    rules, foreign = class_rules(graph, config), misfit(graph, config)
    head = head_nodes(graph) if foreign else []
    after_stack = False
    for position, node in enumerate(decoded_nodes(graph, config)):
        if node.shape is None:
            continue
        reason = foreign if position in head else _undecodable(node)
        if after_stack and node.type == "bias":
            reason = STACKED_BIAS
        after_stack = _is_stack(node)
        if node.parameter is not None and reason is not None:
            kept.setdefault(node.parameter, reason)
        elif node.parameter is not None and node.parameter not in kept:
            looked_up = graph.other.get(node.parameter) == "embedding" and node.type == "pos_enc"
            rule = "embedding" if looked_up else rules.get(position) or _rule(node, uses)
            factor = node.factor if rule.endswith("weight") and rule != "norm_weight" else 1.0
            decoded.append((position, rule, node.shape, node.parameter, node.storage, factor))
        if node.bias is None or node.bias in kept:
            continue
        if uses.shape(node.bias) not in (None, node.shape):
            reason = MISSHAPEN
        if reason is not None:
            kept[node.bias] = reason
        else:
            decoded.append((position, "norm_bias", node.shape, node.bias, node.storage, 1.0))
    return decoded, kept


def decoded_nodes(graph: Graph, config: GHNConfig) -> Sequence[Node]:
    """The nodes of a graph with the shapes in which a GHN decodes their parameters."""
    nodes: Sequence[Node] = graph.nodes
    if config.flat_kernels and any(node.kernel is not None for node in nodes):
        nodes = [node.over_map() for node in nodes]
    if config.channel_nodes and any(node.origins is not None for node in nodes):
        nodes = [node.by_origins() for node in nodes]
    return nodes


def class_rules(graph: Graph, config: GHNConfig) -> dict[int, str]:
    """``class_weight`` and ``class_bias`` of output layers' nodes; empty if there are none.

    They get a decoder head of their own (arXiv 2110.13100, appendix B.1). A kernel of several
    positions is none that the head decodes.
    """
    rules: dict[int, str] = {}
    for nodes in _heads(graph):
        shape = graph.nodes[nodes[0]].shape or ()
        if len(shape) >= 2 and max(shape[2:], default=1) == 1:
            rules.update(zip(nodes, ("class_weight", "class_bias"), strict=False))
    return rules


def head_nodes(graph: Graph) -> list[int]:
    """The nodes of the weights and biases of the output layers."""
    return [node for nodes in _heads(graph) for node in nodes]


def _heads(graph: Graph) -> list[list[int]]:
    """The nodes of weight and bias of each output layer."""
    biases = {head for head in graph.heads if graph.nodes[head].type == "bias"}
    return [[head - 1, head] if head in biases else [head] for head in graph.heads]


def misfit(graph: Graph, config: GHNConfig) -> str | None:
    """Why the GHN cannot predict the output layer, or None if it can."""
    for position in reversed(head_nodes(graph)):
        outputs = (graph.nodes[position].shape or (0,))[0]
        return None if outputs == config.num_classes else output_layer(outputs, config.num_classes)
    return None


# Of a kernel: out, in, time, height and width.
_MOST_DIMENSIONS = 5


def _undecodable(node: Node) -> str | None:
    """Why a node's parameter cannot be decoded; None if it can."""
    assert node.shape is not None
    if len(node.shape) == 0:
        return SCALAR
    if 0 in node.shape:
        return EMPTY
    if _is_stack(node):
        return STACKED
    if node.type != "pos_enc" and len(node.shape) > _MOST_DIMENSIONS:
        return TOO_MANY_DIMENSIONS
    return None


def _is_stack(node: Node) -> bool:
    return node.storage is not None and node.storage.is_stack


def _rule(node: Node, uses: Uses) -> str:
    """The rule by which a node's parameter is decoded."""
    assert node.shape is not None
    dims = len(node.shape)
    if node.type in NORM_TYPES:
        return "norm_weight"
    if node.type == "bias" or dims == 1:
        return "bias"
    if node.type == "pos_enc":
        return "pos_enc"
    if dims == _MOST_DIMENSIONS:
        return "video_weight"
    return "transposed_weight" if node.parameter in uses.fan_in else "weight"
