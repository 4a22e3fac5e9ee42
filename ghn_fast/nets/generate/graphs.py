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
from ghn_fast.graph.types import NODE_TYPES
from ghn_fast.nets.space.genotypes import Genotype, from_dict
from ghn_fast.nets.space.liveness import CellPlan, is_reduction, plan_network
from ghn_fast.nets.space.network import build_net
from ghn_fast.nets.space.products import published_products

UNREACHED = "does not reach the output"

Value = tuple[int, ...]
"""The nodes that a value comes from: the one that made it, or, after an operation that makes no
node, all those that made the operation's inputs. Empty for a value that is not computed."""


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


def reference_graph_of(
    net_args: Mapping[str, Any], num_classes: int = 10, is_imagenet_input: bool = False
) -> Graph:
    """What `graph_of` gives for a `Network`, in Python: it explains what the core does."""
    writer = _Writer(net_args, num_classes, is_imagenet_input)
    writer.write()
    return Graph(
        nodes=with_flat_head(writer.nodes, net_args, is_imagenet_input),
        edges=torch.tensor(writer.edges, dtype=torch.int64),
        unused=writer.unused,
        net_args=dict(net_args),
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


class _Writer:
    """Writes nodes in the order in which `Network.forward` computes them.

    Dead operations are written with `alive` off: only their parameters' names are taken down.
    """

    def __init__(
        self, net_args: Mapping[str, Any], num_classes: int, is_imagenet_input: bool
    ) -> None:
        self.args = net_args
        self.genotype: Genotype = from_dict(net_args["genotype"])
        self.num_classes = num_classes
        self.large = is_imagenet_input
        self.is_vit = "msa" in self.genotype.operations
        self.has_norm = net_args.get("norm", "bnorm") not in (None, "", "none")
        self.preproc = net_args.get("preproc", True)
        self.nodes: list[Node] = []
        self.edges: list[tuple[int, int]] = []
        self.unused: dict[str, str] = {}
        self.alive = True
        self.products = iter(
            published_products(
                self.genotype,
                net_args["n_cells"],
                net_args.get("stem_type", 0),
                net_args.get("stem_pool", False),
                net_args.get("norm", "bnorm"),
                self.preproc,
            ).values()
        )

    def write(self) -> None:
        num_cells = self.args["n_cells"]
        plan = plan_network(self.genotype, num_cells)
        if plan is None:
            raise ValueError("'none' operations cut every path from the input to the output")
        states, channels = self._stem(self._operation("input", ()), plan.stem[1])
        width = self.args["C"]
        inputs = (channels, channels)
        halved = self.args.get("stem_type", 0) == 1
        for cell, cell_plan in enumerate(plan.cells):
            reduction = is_reduction(cell, num_cells)
            if reduction:
                width *= self.args.get("C_mult", 2)
            made = self._cell(cell, cell_plan, states, inputs, width, reduction, halved)
            concat = self.genotype.reduce_concat if reduction else self.genotype.normal_concat
            states, inputs = (states[1], made), (inputs[1], len(concat) * width)
            halved = reduction
        self._head(states[1], inputs[1])

    # Nodes.

    def _operation(
        self, node_type: str, sources: Value, shape: tuple[int, ...] | None = None
    ) -> Value:
        return self._add(Node(node_type, node_type, shape), sources)

    def _add(self, node: Node, sources: Value) -> Value:
        if not self.alive:
            for name in (node.parameter, node.bias):
                if name is not None:
                    self.unused[name] = UNREACHED
            return ()
        number = len(self.nodes)
        self.nodes.append(node)
        self.edges += [(source, number) for source in sources]
        return (number,)

    def _join(self, node_type: str, values: list[Value]) -> Value:
        """A sum or concatenation, which is a node only if it has several inputs."""
        sources = tuple(dict.fromkeys(source for value in values for source in value))
        if len(values) > 1 and len(sources) > 1:
            return self._operation(node_type, sources)
        return sources

    def _product(self, node_type: str, values: list[Value]) -> Value:
        """A gate or attention: a node where it is one in the published graphs."""
        sources = tuple(dict.fromkeys(source for value in values for source in value))
        if self.alive and not next(self.products):
            return sources
        return self._operation(node_type, sources)

    def _weight(self, node_type: str, name: str, shape: tuple[int, ...], value: Value) -> Value:
        return self._add(Node(node_type, name, shape, name), value)

    def _norm(self, node_type: str, name: str, channels: int, value: Value) -> Value:
        weight = f"{name}.weight"
        return self._add(Node(node_type, weight, (channels,), weight, f"{name}.bias"), value)

    def _batch_norm(self, name: str, channels: int, value: Value) -> Value:
        return self._norm("bn", name, channels, value) if self.has_norm else value

    def _conv(
        self, name: str, out_channels: int, in_channels: int, kernel: tuple[int, int], value: Value
    ) -> Value:
        return self._weight("conv", f"{name}.weight", (out_channels, in_channels, *kernel), value)

    def _linear(self, name: str, outputs: int, inputs: int, value: Value) -> Value:
        value = self._weight("conv", f"{name}.weight", (outputs, inputs), value)
        return self._weight("bias", f"{name}.bias", (outputs,), value)

    # Parts of the network.

    def _stem(self, value: Value, second_alive: bool) -> tuple[tuple[Value, Value], int]:
        """The first two states and their number of channels."""
        width, ks = self.args["C"], self.args.get("ks", 3)
        if self.is_vit:
            patch, size = (16, 14) if self.large else (3, 11)
            value = self._conv("stem0", width, 3, (patch, patch), value)
            table = Node("pos_enc", "pos_enc.weight", (1, width, size, size), "pos_enc.weight")
            value = self._join("sum", [value, self._add(table, ())])
            return (value, value), width
        if self.args.get("stem_type", 0) == 0:
            width *= 3 if self.preproc and not self.large else 1
            value = self._conv("stem.0", width, 3, (ks, ks), value)
            value = self._batch_norm("stem.1", width, value)
            if self.args.get("stem_pool", False):
                value = self._operation("max_pool", value, (1, 1, 3, 3))
            return (value, value), width
        half = width // 2
        value = self._conv("stem0.0", half, 3, (ks, ks), value)
        value = self._batch_norm("stem0.1", half, value)
        value = self._conv("stem0.3", width, half, (3, 3), value)
        first = self._batch_norm("stem0.4", width, value)
        self.alive = second_alive
        second = self._conv("stem1.1", width, width, (3, 3), first)
        second = self._batch_norm("stem1.2", width, second)
        self.alive = True
        return (first, second), width

    def _cell(
        self,
        cell: int,
        plan: CellPlan | None,
        states: tuple[Value, Value],
        inputs: tuple[int, int],
        width: int,
        reduction: bool,
        halved: bool,
    ) -> Value:
        edges = self.genotype.reduce if reduction else self.genotype.normal
        if plan is None:
            plan = CellPlan((False,) * len(edges), (False, False), ())
        prefix = f"cells.{cell}"
        values = []
        for position in (0, 1):
            self.alive = plan.inputs[position]
            halve = position == 0 and halved and not self.is_vit
            name = f"{prefix}.preprocess{position}"
            value = states[position]
            values.append(self._preprocess(name, inputs[position], width, halve, value))
        strided = reduction and not self.is_vit
        terms: list[Value] = []
        for position, (name, source) in enumerate(edges):
            self.alive = plan.operations[position]
            value = values[source]
            parameter = f"{prefix}._ops.{position}"
            made = self._cell_operation(name, parameter, width, strided and source < 2, value)
            terms += [made] if self.alive else []
            if position % 2:
                self.alive = True
                values.append(self._join("sum", terms))
                terms = []
        self.alive = True
        kept = [values[state] for state in plan.concat if state is not None]
        return self._join("concat", kept)

    def _preprocess(
        self, name: str, in_channels: int, channels: int, halve: bool, value: Value
    ) -> Value:
        if not self.preproc:
            return value
        if halve:
            return self._factorized_reduce(name, in_channels, channels, value)
        value = self._conv(f"{name}.op.1", channels, in_channels, (1, 1), value)
        return self._batch_norm(f"{name}.op.2", channels, value)

    def _factorized_reduce(self, name: str, in_channels: int, channels: int, value: Value) -> Value:
        halves = [
            self._conv(f"{name}.{part}", channels // 2, in_channels, (1, 1), value)
            for part in ("conv_1", "conv_2")
        ]
        return self._batch_norm(f"{name}.bn", channels, self._join("concat", halves))

    def _cell_operation(
        self, name: str, prefix: str, width: int, strided: bool, value: Value
    ) -> Value:
        if name == "none":
            return ()
        if name == "skip_connect":
            return self._factorized_reduce(prefix, width, width, value) if strided else value
        if name.endswith("_pool_3x3"):
            return self._operation(name.removesuffix("_3x3"), value, (1, 1, 3, 3))
        if name == "msa":
            return self._transformer(prefix, width, value)
        if name == "cse":
            return self._squeeze_excitation(prefix, width, value)
        if name == "conv_7x1_1x7":
            value = self._conv(f"{prefix}.op.1", width, width, (1, 7), value)
            value = self._conv(f"{prefix}.op.2", width, width, (7, 1), value)
            return self._batch_norm(f"{prefix}.op.3", width, value)
        kernel = int(name[-1])
        if name.startswith("conv"):
            value = self._conv(f"{prefix}.op.1", width, width, (kernel, kernel), value)
            return self._batch_norm(f"{prefix}.op.2", width, value)
        value = self._depthwise(name[:8], prefix, 1, width, kernel, value)
        if name.startswith("sep_conv"):
            value = self._depthwise(name[:8], prefix, 5, width, kernel, value)
        return value

    def _depthwise(
        self, node_type: str, prefix: str, first: int, width: int, kernel: int, value: Value
    ) -> Value:
        """A depthwise and a pointwise convolution and a normalisation."""
        shape = (width, 1, kernel, kernel)
        value = self._weight(node_type, f"{prefix}.op.{first}.weight", shape, value)
        value = self._conv(f"{prefix}.op.{first + 1}", width, width, (1, 1), value)
        return self._batch_norm(f"{prefix}.op.{first + 2}", width, value)

    def _transformer(self, prefix: str, width: int, value: Value) -> Value:
        inner = self._norm("ln", f"{prefix}.ln1", width, value)
        inner = self._weight("conv", f"{prefix}.to_qkv.weight", (3 * width, width), inner)
        inner = self._product("msa", [inner])
        inner = self._linear(f"{prefix}.to_out.0", width, width, inner)
        value = self._join("sum", [value, inner])
        inner = self._norm("ln", f"{prefix}.ln2", width, value)
        inner = self._linear(f"{prefix}.ff.net.0", width, width, inner)
        inner = self._linear(f"{prefix}.ff.net.3", width, width, inner)
        return self._join("sum", [value, inner])

    def _squeeze_excitation(self, prefix: str, width: int, value: Value) -> Value:
        gate = self._linear(f"{prefix}.fc1", width // 2, width, value)
        gate = self._linear(f"{prefix}.fc2", width, width // 2, gate)
        return self._product("cse", [value, gate])

    def _head(self, value: Value, channels: int) -> None:
        if self.args.get("glob_avg", True):
            value = self._operation("glob_avg", value)
        else:
            channels *= flat_size(self.args, self.large) ** 2
        hidden = max(self.args.get("fc_layers", 1), 1) - 1
        for layer in range(hidden):
            fc_dim = self.args["fc_dim"]
            value = self._linear(f"classifier.{3 * layer}", fc_dim, channels, value)
            channels = fc_dim
        self._linear(f"classifier.{3 * hidden}", self.num_classes, channels, value)
