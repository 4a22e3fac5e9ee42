"""All-pairs shortest path lengths of directed acyclic graphs (virtual edges, arXiv 2110.13100)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ghn_fast._core import core
from ghn_fast._system.device import to_device

MAX_DISTANCE = 50
"""Virtual edges join nodes at most this far apart (arXiv 2110.13100, section 3.3)."""

MOST_DISTANCE = 254
"""That can be asked for: distances are bytes."""

MAX_NODES = 65_535
"""Of a graph."""


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
        ValueError: an edge that is out of range or does not go forward (a cycle), edges that are
            no pairs of integers, too many nodes, or another distance.
    """
    if not edges.is_cpu:
        return shortest_paths_batch([num_nodes], [edges], max_distance)[0]
    check_size(num_nodes)
    distances = torch.empty(num_nodes, num_nodes, dtype=torch.uint8, device="cpu")
    _fill(distances, [num_nodes], [edges], max_distance)
    return distances


def shortest_paths_batch(
    num_nodes: Sequence[int],
    edges: Sequence[Tensor],
    max_distance: int = MAX_DISTANCE,
    device: torch.device | str | None = None,
) -> list[Tensor]:
    """:func:`shortest_paths` of many graphs in one call, in parallel over them.

    Args:
        num_nodes, edges, max_distance: as for :func:`shortest_paths`, of each graph.
        device: where the distances shall be, that of the edges where left out. Of edges on a CUDA
            device they are computed there, where the core was built with a CUDA compiler. Those of
            edges on the CPU are computed here and copied, which takes a ninth of the time for 8
            graphs of DeepNets-1M and a fifth for 64 (``bench/bench_shortest_paths.py``, H200).

    Returns:
        The matrices, views of one tensor that holds them one after the other.

    Raises:
        ValueError: as for :func:`shortest_paths`; edges that are on a CUDA device are not looked
            at, as that would wait for the device, and those that do not go forward are left out.
    """
    if len(num_nodes) != len(edges):
        raise ValueError(f"{len(num_nodes)} node counts were passed with {len(edges)} edge lists")
    if len(edges) == 0:
        return []
    device = torch.device(device or edges[0].device)
    if device.type == "cuda" and runs_on_cuda() and any(pairs.is_cuda for pairs in edges):
        return _on_device(num_nodes, edges, max_distance, device)
    for count in num_nodes:
        check_size(count)
    distances = torch.empty(sum(n * n for n in num_nodes), dtype=torch.uint8, device="cpu")
    _fill(distances, num_nodes, edges, max_distance)
    return matrices(to_device(distances, device), num_nodes)


def _fill(
    distances: Tensor, num_nodes: Sequence[int], edges: Sequence[Tensor], max_distance: int
) -> None:
    """Writes the matrices one after the other; distances are uint8 on the CPU, of that size."""
    if not 1 <= max_distance <= MOST_DISTANCE:
        raise ValueError(f"max_distance must be from 1 to {MOST_DISTANCE}, not {max_distance}")
    pairs = [as_pairs(tensor).cpu() for tensor in edges]
    core.shortest_paths(
        num_nodes,
        [tensor.data_ptr() for tensor in pairs],
        [tensor.shape[0] for tensor in pairs],
        max_distance,
        distances.data_ptr(),
        torch.get_num_threads(),
    )


def as_pairs(edges: Tensor) -> Tensor:
    """(E, 2) int64 in one piece; the tensor itself where it is that.

    Raises:
        ValueError: edges of another shape, or that are no integers; there may be none of any shape.
    """
    if edges.numel() == 0:
        return edges.new_zeros(0, 2, dtype=torch.int64)
    if edges.dim() != 2 or edges.shape[1] != 2:
        raise ValueError(
            f"edges must be pairs (E, 2), not of shape {tuple(edges.shape)}; transpose those of "
            "shape (2, E), as PyTorch Geometric has them"
        )
    if edges.is_floating_point() or edges.is_complex() or edges.dtype is torch.bool:
        raise ValueError(f"edges must be int64 numbers of nodes, not {edges.dtype}")
    return edges.to(torch.int64).contiguous()


def matrices(distances: Tensor, num_nodes: Sequence[int]) -> list[Tensor]:
    """The square matrices (N, N) of graphs that are flattened one after the other."""
    parts = distances.split([n * n for n in num_nodes])
    return [part.view(n, n) for part, n in zip(parts, num_nodes, strict=True)]


def runs_on_cuda() -> bool:
    """Whether the core was built with a CUDA compiler."""
    return core.cuda


def check_edges(num_nodes: int, edges: Tensor) -> None:
    """Raises ValueError for edges (E, 2) that are out of range or do not go forward."""
    check_size(num_nodes)
    source, target = edges.numpy(force=True).T
    inside = source.min(initial=0) >= 0 and target.max(initial=-1) < num_nodes
    if inside and (source < target).all():
        return
    outside = ((edges < 0) | (edges >= num_nodes)).any(dim=1)
    backward = edges[:, 0] >= edges[:, 1]
    for wrong, problem in (
        (outside, f"is out of range for {num_nodes} nodes"),
        (
            backward,
            "does not go forward: the nodes are not in topological order, or the graph has a cycle",
        ),
    ):
        if wrong.any():
            first = tuple(edges[wrong][0].tolist())
            raise ValueError(f"edge {first} {problem}")


def check_size(num_nodes: int) -> None:
    if num_nodes < 0:
        raise ValueError(f"a graph cannot have {num_nodes} nodes")
    if num_nodes > MAX_NODES:
        raise ValueError(
            f"a graph of {num_nodes} nodes is too large; at most {MAX_NODES} nodes are supported"
        )


def _on_device(
    num_nodes: Sequence[int], edges: Sequence[Tensor], max_distance: int, device: torch.device
) -> list[Tensor]:
    edges = [as_pairs(pairs) for pairs in edges]
    for count, pairs in zip(num_nodes, edges, strict=True):
        check_edges(count, pairs if pairs.is_cpu else pairs[:0])
    edges = [to_device(pairs, device) for pairs in edges]
    node_offsets, matrix_offsets, successor_offsets, successors = (
        to_device(part, device) for part in device_dags(num_nodes, edges)
    )
    distances = torch.empty(sum(n * n for n in num_nodes), dtype=torch.uint8, device=device)
    with torch.cuda.device(device):
        core.shortest_paths_cuda(
            node_offsets.data_ptr(),
            matrix_offsets.data_ptr(),
            successor_offsets.data_ptr(),
            successors.data_ptr(),
            len(num_nodes),
            max(num_nodes),
            max_distance,
            distances.data_ptr(),
            torch.cuda.current_stream(device).cuda_stream,
        )
    return matrices(distances, num_nodes)


def device_dags(
    num_nodes: Sequence[int], edges: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The arrays of the core's ``DeviceDags``, all int64.

    Returns:
        Where the nodes of each graph begin (B + 1,) and where its matrix begins (B + 1,), both on
        the CPU; on the edges' device where each node's successors begin (sum N + 1,), and these
        (sum E,), numbers within their graph.
    """
    nodes = torch.tensor([0, *num_nodes], device="cpu")
    node_offsets, matrix_offsets = nodes.cumsum(0), nodes.square().cumsum(0)
    parts = [as_pairs(pairs) for pairs in edges]
    counts = torch.tensor([len(pairs) for pairs in parts], device="cpu")
    pairs = torch.cat(parts)
    shifts = to_device(node_offsets[:-1].repeat_interleave(counts), pairs.device)
    sizes = to_device(nodes[1:].repeat_interleave(counts), pairs.device)
    sources = pairs[:, 0]
    # What begins at no node of its graph is of none, behind them all.
    outside = (sources < 0) | (sources >= sizes)
    sources = torch.where(outside, sum(num_nodes), sources + shifts)
    sources, order = sources.sort(stable=True)
    starts = torch.arange(sum(num_nodes) + 1, device=pairs.device)
    successor_offsets = torch.searchsorted(sources, starts)
    return node_offsets, matrix_offsets, successor_offsets, pairs[:, 1][order].contiguous()


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
