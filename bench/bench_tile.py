"""tile: from decoded blocks to all parameters of a model, beside a mere copy of the parameters.

The blocks are as large as a GHN with 64 x 64 channels decodes them, in the order in which its
decoder leaves them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from rates import bytes_per_second, card, device_of, waiting
from torch import Tensor

from ghn_fast.ops.tile import Tile, TileTable, tile, tile_

CHANNELS = 64


@dataclass
class Problem:
    blocks: list[Tensor]
    table: TileTable
    parameters: list[Tensor]

    def to(self, device: torch.device) -> Problem:
        blocks = [block.to(device) for block in self.blocks]
        return Problem(blocks, self.table, [p.detach().to(device) for p in self.parameters])


def make_problem(name: str) -> Problem:
    torchvision = pytest.importorskip("torchvision")
    groups: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for parameter in getattr(torchvision.models, name)().parameters():
        groups[tuple(parameter.shape)].append(parameter.detach())
    problem = Problem([], TileTable([]), [])
    tiles = []
    for shape, parameters in groups.items():
        problem.blocks.append(make_blocks(len(parameters), shape))
        for row, parameter in enumerate(parameters):
            rule = "scale" if len(shape) > 1 else "bias"
            tiles.append(Tile(len(problem.blocks) - 1, row, shape, rule, 0.1))
            problem.parameters.append(parameter)
    problem.table = TileTable(tiles)
    return problem


def make_blocks(number: int, shape: tuple[int, ...]) -> Tensor:
    """(number, *block); space varies slowest in memory, as the decoder computes it."""
    channels = [min(size, CHANNELS) for size in shape[:2]]
    blocks = torch.randn(number, *shape[2:], *channels)
    spaces = len(shape[2:])
    return (
        blocks.movedim(tuple(range(1, 1 + spaces)), tuple(range(-spaces, 0))) if spaces else blocks
    )


def copy(problem: Problem) -> Callable[[], object]:
    """The limit: what moving as many values from warm memory into the parameters takes."""
    sources = [torch.randn_like(parameter) for parameter in problem.parameters]
    return lambda: torch._foreach_copy_(problem.parameters, sources)


def note_size(benchmark, problem: Problem) -> None:
    """What has to be written, and on a GPU how long its memory takes for it."""
    count = sum(parameter.numel() for parameter in problem.parameters)
    size = sum(parameter.nbytes for parameter in problem.parameters)
    device = problem.parameters[0].device
    benchmark.extra_info.update(parameters=count, mbytes=round(size / 1e6, 1), **card(device))
    if device.type == "cuda":
        benchmark.extra_info["bytes_ms"] = round(1e3 * size / bytes_per_second(device), 4)


CPU_WAYS = ("copy", "cpp", "reference")
CUDA_WAYS = ("cuda copy", "triton", "cuda reference")


def filling(problem: Problem, way: str) -> Callable[[], object]:
    how = way.split()[-1]
    if how == "copy":
        return copy(problem)
    return lambda: tile_(problem.blocks, problem.table, problem.parameters, how)


@pytest.mark.parametrize("way", [*CPU_WAYS, *CUDA_WAYS])
@pytest.mark.parametrize("model", ["mobilenet_v3_small", "resnet18", "resnet50", "vit_l_16"])
def bench_fill(benchmark, model: str, way: str) -> None:
    device = device_of(way)
    if model == "vit_l_16" and device.type == "cpu":
        pytest.skip("needs several GB")
    benchmark.group = f"tile into the parameters of {model}, {device.type}"
    problem = make_problem(model).to(device)
    note_size(benchmark, problem)
    benchmark(waiting(filling(problem, way), device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", [*CPU_WAYS, *CUDA_WAYS])
def bench_fill_half(benchmark, way: str, dtype: torch.dtype) -> None:
    device = device_of(way)
    benchmark.group = f"tile into the parameters of resnet50 in {dtype}, {device.type}"
    problem = make_problem("resnet50").to(device)
    problem.parameters = [parameter.to(dtype) for parameter in problem.parameters]
    note_size(benchmark, problem)
    benchmark(waiting(filling(problem, way), device))


@pytest.mark.parametrize("way", ["cpp", "reference", "triton", "cuda reference"])
@pytest.mark.parametrize("model", ["mobilenet_v3_small", "resnet50"])
def bench_forward_backward(benchmark, model: str, way: str) -> None:
    device, backend = device_of(way), way.split()[-1]
    benchmark.group = f"tile forward + backward, {model}, {device.type}"
    problem = make_problem(model).to(device)
    note_size(benchmark, problem)
    blocks = [block.requires_grad_() for block in problem.blocks]
    grads = [torch.randn_like(parameter) for parameter in problem.parameters]

    def step() -> None:
        torch.autograd.grad(tile(blocks, problem.table, backend=backend), blocks, grads)

    benchmark(waiting(step, device))
