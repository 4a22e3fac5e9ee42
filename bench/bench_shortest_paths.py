"""shortest_paths over sizes, beside merely writing the matrix, and networkx where importable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rates import device_of, waiting
from torch import Tensor

from ghn_fast import DeepNets1M
from ghn_fast.ops.shortest_paths import runs_on_cuda, shortest_paths, shortest_paths_batch

SIZES = (90, 335, 1000, 3000)


def network_edges(num_nodes: int) -> Tensor:
    """(E, 2): a path with as many residual connections as networks have, 1.15 edges a node."""
    path = torch.arange(num_nodes - 1)
    skips = path[:-6:7]
    return torch.cat((torch.stack((path, path + 1), 1), torch.stack((skips, skips + 4), 1)))


def writing(num_nodes: int, edges: Tensor) -> Callable[[], object]:
    matrix = torch.empty(num_nodes, num_nodes, dtype=torch.uint8)
    return lambda: matrix.fill_(1)


def networkx(num_nodes: int, edges: Tensor) -> Callable[[], object]:
    nx = pytest.importorskip("networkx")
    graph = nx.DiGraph(edges.tolist())
    return lambda: dict(nx.all_pairs_shortest_path_length(graph, cutoff=50))


@pytest.mark.parametrize("way", ["ghn_fast", "writing", "networkx"])
@pytest.mark.parametrize("num_nodes", SIZES)
def bench_one(benchmark: Any, num_nodes: int, way: str) -> None:
    if way == "networkx" and num_nodes > 1000:
        pytest.skip("takes minutes")
    benchmark.group = f"shortest_paths, {num_nodes} nodes"
    edges = network_edges(num_nodes)
    benchmark.extra_info.update(nodes=num_nodes, kbytes=round(num_nodes**2 / 1e3, 1))
    ways = {
        "ghn_fast": lambda n, e: lambda: shortest_paths(n, e),
        "writing": writing,
        "networkx": networkx,
    }
    benchmark(ways[way](num_nodes, edges))


@pytest.mark.parametrize("way", ["cpp", "cuda", "cuda copy"])
@pytest.mark.parametrize("num_graphs", [8, 64])
def bench_batch(benchmark: Any, num_graphs: int, way: str) -> None:
    """``cuda`` computes on the GPU from edges there; the copy brings there what the CPU made.

    Both give the distances on the GPU.
    """
    device = device_of(way)
    benchmark.group = f"shortest_paths, {num_graphs} DeepNets-1M graphs"
    nets = DeepNets1M(split="train", seed=0, num_nets=num_graphs)
    graphs = [nets[index] for index in range(num_graphs)]
    sizes, edges = [graph.num_nodes for graph in graphs], [graph.edges for graph in graphs]
    benchmark.extra_info["kbytes"] = round(sum(size**2 for size in sizes) / 1e3, 1)
    if way == "cuda":
        if not runs_on_cuda():
            pytest.skip("the core was built without a CUDA compiler")
        edges = [pairs.to(device) for pairs in edges]
    benchmark(waiting(lambda: shortest_paths_batch(sizes, edges, device=device), device))
