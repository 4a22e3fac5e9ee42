"""Several graphs as one batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ghn_fast._system.device import to_device
from ghn_fast.graph.graph import Graph
from ghn_fast.ops.shortest_paths import shortest_paths_batch


class GraphBatch:
    """Graphs laid out one after another, as the operations take them.

    Args:
        graphs: B graphs.
        device: where node types and distances shall be.

    Attributes:
        graphs: the B graphs.
        num_nodes: (B,) int64 on the CPU, nodes of each graph.
        offsets: (B + 1,) int64 on the CPU, where each graph's nodes begin in the batch.
        node_types: (sum N,) int64.
        distances: (sum N*N,) uint8, the distance matrices flattened row by row.

    Examples:
        >>> nets = ghn_fast.DeepNets1M(split="train")
        >>> batch = ghn_fast.GraphBatch([nets[0], nets[1]])
        >>> len(batch.node_types) == int(batch.num_nodes.sum()) == int(batch.offsets[-1])
        True
    """

    def __init__(self, graphs: Sequence[Graph], device: torch.device | str = "cpu") -> None:
        if len(graphs) == 0:
            raise ValueError("a GraphBatch needs at least one graph")
        device = torch.device(device)
        self._set(
            tuple(graphs),
            torch.tensor([graph.num_nodes for graph in graphs], dtype=torch.int64, device="cpu"),
            to_device(torch.cat([graph.node_types for graph in graphs]), device),
            torch.cat([matrix.flatten() for matrix in _distances(graphs, device)]),
        )

    @classmethod
    def from_arrays(
        cls, graphs: Sequence[Graph], num_nodes: Tensor, node_types: Tensor, distances: Tensor
    ) -> GraphBatch:
        """A batch whose arrays are there already; `graphs` may make its items when asked.

        Args:
            graphs: B graphs.
            num_nodes: as the attribute.
            node_types: as the attribute.
            distances: as the attribute.

        Raises:
            ValueError: the lengths do not fit.
        """
        nodes, pairs = int(num_nodes.sum()), int((num_nodes**2).sum())
        if (len(graphs), nodes, pairs) != (len(num_nodes), len(node_types), len(distances)):
            raise ValueError(
                f"{len(num_nodes)} graphs of {nodes} nodes need as many graphs and node types, "
                f"and {pairs} distances, not {len(graphs)}, {len(node_types)} and {len(distances)}"
            )
        batch = cls.__new__(cls)
        batch._set(graphs, num_nodes, node_types, distances)
        return batch

    def _set(
        self, graphs: Sequence[Graph], num_nodes: Tensor, node_types: Tensor, distances: Tensor
    ) -> None:
        self.graphs: Sequence[Graph] = graphs
        self.num_nodes = num_nodes
        self.offsets = torch.zeros(len(graphs) + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(num_nodes, dim=0, out=self.offsets[1:])
        self.node_types = node_types
        self.distances = distances

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, index: int) -> Graph:
        return self.graphs[index]

    def __iter__(self) -> Iterator[Graph]:
        return iter(self.graphs)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GraphBatch:
        """A batch with node types and distances on a device, itself where they are there.

        The counts stay on the CPU, where they are read. To a GPU the others are copied without
        waiting for it, whatever ``non_blocking`` says.
        """
        device = torch.device(device)

        def move(tensor: Tensor) -> Tensor:
            if device.type == "cuda":
                return to_device(tensor, device)
            return tensor.to(device, non_blocking=non_blocking)

        return self._with(move(self.node_types), move(self.distances))

    def pin_memory(self) -> GraphBatch:
        """A batch with node types and distances in memory that a GPU copies from directly."""
        return self._with(self.node_types.pin_memory(), self.distances.pin_memory())

    def _with(self, node_types: Tensor, distances: Tensor) -> GraphBatch:
        if node_types is self.node_types and distances is self.distances:
            return self
        batch = copy.copy(self)
        batch.node_types, batch.distances = node_types, distances
        return batch


def _distances(graphs: Sequence[Graph], device: torch.device) -> Sequence[Tensor]:
    """Matrices of all graphs on a device."""
    if device.type == "cpu":
        return [graph.distances for graph in graphs]
    matrices: dict[int, Tensor] = {}
    for limit in {graph.max_distance for graph in graphs}:
        numbers = [number for number, graph in enumerate(graphs) if graph.max_distance == limit]
        sizes = [graphs[number].num_nodes for number in numbers]
        edges = [graphs[number].edges for number in numbers]
        made = shortest_paths_batch(sizes, edges, limit, device)
        matrices.update(zip(numbers, made, strict=True))
    return [matrices[number] for number in range(len(graphs))]
