"""The order in which nodes are visited: renumbered once, level after level.

A level is then a range of rows, and what it hears is a range before it. A step of a walk takes some
rows of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghn_fast._system.device import to_device
from ghn_fast.kernels.gated_gnn.widths import ROWS

SORT_ROWS = 16
SORT_COLUMNS = 128
# Graphs and levels in one key to sort by.
_LEVEL_BITS = tl.constexpr(16)


@triton.jit
def find_levels(distances, node_offsets, matrix_offsets, keys, BLOCK: tl.constexpr):
    """keys (sum N,) int64: the number of each node's graph and, in the low bits, of its level.

    One program a graph. The next row is on its way while the levels take in the one before.
    """
    graph = tl.program_id(0)
    first = tl.load(node_offsets + graph)
    n = tl.load(node_offsets + graph + 1) - first
    nodes = tl.arange(0, BLOCK)
    inside = nodes < n
    rows = distances + tl.load(matrix_offsets + graph) + nodes
    level = tl.zeros([BLOCK], tl.int32)
    row = tl.load(rows, mask=inside, other=0)
    for node in range(0, n):
        rows += n
        next_row = tl.load(rows, mask=nodes < tl.where(node + 1 < n, n, 0), other=0)
        own = tl.sum(tl.where(nodes == node, level, 0), axis=0)
        hears = (row != 0) & (nodes > node)
        level = tl.maximum(level, tl.where(hears, own + 1, 0))
        row = next_row
    key = (graph.to(tl.int64) << _LEVEL_BITS) + level
    tl.store(keys + first + nodes, key, mask=inside)


@triton.jit
def sort_distances(
    distances,
    node_offsets,
    matrix_offsets,
    order,
    heard,
    hearers,
    lowest,
    highest,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The distances between renumbered nodes: ``heard`` by each node, and to its ``hearers``.

    A program makes some rows of both. Also the first node that each one hears, and the end of
    those that hear it; a node that hears nobody, or that nobody hears, has itself there.
    """
    graph = tl.program_id(0)
    first = tl.load(node_offsets + graph)
    n = tl.load(node_offsets + graph + 1) - first
    origin = tl.load(matrix_offsets + graph)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    own = tl.load(order + first + rows, mask=inside, other=0) - first
    low = rows
    high = rows + 1
    for start in range(0, n, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        valid = inside[:, None] & (columns < n)[None, :]
        other = tl.load(order + first + columns, mask=columns < n, other=0) - first
        before = tl.load(
            distances + origin + other[None, :] * n + own[:, None],
            mask=valid & (columns[None, :] < rows[:, None]),
            other=0,
        )
        after = tl.load(
            distances + origin + own[:, None] * n + other[None, :],
            mask=valid & (columns[None, :] > rows[:, None]),
            other=0,
        )
        place = origin + rows.to(tl.int64)[:, None] * n + columns[None, :]
        tl.store(heard + place, before, mask=valid)
        tl.store(hearers + place, after, mask=valid)
        low = tl.minimum(low, tl.min(tl.where(before != 0, columns[None, :], n), axis=1))
        high = tl.maximum(high, tl.max(tl.where(after != 0, columns[None, :] + 1, 0), axis=1))
    tl.store(lowest + first + rows, first + low, mask=inside)
    tl.store(highest + first + rows, first + high, mask=inside)


@dataclass
class Schedule:
    """The nodes of a batch renumbered level after level, and what a walk needs of them.

    Attributes:
        node_offsets: (B + 1,) int32, where each graph's nodes begin.
        matrix_offsets: (B,) int64, where each graph's matrix begins.
        order: (sum N,) int64, the node that each number stands for.
        steps: (4, at least sum N) int32: for each node the end of its step and the first node
            that its step or a later one hears; the start of its step and the end of those that
            hear its step or an earlier one.
        distances: (2, at least sum N^2) uint8: to each node from those it hears, and from it to
            those that hear it.
    """

    node_offsets: Tensor
    matrix_offsets: Tensor
    order: Tensor
    steps: Tensor
    distances: Tensor

    def tensors(self) -> list[Tensor]:
        return [
            self.node_offsets,
            self.matrix_offsets,
            self.order,
            self.steps,
            self.distances,
        ]

    def walk(self, ascending: bool) -> list[Tensor]:
        """The first arguments of a pass that visits the nodes in this order."""
        ends, reaches = self.steps[:2] if ascending else self.steps[2:]
        distances = self.distances[0 if ascending else 1]
        return [distances, self.node_offsets, self.matrix_offsets, ends, reaches]


def make_schedule(distances: Tensor, num_nodes: Tensor) -> Schedule:
    """For distances on the device, of at least one node, without waiting for it."""
    device = distances.device
    counts = num_nodes.tolist()
    nodes, most = sum(counts), max(counts)
    node_offsets, matrix_offsets = _offsets(num_nodes, device)
    keys = torch.empty(nodes, dtype=torch.int64, device=device)
    block = triton.next_power_of_2(most)
    find_levels[(len(counts),)](
        *(distances, node_offsets, matrix_offsets, keys),
        BLOCK=block,
        num_warps=warps_of(block),
        num_stages=1,
    )
    keys, order = torch.sort(keys, stable=True)
    steps = torch.zeros(4, aligned(nodes), dtype=torch.int32, device=device)
    ends, lowest, starts, highest = steps[:, :nodes]
    level_starts = torch.searchsorted(keys, keys)
    places = torch.arange(nodes, device=device)
    starts.copy_(places - (places - level_starts) % ROWS)
    ends.copy_(torch.minimum(starts + ROWS, torch.searchsorted(keys, keys, right=True)))
    sorted_distances = distances.new_zeros(2, aligned(len(distances)))
    sort_distances[(len(counts), triton.cdiv(most, SORT_ROWS))](
        *(distances, node_offsets, matrix_offsets, order),
        *(*sorted_distances, lowest, highest),
        ROWS=SORT_ROWS,
        COLUMNS=SORT_COLUMNS,
        num_stages=1,
    )
    # Graphs follow each other, so that none reaches into another.
    lowest.copy_(lowest.flip(0).cummin(0).values.flip(0))
    highest.copy_(highest.cummax(0).values)
    return Schedule(node_offsets, matrix_offsets, order, steps, sorted_distances)


def aligned(count: int) -> int:
    """Rounded up, so that rows begin at multiples of 16 bytes: Triton compiles kernels anew for
    addresses that do not."""
    return -(-count // 16) * 16


def warps_of(block: int) -> int:
    """For a vector of so many elements."""
    return min(max(block // 256, 1), 32)


def _offsets(num_nodes: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where nodes and matrices begin, in one copy that the host does not wait for."""
    count = len(num_nodes)
    both = torch.zeros(2, count + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(num_nodes, 0, out=both[0, 1:])
    torch.cumsum(num_nodes.square(), 0, out=both[1, 1:])
    both = to_device(both, device)
    return both[0].int(), both[1, :count].clone()
