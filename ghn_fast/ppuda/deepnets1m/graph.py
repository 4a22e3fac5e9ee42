"""``ppuda.deepnets1m.graph``: graphs and batches with the attributes of the public code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ghn_fast.graph import NODE_TYPES, Node
from ghn_fast.graph import Graph as CoreGraph
from ghn_fast.graph import GraphBatch as CoreBatch
from ghn_fast.graph.trace.inputs import guess_inputs
from ghn_fast.graph.trace.preserve import preserved

NodeInfo = tuple[int, str, str, "tuple[int, ...] | None", bool, bool]
"""Position, parameter or operation, type, shape, and whether it is the last weight, last bias."""

_POOLING = ("max_pool", "avg_pool")
_SMALLEST_GRADIENT = 1e-20


class Graph:
    """The graph of a network; `core` is the `ghn_fast.Graph` that everything is read from.

    Args:
        model: any module that can be called. Its attribute `expected_input_sz`, the side of its
            images or the shape of its input, is looked at where there is one.
        node_feat, node_info, A, edges: instead of a model: (N, 1) node types, the names of the
            parameters as in `node_info` below, and either the (N, N) distances or (M, 3) edges.
            Nodes must be in topological order.
        net_args, net_idx: what builds the network, and its position in its split.
        ve_cutoff: paths that are longer have no virtual edge; 1 for none at all.
        list_all_nodes: list operations without parameters in `node_info` too.

    Attributes:
        n_nodes: N.
        node_feat: (N, 1) int64, the node types.
        node_info: for each cell the nodes with a parameter, and pooling, as :data:`NodeInfo`.
        edges: (M, 3) int64: source, target and shortest path length of every connected pair.
        nx_graph: the 1-hop edges as a `networkx.DiGraph`.

    Raises:
        ghn_fast.graph.TraceError: the model could not be run; says what to pass.
        ValueError: neither a model nor both nodes and edges were passed, or both were.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        node_feat: Tensor | None = None,
        node_info: Sequence[Sequence[NodeInfo]] | None = None,
        A: Tensor | np.ndarray | None = None,
        edges: Tensor | None = None,
        net_args: dict[str, Any] | None = None,
        net_idx: int | None = None,
        ve_cutoff: int = 50,
        list_all_nodes: bool = False,
    ) -> None:
        if (model is None) == (node_feat is None):
            raise ValueError("pass either a model or its nodes and edges")
        if model is not None:
            graph = _with_distance(CoreGraph.from_model(model), ve_cutoff)
        else:
            assert node_feat is not None
            graph = _from_tensors(node_feat, node_info or [], _distances(node_feat, A, edges))
        self._set(graph, model, list_all_nodes)
        self.net_args = net_args
        self.net_idx = net_idx

    def _set(self, graph: CoreGraph, model: nn.Module | None, list_all_nodes: bool) -> None:
        self.core = graph
        self.model = model
        args = graph.net_args or {}
        self.n_cells = int(getattr(model, "_n_cells", None) or args.get("n_cells", 1))
        self._list_all_nodes = list_all_nodes

    @classmethod
    def from_core(cls, graph: CoreGraph, ve_cutoff: int = 50) -> Graph:
        """Of a `ghn_fast.Graph`."""
        made = cls.__new__(cls)
        made._set(_with_distance(graph, ve_cutoff), None, False)
        made.net_args, made.net_idx = graph.net_args, graph.index
        return made

    @property
    def n_nodes(self) -> int:
        return self.core.num_nodes

    @property
    def node_feat(self) -> Tensor:
        return self.core.node_types[:, None]

    @cached_property
    def edges(self) -> Tensor:
        pairs = self.core.distances.nonzero()
        return torch.cat((pairs, self.core.distances[tuple(pairs.T)][:, None].long()), dim=1)

    @property
    def _Adj(self) -> Tensor:
        return self.core.distances.long()

    @property
    def _param_shapes(self) -> list[tuple[int, ...] | None]:
        return [node.shape for node in self.core.nodes]

    @cached_property
    def node_info(self) -> list[list[NodeInfo]]:
        cells: list[list[NodeInfo]] = [[] for _ in range(self.n_cells)]
        cell, last = 0, self.n_nodes - 1
        for position, node in enumerate(self.core.nodes):
            found = _cell(node.parameter or "", self.n_cells)
            cell = cell if found is None else found
            if node.parameter or node.type in _POOLING or self._list_all_nodes:
                name = node.parameter or node.type
                entry = (position, name, node.type, node.shape)
                cells[cell].append((*entry, position == last - 1, position == last))
        return cells

    @cached_property
    def nx_graph(self) -> Any:
        made = _import("networkx").DiGraph()
        made.add_nodes_from(range(self.n_nodes))
        made.add_edges_from(self.core.edges.tolist())
        return made

    def num_valid_nodes(self, model: nn.Module | None = None) -> int:
        """How many parameters get a gradient that is not zero; -1 where the output is not finite.

        The model is run on noise and left exactly as it was.

        Args:
            model: by default the one the graph was made from.

        Raises:
            ValueError: there is no model.
        """
        model = model or self.model
        if model is None:
            raise ValueError("this graph was not made from a model; pass the model")
        with preserved(model, list(model.modules()), values=True), torch.enable_grad():
            args, kwargs = guess_inputs(model)
            args = tuple(
                torch.rand_like(value) - 0.5 if torch.is_tensor(value) and value.is_floating_point()
                else value
                for value in args
            )  # fmt: skip
            output = model(*args, **kwargs)
            loss = (output[0] if isinstance(output, tuple | list) else output).mean()
            if not loss.isfinite():
                return -1
            if not loss.requires_grad:
                return 0  # all parameters are frozen
            parameters = [p for p in model.parameters() if p.requires_grad]
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return sum(g is not None and float(g.abs().sum()) > _SMALLEST_GRADIENT for g in gradients)

    def properties(
        self, undirected: bool = True, key: Sequence[str] = ("avg_degree", "avg_path")
    ) -> dict[str, float]:
        """Properties of the 1-hop graph: the average degree and shortest path length.

        Raises:
            NotImplementedError: another property is asked for.
        """
        graph = self.nx_graph.to_undirected() if undirected else self.nx_graph
        values: dict[str, float] = {}
        for name in key:
            if name == "avg_degree":
                values[name] = sum(degree for _, degree in graph.degree()) / self.n_nodes
            elif name == "avg_path":
                values[name] = _import("networkx").average_shortest_path_length(graph)
            else:
                raise NotImplementedError(f"{name!r}; there are avg_degree and avg_path")
        return values

    def visualize(
        self,
        node_size: float = 50,
        figname: str | None = None,
        figsize: tuple[float, float] | None = None,
        with_labels: bool = False,
        vis_legend: bool = False,
        label_offset: float = 0.001,
        font_size: float = 10,
    ) -> None:
        """Draws the graph with matplotlib, a colour for each node type.

        Args:
            node_size: in points squared.
            figname: also write `<figname>.pdf` and `<figname>.png`.
            figsize: width and height in inches.
            with_labels: write the types beside the nodes.
            vis_legend: draw the 15 types instead of the graph.
            label_offset: by how much labels are below their nodes in the legend.
            font_size: of the labels.
        """
        networkx, plt = _import("networkx"), _import("matplotlib.pyplot")
        if vis_legend:
            graph = networkx.path_graph(len(NODE_TYPES), create_using=networkx.DiGraph)
            types = list(range(len(NODE_TYPES)))
            places: Mapping[int, tuple[float, float]] = {node: (float(node), 0.0) for node in graph}
        else:
            graph, types = self.nx_graph, self.core.node_types.tolist()
            places = _layers(networkx, graph)
        figure = plt.figure(figsize=figsize or ((20, 3) if vis_legend else (10, 10)))
        colours = [plt.get_cmap("tab20")(kind) for kind in types]
        networkx.draw_networkx_nodes(
            graph, places, node_size=node_size, node_color=colours, edgecolors="black"
        )
        if not vis_legend:
            networkx.draw_networkx_edges(graph, places, node_size=node_size, arrowsize=6)
        if with_labels:
            below = label_offset if vis_legend else 0.0
            networkx.draw_networkx_labels(
                graph,
                {node: (x, y - below) for node, (x, y) in places.items()},
                {node: NODE_TYPES[kind] for node, kind in enumerate(types)},
                font_size=font_size,
            )
        if vis_legend:
            plt.ylim(-0.004, 0.002)  # the labels' offset is in these units
        plt.axis("off")
        figure.tight_layout()
        if figname is not None:
            figure.savefig(f"{figname}.pdf")
            figure.savefig(f"{figname}.png", transparent=True)
        plt.show()


class GraphBatch:
    """Graphs as a batch; `core` is the `ghn_fast.GraphBatch` that the GHN takes.

    `n_nodes`, `node_feat` and `edges` are lists with an entry for each graph until `to_device`
    is called, and tensors of all graphs one after another from then on.

    Args:
        graphs: `Graph` objects; those of `ghn_fast` too.

    Attributes:
        n_nodes: (B,) int64.
        node_feat: (sum N, 2) int64: node type and number of the graph.
        edges: (sum M, 4) int64: source, target (both counted in their graph), shortest path
            length and number of the graph.
        node_info, net_args, net_inds: lists of the graphs' own.
    """

    def __init__(self, graphs: Iterable[Graph | CoreGraph] | None) -> None:
        self.graphs: list[Graph] = []
        self._device: torch.device | str | None = None
        for graph in graphs or []:
            self.append(graph)

    def append(self, graph: Graph | CoreGraph) -> None:
        """Adds a graph."""
        self.graphs.append(graph if isinstance(graph, Graph) else Graph.from_core(graph))

    def to_device(self, device: Any) -> GraphBatch:
        """Joins the lists of tensors and moves them; of several devices the first is taken."""
        self._device = device[0] if isinstance(device, tuple | list) else device
        return self

    @property
    def core(self) -> CoreBatch:
        return CoreBatch([graph.core for graph in self.graphs])

    @property
    def n_nodes(self) -> Any:
        counts = [graph.n_nodes for graph in self.graphs]
        if self._device is None:
            return counts
        return torch.tensor(counts, dtype=torch.int64, device=self._device)

    @property
    def node_feat(self) -> Any:
        return self._joined([graph.node_feat for graph in self.graphs], 1)

    @property
    def edges(self) -> Any:
        return self._joined([graph.edges for graph in self.graphs], 3)

    @property
    def node_info(self) -> list[list[list[NodeInfo]]]:
        return [graph.node_info for graph in self.graphs]

    @property
    def net_args(self) -> list[dict[str, Any] | None]:
        return [graph.net_args for graph in self.graphs]

    @property
    def net_inds(self) -> list[int | None]:
        return [graph.net_idx for graph in self.graphs]

    def _joined(self, rows: Sequence[Tensor], width: int) -> Any:
        """Rows of each graph, so wide, with its number as their last column."""
        numbered = [
            torch.cat((part, torch.full((len(part), 1), number)), dim=1)
            for number, part in enumerate(rows)
        ]
        if self._device is None:
            return numbered
        none = torch.empty(0, width + 1, dtype=torch.int64)
        return torch.cat([none, *numbered]).to(self._device)

    def __getitem__(self, index: int) -> Graph:
        return self.graphs[index]

    def __len__(self) -> int:
        return len(self.graphs)

    def __iter__(self) -> Iterator[Graph]:
        return iter(self.graphs)


def _with_distance(graph: CoreGraph, most: int) -> CoreGraph:
    return graph if graph.max_distance == most else replace(graph, max_distance=most)


def _distances(node_feat: Tensor, A: Tensor | np.ndarray | None, edges: Tensor | None) -> Tensor:
    """(N, N) int64 shortest path lengths from either form of the edges."""
    if A is not None:
        return torch.as_tensor(A).long()
    if edges is None:
        raise ValueError("a graph of given nodes needs their edges: A or edges")
    made = torch.zeros(len(node_feat), len(node_feat), dtype=torch.int64)
    made[edges[:, 0], edges[:, 1]] = edges[:, 2]
    return made


def _from_tensors(
    node_feat: Tensor, node_info: Sequence[Sequence[NodeInfo]], distances: Tensor
) -> CoreGraph:
    listed = {entry[0]: entry for cell in node_info for entry in cell}
    nodes = [
        _node(NODE_TYPES[int(kind)], listed.get(position))
        for position, kind in enumerate(node_feat.flatten())
    ]
    return CoreGraph(
        nodes=tuple(nodes),
        edges=(distances == 1).nonzero(),
        max_distance=max(int(distances.max()), 1),
    )


def _node(kind: str, listed: NodeInfo | None) -> Node:
    if listed is None or listed[1] == kind or kind in _POOLING:
        return Node(kind, kind, None if listed is None else listed[3])
    name = listed[1] if listed[1].endswith(("weight", "bias")) else f"{listed[1]}.weight"
    bias = re.sub(r"weight$", "bias", name) if kind in ("bn", "ln") else None
    return Node(kind, name, listed[3], name, bias)


def _cell(parameter: str, n_cells: int) -> int | None:
    """The cell that a parameter is counted to; None for that of the node before it."""
    match = re.match(r"cells\.(\d+)\.", parameter)
    if match is not None:
        return min(int(match[1]), n_cells - 1)
    if parameter.startswith(("classifier", "auxiliary")):
        return n_cells - 1
    return 0 if n_cells == 1 or parameter.startswith(("stem", "pos_enc")) else None


def _layers(networkx: Any, graph: Any) -> Mapping[int, tuple[float, float]]:
    """Nodes of equal depth beside each other, the input on top."""
    for depth, nodes in enumerate(networkx.topological_generations(graph)):
        for node in nodes:
            graph.nodes[node]["depth"] = -depth
    layout: Mapping[int, tuple[float, float]] = networkx.multipartite_layout(
        graph, subset_key="depth", align="horizontal"
    )
    return layout


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ImportError(f"this needs the package {package}: pip install {package}") from None
