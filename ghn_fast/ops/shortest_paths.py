"""All-pairs shortest path lengths of directed acyclic graphs (virtual edges, arXiv 2110.13100)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_DISTANCE = 50
"""Virtual edges join nodes at most this far apart (arXiv 2110.13100, section 3.3)."""


def shortest_paths(num_nodes: int, edges: Tensor, max_distance: int = MAX_DISTANCE) -> Tensor:
    """Shortest path lengths of one graph whose nodes are in topological order.

    Args:
        num_nodes: N, at most 65,535.
        edges: (E, 2) int64 pairs (source, target), source < target.
        max_distance: longer paths count as none; 1 to 254.

    Returns:
        (N, N) uint8: entry (u, v) is the length of the shortest path from u to v where it is
        from 1 to ``max_distance``, else 0.

    Raises:
        ValueError: an edge that is out of range or does not go forward (a cycle), or too many
            nodes.
    """
    return shortest_paths_batch([num_nodes], [edges], max_distance)[0]


def shortest_paths_batch(
    num_nodes: Sequence[int], edges: Sequence[Tensor], max_distance: int = MAX_DISTANCE
) -> list[Tensor]:
    """:func:`shortest_paths` of many graphs in one call, in parallel over them.

    Edges on a CUDA device stay there, where the core was built with a CUDA compiler; they are
    taken to be valid, as the device does not check them.
    """
    from ghn_fast._core import core

    if edges and edges[0].is_cuda and hasattr(core, "shortest_paths_cuda"):
        return _on_device(num_nodes, edges, max_distance)
    matrices = core.shortest_paths(
        list(num_nodes),
        [pairs.reshape(-1, 2).cpu().numpy() for pairs in edges],
        max_distance,
        torch.get_num_threads(),
    )
    return [
        torch.from_numpy(matrix).to(pairs.device)
        for matrix, pairs in zip(matrices, edges, strict=True)
    ]


def _on_device(
    num_nodes: Sequence[int], edges: Sequence[Tensor], max_distance: int
) -> list[Tensor]:
    from ghn_fast._core import core

    device = edges[0].device
    nodes = torch.tensor([0, *num_nodes], device=device)
    node_offsets = nodes.cumsum(0)
    matrix_offsets = nodes.square().cumsum(0)
    sources = torch.cat([e[:, 0] + start for e, start in zip(edges, node_offsets, strict=False)])
    order = sources.argsort(stable=True)
    successors = torch.cat([pairs[:, 1] for pairs in edges])[order].contiguous()
    starts = torch.arange(sum(num_nodes) + 1, device=device)
    successor_offsets = torch.searchsorted(sources[order], starts)
    sizes = [n * n for n in num_nodes]
    distances = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    with torch.cuda.device(device):
        core.shortest_paths_cuda(
            node_offsets.data_ptr(),
            matrix_offsets.data_ptr(),
            successor_offsets.data_ptr(),
            successors.data_ptr(),
            len(num_nodes),
            max_distance,
            distances.data_ptr(),
            torch.cuda.current_stream(device).cuda_stream,
        )
    return [matrix.view(n, n) for matrix, n in zip(distances.split(sizes), num_nodes, strict=True)]


def shortest_paths_reference(
    num_nodes: int, edges: Tensor, max_distance: int = MAX_DISTANCE
) -> Tensor:
    """The same by the definition, in PyTorch: v is at distance d if a successor is at d - 1."""
    adjacency = torch.zeros(num_nodes, num_nodes)
    adjacency[edges[:, 0], edges[:, 1]] = 1
    distances = torch.zeros(num_nodes, num_nodes, dtype=torch.uint8)
    reached = adjacency
    for distance in range(1, max_distance + 1):
        distances[(reached > 0) & (distances == 0)] = distance
        reached = (adjacency @ reached > 0).float()
        if not reached.any():
            break
    return distances
