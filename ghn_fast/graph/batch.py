"""Several graphs as one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ghn_fast.graph.graph import Graph


class GraphBatch:
    """Graphs laid out one after another, as the operations take them.

    Attributes:
        graphs: the B graphs.
        num_nodes: (B,) int64 on the CPU, nodes of each graph.
        offsets: (B + 1,) int64 on the CPU, where each graph's nodes begin in the batch.
        node_types: (sum N,) int64.
        distances: (sum N*N,) uint8, the distance matrices flattened row by row.
    """

    def __init__(self, graphs: Sequence[Graph]) -> None:
        if len(graphs) == 0:
            raise ValueError("a GraphBatch needs at least one graph")
        self.graphs: tuple[Graph, ...] = tuple(graphs)
        self.num_nodes = torch.tensor([graph.num_nodes for graph in graphs], dtype=torch.int64)
        self.offsets = torch.zeros(len(graphs) + 1, dtype=torch.int64)
        torch.cumsum(self.num_nodes, dim=0, out=self.offsets[1:])
        self.node_types = torch.cat([graph.node_types for graph in graphs])
        self.distances = torch.cat([graph.distances.flatten() for graph in graphs])

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, index: int) -> Graph:
        return self.graphs[index]

    def __iter__(self) -> Iterator[Graph]:
        return iter(self.graphs)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GraphBatch:
        """Moves node types and distances; the counts stay on the CPU, where they are read."""
        self.node_types = self.node_types.to(device, non_blocking=non_blocking)
        self.distances = self.distances.to(device, non_blocking=non_blocking)
        return self

    def pin_memory(self) -> GraphBatch:
        self.node_types = self.node_types.pin_memory()
        self.distances = self.distances.pin_memory()
        return self
