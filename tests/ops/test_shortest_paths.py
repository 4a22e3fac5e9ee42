from __future__ import annotations

import networkx as nx
import pytest
import torch

from ghn_fast.ops.shortest_paths import (
    shortest_paths,
    shortest_paths_batch,
    shortest_paths_reference,
)
from tests.graphs import random_edges


def by_networkx(num_nodes: int, edges: torch.Tensor, max_distance: int) -> torch.Tensor:
    graph = nx.DiGraph()
    graph.add_nodes_from(range(num_nodes))
    graph.add_edges_from(edges.tolist())
    distances = torch.zeros(num_nodes, num_nodes, dtype=torch.uint8)
    for source, lengths in nx.all_pairs_shortest_path_length(graph, cutoff=max_distance):
        for target, length in lengths.items():
            distances[source, target] = length
    return distances


@pytest.mark.parametrize("num_nodes", [1, 2, 17, 64, 130, 300])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("max_distance", [1, 7, 50, 254])
def test_equals_networkx(num_nodes: int, density: float, max_distance: int) -> None:
    generator = torch.Generator().manual_seed(num_nodes)
    edges = random_edges(num_nodes, generator, density)
    edges = edges[torch.rand(len(edges), generator=generator) < 0.95]  # some nodes disconnected
    found = shortest_paths(num_nodes, edges, max_distance)
    assert found.dtype == torch.uint8
    assert torch.equal(found, by_networkx(num_nodes, edges, max_distance))


def test_reference_equals_core(generator: torch.Generator) -> None:
    edges = random_edges(80, generator, 0.05)
    assert torch.equal(shortest_paths(80, edges, 20), shortest_paths_reference(80, edges, 20))


def test_longer_than_a_byte(generator: torch.Generator) -> None:
    """On a path of 600 nodes distances saturate instead of wrapping around."""
    edges = random_edges(600, generator, 0.0)
    expected = (torch.arange(600)[None] - torch.arange(600)[:, None]).clamp(min=0)
    expected[expected > 254] = 0
    assert torch.equal(shortest_paths(600, edges, 254).long(), expected)


def test_batch_equals_single(generator: torch.Generator) -> None:
    sizes = [5, 100, 1, 33]
    edges = [random_edges(size, generator) for size in sizes]
    batch = shortest_paths_batch(sizes, edges)
    for size, pairs, distances in zip(sizes, edges, batch, strict=True):
        assert torch.equal(distances, shortest_paths(size, pairs))


@pytest.mark.parametrize(
    ("num_nodes", "edges", "message"),
    [
        (3, [[0, 1], [1, 3]], r"edge \(1, 3\) is out of range for 3 nodes"),
        (3, [[-1, 1]], r"edge \(-1, 1\) is out of range"),
        (3, [[0, 1], [2, 1]], r"edge \(2, 1\) does not go forward"),
        (3, [[1, 1]], r"edge \(1, 1\) does not go forward"),
        (65536, [[0, 1]], "65536 nodes is too large; at most 65535"),
    ],
)
def test_invalid_graphs(num_nodes: int, edges: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shortest_paths(num_nodes, torch.tensor(edges))


@pytest.mark.parametrize("max_distance", [0, 255])
def test_invalid_max_distance(max_distance: int) -> None:
    with pytest.raises(ValueError, match="max_distance must be from 1 to 254"):
        shortest_paths(2, torch.tensor([[0, 1]]), max_distance)


def test_no_edges() -> None:
    assert shortest_paths(3, torch.zeros(0, 2, dtype=torch.int64)).sum() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("max_distance", [5, 50, 254])
def test_on_a_gpu(max_distance: int, generator: torch.Generator) -> None:
    sizes = [1, 40, 333, 900]
    edges = [random_edges(size, generator, 0.03) for size in sizes]
    on_device = shortest_paths_batch(sizes, [pairs.cuda() for pairs in edges], max_distance)
    for found, expected in zip(
        on_device, shortest_paths_batch(sizes, edges, max_distance), strict=True
    ):
        assert found.is_cuda
        assert torch.equal(found.cpu(), expected)
