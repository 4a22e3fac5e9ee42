"""What a GHN predicts for a batch of graphs: which nodes, into which parameters, by which rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ghn_fast.ghn.config import GHNConfig
from ghn_fast.graph import Graph, GraphBatch, Node

NORM_TYPES = ("bn", "ln")


class Target(NamedTuple):
    """One parameter of one model, and the node it is decoded from."""

    graph: int
    node: int
    parameter: str


@dataclass
class Group:
    """Parameters of one shape that are decoded, tiled and normalised together.

    Attributes:
        rule: ``weight``, ``pos_enc``, ``norm_weight``, ``norm_bias``, ``bias``, ``class_weight``
            or ``class_bias``.
        shape: of each parameter.
        targets: where the predicted tensors go; ``node`` counts through the whole batch.
    """

    rule: str
    shape: tuple[int, ...]
    targets: list[Target] = field(default_factory=list)

    @property
    def nodes(self) -> list[int]:
        return [target.node for target in self.targets]


@dataclass
class Plan:
    """All groups of a batch, and for each graph the parameters that stay as they are.

    Attributes:
        groups: every predicted parameter is in one of them.
        skipped: for each graph {parameter name: why it is not predicted}.
    """

    groups: list[Group]
    skipped: list[dict[str, str]]

    def rules(self, graph: int) -> dict[str, str]:
        """{parameter name: rule} of one graph, in the order of its nodes."""
        found = sorted(
            (target.node, position, target.parameter, group.rule)
            for position, group in enumerate(self.groups)
            for target in group.targets
            if target.graph == graph
        )
        return {parameter: rule for _, _, parameter, rule in found}


def make_plan(batch: GraphBatch, config: GHNConfig) -> Plan:
    """Sorts the parameters of a batch into groups of equal rule and shape.

    Every node is decoded by its own shape alone: two layers of equal embedding and shape get
    equal parameters whatever else is in the batch.
    """
    groups: dict[tuple[str, tuple[int, ...]], Group] = {}
    skipped: list[dict[str, str]] = []
    for index, graph in enumerate(batch):
        offset = int(batch.offsets[index])
        skipped.append({**graph.unused, **graph.other})
        for position, node in enumerate(graph.nodes):
            if node.parameter is None:
                continue
            reason = unsupported(graph, position, config)
            if reason is not None:
                skipped[-1][node.parameter] = reason
                continue
            for rule, shape, parameter in _predictions(graph, position):
                group = groups.setdefault((rule, shape), Group(rule, shape))
                group.targets.append(Target(index, offset + position, parameter))
    return Plan(list(groups.values()), skipped)


def classifier_rule(graph: Graph, position: int) -> str | None:
    """``class_weight`` or ``class_bias`` for the last two nodes of a classifier, else None.

    The output layer gets a decoder head of its own (arXiv 2110.13100, appendix B.1).
    """
    last = graph.num_nodes - 1
    weight, bias = graph.nodes[last - 1], graph.nodes[last]
    if weight.type != "conv" or bias.type != "bias" or weight.shape is None:
        return None
    if weight.shape[0] != (bias.shape or (0,))[0] or max(weight.shape[2:], default=1) > 1:
        return None
    return {last - 1: "class_weight", last: "class_bias"}.get(position)


def unsupported(graph: Graph, position: int, config: GHNConfig) -> str | None:
    """Why the GHN cannot predict a node's parameter, or None if it can."""
    shape = graph.nodes[position].shape
    assert shape is not None
    if classifier_rule(graph, position) is not None and shape[0] != config.num_classes:
        return (
            f"classification layer of {shape[0]} classes; "
            f"this GHN predicts {config.num_classes} classes"
        )
    if len(shape) > 4 or len(shape) == 0:
        return f"parameters of {len(shape)} dimensions are not predicted"
    return None


def _predictions(graph: Graph, position: int) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(rule, shape, parameter name) of all that is predicted from one node."""
    node = graph.nodes[position]
    assert node.shape is not None
    assert node.parameter is not None
    yield classifier_rule(graph, position) or _rule(node), tuple(node.shape), node.parameter
    if node.bias is not None:
        yield "norm_bias", tuple(node.shape), node.bias


def _rule(node: Node) -> str:
    if node.type in NORM_TYPES:
        return "norm_weight"
    if node.type == "pos_enc" and node.shape is not None and node.shape[0] == 1:
        return "pos_enc"
    assert node.shape is not None
    return "bias" if len(node.shape) == 1 else "weight"
