from __future__ import annotations

import ctypes
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import networkx as nx
import pytest
import torch

from ghn_fast._core import core
from ghn_fast.ops.shortest_paths import (
    _on_device,
    check_edges,
    device_dags,
    runs_on_cuda,
    shortest_paths,
    shortest_paths_batch,
    shortest_paths_reference,
)
from tests.graphs import random_edges

CUDA_SOURCE = Path(__file__).parents[2] / "csrc" / "shortest_paths.cu"


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
    sizes = [5, 900, 1, 333, 700]  # enough for several threads
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


def test_invalid_batches() -> None:
    with pytest.raises(ValueError, match="2 node counts were passed with 1 edge lists"):
        shortest_paths_batch([2, 3], [torch.tensor([[0, 1]])])
    assert shortest_paths_batch([], []) == []


@pytest.mark.parametrize(
    ("num_nodes", "edges"), [(3, [[0, 1], [1, 3]]), (3, [[2, 1]]), (65536, [[0, 1]])]
)
def test_edges_are_checked_as_the_core_checks_them(num_nodes: int, edges: list) -> None:
    pairs = torch.tensor(edges)
    with pytest.raises(ValueError) as expected:
        shortest_paths(num_nodes, pairs)
    with pytest.raises(ValueError) as found:
        check_edges(num_nodes, pairs)
    assert str(found.value) == str(expected.value)


@pytest.fixture(scope="session")
def cuda_source_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA source as a library for the CPU, threads running one after the other."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or not CUDA_SOURCE.is_file():
        pytest.skip("needs a C++ compiler and a checkout")
    library = tmp_path_factory.mktemp("cuda") / "shortest_paths.so"
    sources = Path(__file__).parent / "cuda_on_cpu"
    includes = [f"-I{sources}", f"-I{CUDA_SOURCE.parent}"]
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Werror"]
    source = str(sources / "shortest_paths.cpp")
    subprocess.run([compiler, *flags, *includes, source, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def by_cuda_source(
    library: ctypes.CDLL, sizes: list[int], edges: list[torch.Tensor], max_distance: int
) -> list[torch.Tensor]:
    arrays = device_dags(sizes, edges)
    counts = [size * size for size in sizes]
    # Guards on both sides, and values that have to be overwritten.
    memory = torch.full((sum(counts) + 2,), 77, dtype=torch.uint8)
    library.shortest_paths_on_cpu(
        *(ctypes.c_void_p(array.data_ptr()) for array in arrays),
        ctypes.c_int(len(sizes)),
        ctypes.c_int64(max(sizes)),
        ctypes.c_int(max_distance),
        ctypes.c_void_p(memory[1:].data_ptr()),
    )
    assert memory[0] == memory[-1] == 77
    pairs = zip(memory[1:-1].split(counts), sizes, strict=True)
    return [matrix.view(size, size) for matrix, size in pairs]


def test_on_device_without_edges(
    cuda_source_on_cpu: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*arguments: int) -> None:
        kinds = [ctypes.c_void_p] * 4 + [ctypes.c_int, ctypes.c_int64, ctypes.c_int]
        passed = zip([*kinds, ctypes.c_void_p], arguments[:-1], strict=True)
        cuda_source_on_cpu.shortest_paths_on_cpu(*(kind(value) for kind, value in passed))

    monkeypatch.setattr(core, "shortest_paths_cuda", launch, raising=False)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    edges = [torch.tensor([]), torch.tensor([[0, 1]])]
    found = _on_device([3, 2], edges, 50, torch.device("cpu"))
    assert [matrix.tolist() for matrix in found] == [[[0] * 3] * 3, [[0, 1], [0, 0]]]


@pytest.mark.parametrize("max_distance", [1, 7, 50, 254])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3])
def test_cuda_source_equals_core(
    cuda_source_on_cpu: ctypes.CDLL, density: float, max_distance: int, generator: torch.Generator
) -> None:
    sizes = [1, 40, 333, 2, 130]
    edges = [random_edges(size, generator, density) for size in sizes]
    edges = [pairs[torch.rand(len(pairs), generator=generator) < 0.95] for pairs in edges]
    shuffled = [pairs[torch.randperm(len(pairs), generator=generator)] for pairs in edges]
    found = by_cuda_source(cuda_source_on_cpu, sizes, shuffled, max_distance)
    for matrix, expected in zip(
        found, shortest_paths_batch(sizes, edges, max_distance), strict=True
    ):
        assert torch.equal(matrix, expected)


def test_cuda_source_leaves_out_edges_that_do_not_go_forward(
    cuda_source_on_cpu: ctypes.CDLL,
) -> None:
    """They must not be followed out of the matrix."""
    edges = torch.tensor([[0, 1], [1, 1], [1, 10**9], [2, -5], [2, 0], [1, 2]])
    (found,) = by_cuda_source(cuda_source_on_cpu, [3], [edges], 50)
    assert torch.equal(found, shortest_paths(3, torch.tensor([[0, 1], [1, 2]])))


def test_cuda_source_keeps_edges_within_their_graphs(cuda_source_on_cpu: ctypes.CDLL) -> None:
    first = torch.tensor([[0, 1], [3, 1], [5, 2]])
    second = torch.tensor([[-1, 2], [1, 2]])
    found = by_cuda_source(cuda_source_on_cpu, [3, 3], [first, second], 50)
    assert torch.equal(found[0], shortest_paths(3, torch.tensor([[0, 1]])))
    assert torch.equal(found[1], shortest_paths(3, torch.tensor([[1, 2]])))


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90"])
def test_cuda_source_compiles(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None or not CUDA_SOURCE.is_file():
        pytest.skip("needs nvcc and a checkout")
    target = str(tmp_path / "shortest_paths.o")
    flags = ["-std=c++17", f"-arch={architecture}", "-Werror", "all-warnings", "-c"]
    subprocess.run([nvcc, *flags, str(CUDA_SOURCE), "-o", target], check=True)


needs_cuda_core = pytest.mark.skipif(
    not (torch.cuda.is_available() and runs_on_cuda()),
    reason="needs a CUDA device and a core built with a CUDA compiler",
)


@pytest.mark.gpu
@needs_cuda_core
@pytest.mark.parametrize("max_distance", [5, 50, 254])
@pytest.mark.parametrize("made_from", ["cpu", "cuda"])
def test_on_a_gpu(made_from: str, max_distance: int, generator: torch.Generator) -> None:
    sizes = [1, 40, 333, 900]
    edges = [random_edges(size, generator, 0.03) for size in sizes]
    given = [pairs.to(made_from) for pairs in edges]
    on_device = shortest_paths_batch(sizes, given, max_distance, "cuda")
    for found, expected in zip(
        on_device, shortest_paths_batch(sizes, edges, max_distance), strict=True
    ):
        assert found.is_cuda
        assert torch.equal(found.cpu(), expected)


@pytest.mark.gpu
@needs_cuda_core
def test_invalid_graphs_for_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"edge \(2, 1\) does not go forward"):
        shortest_paths_batch([3], [torch.tensor([[2, 1]])], device="cuda")
