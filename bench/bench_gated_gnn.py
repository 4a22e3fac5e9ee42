"""gated_gnn, forward and backward, on meta-batches of DeepNets-1M graphs.

Compares the C++ core, the Triton kernels on a GPU where there is one, the PyTorch reference, and
the public code (ppuda, where it is importable). Beside each time stand the floating-point
operations and bytes that cannot be avoided, and the time that each of them would take at the speed
of this machine's (or this card's) matrix products and memory copies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from rates import bytes_per_second, card, device_of, flops_per_second, waiting
from torch import Tensor, nn

from ghn_fast import DeepNets1M
from ghn_fast.graph import GraphBatch
from ghn_fast.ops.gated_gnn import gated_gnn

HID = 32


@dataclass
class Problem:
    graphs: GraphBatch
    x: Tensor
    mlp: list[Tensor]
    mlp_ve: list[Tensor]
    gru: list[Tensor]
    direction: Tensor

    def to(self, device: torch.device) -> Problem:
        def move(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device).requires_grad_(tensor.requires_grad)

        return replace(
            self,
            graphs=self.graphs.to(device),
            x=move(self.x),
            mlp=[move(w) for w in self.mlp],
            mlp_ve=[move(w) for w in self.mlp_ve],
            gru=[move(w) for w in self.gru],
            direction=move(self.direction),
        )

    @property
    def weights(self) -> list[Tensor]:
        return [*self.mlp, *self.gru, *self.mlp_ve]

    @property
    def flops(self) -> float:
        """Of the forward pass; the backward pass takes twice as many."""
        hid, width = HID, HID // 2
        node = 6 * hid * hid + 4 * hid * width
        pairs = int(self.graphs.distances.count_nonzero())
        return 2.0 * 2 * (len(self.x) * node + pairs * hid)

    @property
    def bytes(self) -> float:
        """That the forward pass must read and write: states, and distances in both directions."""
        return 2 * 2 * self.x.nbytes + 2 * self.graphs.distances.nbytes


def make_problem(num_graphs: int) -> Problem:
    nets = DeepNets1M(split="train", seed=0, num_nets=num_graphs)
    graphs = GraphBatch([nets[i] for i in range(num_graphs)])
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=g) * 0.1).requires_grad_()

    def mlp() -> list[Tensor]:
        return [normal(HID // 2, HID), normal(HID // 2), normal(HID, HID // 2), normal(HID)]

    gru = [normal(3 * HID, HID), normal(3 * HID, HID), normal(3 * HID), normal(3 * HID)]
    nodes = int(graphs.num_nodes.sum())
    return Problem(graphs, normal(nodes, HID), mlp(), mlp(), gru, torch.randn(nodes, HID))


def ours(problem: Problem, backend: str) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        return gated_gnn(
            problem.x,
            problem.graphs.distances,
            problem.graphs.num_nodes,
            problem.mlp,
            problem.mlp_ve,
            problem.gru,
            backend=backend,
        )

    return forward


def public(problem: Problem) -> Callable[[], Tensor]:
    peer = pytest.importorskip("ppuda.ghn.gatedgnn", reason="ppuda is not importable")
    net = peer.GatedGNN(HID, ve=True)
    names = ["mlp.fc.0", "mlp.fc.2", "mlp_ve.fc.0", "mlp_ve.fc.2"]
    pairs = zip(names, range(0, 8, 2), strict=True)
    both = [*problem.mlp, *problem.mlp_ve]
    for name, i in pairs:
        linear = net.get_submodule(name)
        linear.weight, linear.bias = nn.Parameter(both[i]), nn.Parameter(both[i + 1])
    for name, value in zip(
        ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), problem.gru, strict=True
    ):
        setattr(net.gru, name, nn.Parameter(value))
    edges = []
    for index, graph in enumerate(problem.graphs.graphs):
        source, target = graph.distances.nonzero().unbind(1)
        distance = graph.distances[source, target].long()
        edges.append(torch.stack([source, target, distance, torch.full_like(source, index)], 1))
    device = problem.x.device
    owners = torch.repeat_interleave(problem.graphs.num_nodes).to(device)
    table = torch.cat(edges).to(device)
    return lambda: net(problem.x.clone(), table, owners)


def note_limit(benchmark, problem: Problem, factor: float) -> None:
    """The work that cannot be avoided and the two floors that it puts on the time."""
    flops, num_bytes = factor * problem.flops, factor * problem.bytes
    device = problem.x.device
    benchmark.extra_info.update(
        nodes=len(problem.x),
        mflop=round(flops / 1e6, 1),
        mbytes=round(num_bytes / 1e6, 2),
        flops_ms=round(1e3 * flops / flops_per_second(device), 4),
        bytes_ms=round(1e3 * num_bytes / bytes_per_second(device), 4),
        **card(device),
    )


CPU_WAYS = ("cpp", "reference", "ppuda")
CUDA_WAYS = ("triton", "cuda reference", "cuda ppuda")


def make_way(num_graphs: int, way: str) -> tuple[Problem, Callable[[], Tensor]]:
    problem = make_problem(num_graphs).to(device_of(way))
    kind = way.split()[-1]
    return problem, public(problem) if kind == "ppuda" else ours(problem, kind)


@pytest.mark.parametrize("way", [*CPU_WAYS, *CUDA_WAYS])
@pytest.mark.parametrize("num_graphs", [1, 8, 64])
def bench_forward_backward(benchmark, num_graphs: int, way: str) -> None:
    if num_graphs == 64 and way in CPU_WAYS[1:]:
        pytest.skip("takes minutes")
    problem, forward = make_way(num_graphs, way)
    benchmark.group = f"gated_gnn forward + backward, {num_graphs} graphs, {problem.x.device.type}"
    note_limit(benchmark, problem, 3)
    benchmark(waiting(lambda: forward().backward(problem.direction), problem.x.device))


@pytest.mark.parametrize("way", [*CPU_WAYS, *CUDA_WAYS])
@pytest.mark.parametrize("num_graphs", [1, 8, 64])
def bench_forward(benchmark, num_graphs: int, way: str) -> None:
    if num_graphs == 64 and way in CPU_WAYS[1:]:
        pytest.skip("takes tens of seconds")
    problem, forward = make_way(num_graphs, way)
    benchmark.group = f"gated_gnn forward, {num_graphs} graphs, {problem.x.device.type}"
    note_limit(benchmark, problem, 1)
    with torch.no_grad():
        benchmark(waiting(forward, problem.x.device))
