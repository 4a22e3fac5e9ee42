"""What a GHN predicts for a batch of graphs: which nodes, into which parameters, by which rule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from ghn_fast.ghn.config import GHNConfig
from ghn_fast.graph import Graph, GraphBatch, Node, Storage

NORM_TYPES = ("bn", "ln")


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
        """The parameter's elements in the shape that is decoded, the same memory."""
        return stored if self.storage is None else self.storage.view(stored)

    def stored(self, decoded: Tensor) -> Tensor:
        """What was decoded, in the shape of the parameter."""
        return decoded if self.storage is None else self.storage.stored(decoded)


def as_stored(targets: Sequence[Target], decoded: Iterable[Tensor]) -> list[Tensor]:
    """What was decoded for each target, in the shape of its parameter."""
    return [target.stored(tensor) for target, tensor in zip(targets, decoded, strict=True)]


@dataclass(frozen=True)
class Group:
    """Parameters of one shape that are decoded, tiled and normalised together.

    Attributes:
        rule: one of

            - ``weight``: of convolutions, linear layers and small embeddings;
            - ``transposed_weight``: stored (in, out, ...), normalised by the fan-in it has;
            - ``video_weight``: the kernel (out, in, h, w), the same at each of t times and
              divided by t, so that a still image gives what the image kernel gives
              (arXiv 1705.07750, section 2.4);
            - ``pos_enc``: tables of positions;
            - ``norm_weight``, ``norm_bias``, ``bias``: vectors; where they have several
              dimensions, along the first that is larger than one;
            - ``class_weight``, ``class_bias``: of the classification layer.
        shape: of each parameter, as it is decoded.
        fan_in: of a weight, where it does not follow from the shape.
        targets: where the predicted tensors go; ``node`` counts through the whole batch.
    """

    rule: str
    shape: tuple[int, ...]
    fan_in: float | None = None
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
        others: for each graph {parameter name: what it is} of the parameters that get their
            values by :mod:`ghn_fast.ghn.place.fill`.
        skipped: for each graph {parameter name: why it is not predicted}.
    """

    groups: Sequence[Group]
    others: Sequence[Mapping[str, str]]
    skipped: Sequence[Mapping[str, str]]

    def rules(self, graph: int) -> dict[str, str]:
        """{parameter name: rule} of what is decoded for one graph, in the order of its nodes."""
        found = sorted(
            (target.node, position, target.parameter, group.rule)
            for position, group in enumerate(self.groups)
            for target in group.targets
            if target.graph == graph
        )
        return {parameter: rule for _, _, parameter, rule in found}


@dataclass
class Uses:
    """How a model uses its parameters, where the shape of a node does not tell.

    Two models of equal graphs and equal uses have the same plan.

    Attributes:
        parameters: all of them, a tied one under each of its names.
        owners: for each name the module and the parameter's name in it.
        fan_in: of weights that are stored (in, out, ...): transposed convolutions, and linear
            layers that multiply from the right.
        embeddings: weights of which an embedding takes single rows.
        complex: {parameter name: dtype} of those that are.
    """

    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    owners: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    fan_in: dict[str, float] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    complex: dict[str, torch.dtype] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> Uses:
        uses = cls()
        for path, module in model.named_modules(remove_duplicate=False):
            prefix = f"{path}." if path else ""
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    uses.parameters[prefix + name] = parameter
                    uses.owners[prefix + name] = module, name
                    if parameter.is_complex():
                        uses.complex[prefix + name] = parameter.dtype
            fan_in = _stored_fan_in(module)
            if fan_in is not None:
                uses.fan_in.update({prefix + name: fan_in for name in _WEIGHTS})
            elif isinstance(module, nn.Embedding):
                uses.embeddings.update(prefix + name for name in _WEIGHTS)
        return uses

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a parameter, if the model is known."""
        return self.parameters[name].shape if name in self.parameters else None

    def key(self) -> tuple[object, ...]:
        """All that a plan depends on."""
        shapes = tuple((name, parameter.shape) for name, parameter in self.parameters.items())
        others = (tuple(values.items()) for values in (self.fan_in, self.complex))
        return shapes, frozenset(self.embeddings), *others


# A weight, and what it is made from where it is normalised (torch.nn.utils.parametrizations).
_WEIGHTS = (
    *("weight", "weight_v", "weight_orig"),
    *("parametrizations.weight.original", "parametrizations.weight.original1"),
)


def _stored_fan_in(module: Any) -> float | None:
    """How many inputs reach one output of a layer whose weight is stored (in, out, ...)."""
    if isinstance(module, _ConvTransposeNd):
        # Time is left out, see the rule "video_weight".
        taps = math.prod(module.kernel_size[-2:]) / math.prod(module.stride[-2:])
        return max(1.0, module.in_channels // module.groups * taps)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        # The linear layer of GPT-2 in transformers, which is not to be imported here.
        return float(module.weight.shape[0])
    return None


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
    groups: dict[tuple[str, tuple[int, ...], float | None], list[Target]] = {}
    others, skipped = [], []
    offsets = batch.offsets.tolist()
    for index, graph in enumerate(batch):
        decoded, without, left = _sort(graph, config, uses[index])
        others.append(MappingProxyType(without))
        skipped.append(MappingProxyType(left))
        for position, rule, shape, parameter, storage in decoded:
            fan_in = uses[index].fan_in.get(parameter)
            targets = groups.setdefault((rule, shape, fan_in), [])
            targets.append(Target(index, offsets[index] + position, parameter, storage))
    made = tuple(Group(*kind, tuple(targets)) for kind, targets in groups.items())
    return Plan(made, tuple(others), tuple(skipped))


_Decoded = list[tuple[int, str, tuple[int, ...], str, Storage | None]]
"""(node, rule, shape, parameter name, storage) of parameters that are decoded."""


def _sort(
    graph: Graph, config: GHNConfig, uses: Uses
) -> tuple[_Decoded, dict[str, str], dict[str, str]]:
    """The parameters of a graph: those that are decoded, those that get their values otherwise
    and what they are, and those that are left and why."""
    decoded: _Decoded = []
    others, skipped = dict(graph.other), dict(graph.unused)
    classifier, reason = class_rules(graph, config), misfit(graph, config)
    for position, node in enumerate(decoded_nodes(graph, config)):
        if node.shape is None:
            continue
        kind = _kind(node, config, uses)
        if node.parameter is None:
            pass
        elif reason is not None and position in classifier:
            skipped[node.parameter] = reason
        elif kind is not None:
            others[node.parameter] = kind
        else:
            rule = classifier.get(position) or _rule(node, uses)
            decoded.append((position, rule, node.shape, node.parameter, node.storage))
        if node.bias is None:
            continue
        if kind is None and uses.shape(node.bias) in (None, node.shape):
            decoded.append((position, "norm_bias", node.shape, node.bias, None))
        else:
            others[node.bias] = "norm_bias"
    for name, dtype in uses.complex.items():
        others.pop(name, None)
        skipped[name] = f"{str(dtype).removeprefix('torch.')} values; a GHN predicts real ones"
    return [entry for entry in decoded if entry[3] not in uses.complex], others, skipped


def decoded_nodes(graph: Graph, config: GHNConfig) -> Sequence[Node]:
    """The nodes of a graph with the shapes in which a GHN decodes their parameters."""
    if not config.flat_kernels or all(node.kernel is None for node in graph.nodes):
        return graph.nodes
    return [node.over_map() for node in graph.nodes]


def class_rules(graph: Graph, config: GHNConfig) -> dict[int, str]:
    """``class_weight`` and ``class_bias`` of the last two nodes; empty if it is no classifier.

    The output layer gets a decoder head of its own (arXiv 2110.13100, appendix B.1). One of
    another number of outputs than the GHN's is none if it is square, such as the pooler of a text
    encoder, or if the network has outputs of other sizes too, such as a detector.
    """
    last = graph.num_nodes - 1
    weight, bias = graph.nodes[last - 1], graph.nodes[last]
    if weight.type != "conv" or bias.type != "bias" or not weight.shape or len(weight.shape) < 2:
        return {}
    classes = weight.shape[0]
    if classes != (bias.shape or (0,))[0] or max(weight.shape[2:], default=1) > 1:
        return {}
    if classes != config.num_classes and (
        classes == math.prod(weight.shape[1:]) or _output_sizes(graph) != {classes}
    ):
        return {}
    return {last - 1: "class_weight", last: "class_bias"}


def _output_sizes(graph: Graph) -> set[int]:
    """How many outputs the layers have that nothing follows."""
    followed = set(graph.edges[:, 0].tolist())
    ends = (node for index, node in enumerate(graph.nodes) if index not in followed)
    return {node.shape[0] for node in ends if node.shape and node.type in ("conv", "bias")}


def misfit(graph: Graph, config: GHNConfig) -> str | None:
    """Why the GHN cannot predict a classifier's last layer, or None if it can."""
    for position in class_rules(graph, config):
        classes = (graph.nodes[position].shape or (0,))[0]
        if classes != config.num_classes:
            predicted = f"this GHN predicts {config.num_classes} classes"
            return f"classification layer of {classes} classes; {predicted}"
    return None


# Of a kernel: out, in, time, height and width.
_MOST_DIMENSIONS = 5


def _kind(node: Node, config: GHNConfig, uses: Uses) -> str | None:
    """What a node's parameter is, if it cannot be decoded; None if it can.

    A GHN's blocks repeat after ``max_shape[0]`` rows, which would make words of a vocabulary that
    are so far apart the same; longer vocabularies are drawn at random instead.
    """
    shape = node.shape
    assert shape is not None
    if len(shape) == 0 or 0 in shape:
        return "scalar"
    if node.parameter in uses.embeddings and shape[0] > config.max_shape[0]:
        return "embedding"
    if node.type != "pos_enc" and len(shape) > _MOST_DIMENSIONS:
        return "unknown"
    return None


def _rule(node: Node, uses: Uses) -> str:
    """The rule by which a node's parameter is decoded."""
    assert node.shape is not None
    dims = len(node.shape)
    if node.type in NORM_TYPES:
        return "norm_weight"
    if node.type == "bias" or dims == 1:
        return "bias"
    if node.type == "pos_enc" and node.parameter not in uses.embeddings:
        return "pos_enc"
    if dims == _MOST_DIMENSIONS:
        return "video_weight"
    return "transposed_weight" if node.parameter in uses.fan_in else "weight"
