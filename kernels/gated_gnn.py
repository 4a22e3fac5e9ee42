"""Gated message passing in Triton: each program walks one graph, level by level.

A level holds the nodes whose longest chain of heard nodes is equally long; they hear only earlier
levels. The nodes are renumbered once, level after level, so that a level is a range of rows and
what it hears is a range before it. A pass over all graphs of a batch is one launch: its programs
need nothing of each other, and within a program a barrier separates what is written from what is
read. Memory is coherent within a block of threads, so that states, messages and gates go through
global memory, where they stay in the nearest cache, and the backward pass finds them there.

What it costs (H100 SXM: 3.35 TB/s, 67 TFLOP/s in float32, 1.75 GHz), for a meta-batch of 8
DeepNets-1M graphs of 161 nodes and 97 levels on average, hid 32:

- flops: 2 passes x 2 x (1,290 nodes x (6 hid^2 + 4 hid width) + 115,000 pairs x 2 hid) = 72 M
  forward, twice that backward: 3 microseconds at the card's rate;
- bytes: 4 x 165 KB of states, 2 x 210 KB of distances, and 7 MB of saved intermediate values,
  all of which stay in the caches: 3 microseconds at the memory's rate;
- dependent steps: 194 levels (at most 258 x 2 where a graph is deep), each of four products that
  need one another. A product should take 600 to 1,000 cycles: two loads from the caches, shared
  memory, 32 to 64 multiply-adds a thread, a store and a barrier; a level then 1.5 to 2.5
  microseconds.

Measured on an H200 (Triton 3.6, ``bench/bench_gated_gnn.py``) a level takes 8 microseconds: 4.2 ms
forward for 8 graphs, the deepest of 258 levels, 5.3 ms for 64, and 7.0 and 8.8 ms with the backward
pass.

The steps decide, not flops or bytes; 64 graphs on 132 multiprocessors take as long as the deepest
of them. Everything that is not a chain is kept out of it: the products with the states before a
pass and all gradients of weights are single matrix products over all nodes. With hid 384 a level
reads the weights of its products (3 MB) from the second-level cache, about 25 microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ghn_fast._system.device import to_device
from ghn_fast.kernels.activations import sigmoid, tanh

ROWS = 4
"""Nodes of a level that are processed at once; levels of DeepNets-1M have 1.7 on average."""

_BLOCK_HEARD = 64
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
        next_row = tl.load(rows, mask=inside & (node + 1 < n), other=0)
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


@triton.jit
def add_product(
    total,
    x,
    rows,
    live,
    w,
    columns,
    stride_out: tl.constexpr,
    stride_in: tl.constexpr,
    x_stride: tl.constexpr,
    num_in: tl.constexpr,
    num_out: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """total + x[rows] @ w, for some columns of w (in, out), which may lie transposed."""
    for start in range(0, num_in, BLOCK_IN):
        inner = start + tl.arange(0, BLOCK_IN)
        a = tl.load(
            x + rows[:, None] * x_stride + inner[None, :],
            mask=live[:, None] & (inner < num_in)[None, :],
            other=0.0,
        )
        b = tl.load(
            w + inner[:, None] * stride_in + columns[None, :] * stride_out,
            mask=(inner < num_in)[:, None] & (columns < num_out)[None, :],
            other=0.0,
        )
        total = tl.dot(a, b.to(tl.float32), total, input_precision="ieee")
    return total


@triton.jit
def relu_layer(
    x,
    x_stride: tl.constexpr,
    rows,
    live,
    w,
    bias,
    y,
    y_stride: tl.constexpr,
    num_in: tl.constexpr,
    num_out: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """y[rows] = relu(x[rows] @ w.T + bias)."""
    for start in range(0, num_out, BLOCK_OUT):
        columns = start + tl.arange(0, BLOCK_OUT)
        inside = columns < num_out
        total = tl.zeros([ROWS, BLOCK_OUT], tl.float32)
        total = add_product(
            total, x, rows, live, w, columns, num_in, 1, x_stride, num_in, num_out, BLOCK_IN
        )
        total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        place = rows[:, None] * y_stride + columns[None, :]
        tl.store(y + place, tl.maximum(total, 0.0), mask=live[:, None] & inside[None, :])


@triton.jit
def relu_layer_backward(
    dy,
    dy_stride: tl.constexpr,
    rows,
    live,
    w,
    x,
    dx,
    x_stride: tl.constexpr,
    num_in: tl.constexpr,
    num_out: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """dx[rows] = dy[rows] @ w where x > 0, for x that came out of a ReLU."""
    for start in range(0, num_in, BLOCK_IN):
        columns = start + tl.arange(0, BLOCK_IN)
        valid = live[:, None] & (columns < num_in)[None, :]
        total = tl.zeros([ROWS, BLOCK_IN], tl.float32)
        total = add_product(
            total, dy, rows, live, w, columns, 1, num_in, dy_stride, num_out, num_in, BLOCK_OUT
        )
        place = rows[:, None] * x_stride + columns[None, :]
        kept = tl.load(x + place, mask=valid, other=0.0) > 0.0
        tl.store(dx + place, tl.where(kept, total, 0.0), mask=valid)


@triton.jit
def forward_pass(
    distances,
    node_offsets,
    matrix_offsets,
    ends,
    reaches,
    h,
    gates_h,
    h_new,
    m,
    gates,
    hidden,
    said,
    w_ih,
    b_ih,
    w1,
    b1,
    w2,
    b2,
    w1_ve,
    b1_ve,
    w2_ve,
    b2_ve,
    ASCENDING: tl.constexpr,
    HID: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_VE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_HID: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_HEARD: tl.constexpr,
):
    """One pass over all graphs, from the states ``h`` to ``h_new``.

    Args:
        distances: from each node to those it hears in this pass.
        ends: of each node, where the step ends that begins with it (ascending), or begins that
            ends with it.
        reaches: of each node, the first node that its step hears, or the end of those it hears.
        gates_h: (sum N, 3 hid), h @ w_hh.T + b_hh.
        m, gates, hidden, said: what is kept: messages; r, z, the state's part of n, n; hidden
            units of both MLPs; what both MLPs say.
    """
    graph = tl.program_id(0)
    first = tl.load(node_offsets + graph)
    left = tl.load(node_offsets + graph + 1) - first
    n = left
    origin = distances + tl.load(matrix_offsets + graph)
    SAID: tl.constexpr = 2 * HID if WIDTH_VE else HID
    HIDDEN: tl.constexpr = WIDTH + WIDTH_VE
    node = first if ASCENDING else first + n - 1
    end = tl.load(ends + node, mask=left > 0, other=0)
    reach = tl.load(reaches + node, mask=left > 0, other=0)
    while left > 0:
        if ASCENDING:
            start, stop, low, high = node, end, reach, node
        else:
            start, stop, low, high = end, node + 1, node + 1, reach
        left -= stop - start
        node = stop if ASCENDING else start - 1
        # Asked for now, needed when this step is done.
        end = tl.load(ends + node, mask=left > 0, other=0)
        reach = tl.load(reaches + node, mask=left > 0, other=0)
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        live = rows < stop
        own_distances = origin + (rows - first) * n - first

        for column in range(0, HID, BLOCK_HID):
            columns = column + tl.arange(0, BLOCK_HID)
            inside = columns < HID
            message = tl.zeros([ROWS, BLOCK_HID], tl.float32)
            for other in range(low, high, BLOCK_HEARD):
                others = (other + tl.arange(0, BLOCK_HEARD)).to(tl.int64)
                heard = others < high
                distance = tl.load(
                    own_distances[:, None] + others[None, :],
                    mask=live[:, None] & heard[None, :],
                    other=0,
                ).to(tl.float32)
                place = said + others[:, None] * SAID + columns[None, :]
                valid = heard[:, None] & inside[None, :]
                direct = tl.where(distance == 1.0, 1.0, 0.0)
                message = tl.dot(
                    direct, tl.load(place, mask=valid, other=0.0), message, input_precision="ieee"
                )
                if WIDTH_VE:
                    inverse = tl.where(distance > 0.0, 1.0 / tl.maximum(distance, 1.0), 0.0)
                    message = tl.dot(
                        inverse,
                        tl.load(place + HID, mask=valid, other=0.0),
                        message,
                        input_precision="ieee",
                    )
            place = rows[:, None] * HID + columns[None, :]
            tl.store(m + place, message, mask=live[:, None] & inside[None, :])
        tl.debug_barrier()

        for column in range(0, HID, BLOCK_HID):
            columns = column + tl.arange(0, BLOCK_HID)
            inside = columns < HID
            valid = live[:, None] & inside[None, :]
            r = tl.zeros([ROWS, BLOCK_HID], tl.float32)
            z = tl.zeros([ROWS, BLOCK_HID], tl.float32)
            n_m = tl.zeros([ROWS, BLOCK_HID], tl.float32)
            for inner in range(0, HID, BLOCK_HID):
                ins = inner + tl.arange(0, BLOCK_HID)
                x = tl.load(
                    m + rows[:, None] * HID + ins[None, :],
                    mask=live[:, None] & (ins < HID)[None, :],
                    other=0.0,
                )
                weight = w_ih + columns[None, :] * HID + ins[:, None]
                both = (ins < HID)[:, None] & inside[None, :]
                w_r = tl.load(weight, mask=both, other=0.0).to(tl.float32)
                w_z = tl.load(weight + HID * HID, mask=both, other=0.0).to(tl.float32)
                w_n = tl.load(weight + 2 * HID * HID, mask=both, other=0.0).to(tl.float32)
                r = tl.dot(x, w_r, r, input_precision="ieee")
                z = tl.dot(x, w_z, z, input_precision="ieee")
                n_m = tl.dot(x, w_n, n_m, input_precision="ieee")
            state = gates_h + rows[:, None] * (3 * HID) + columns[None, :]
            b_r = tl.load(b_ih + columns, mask=inside, other=0.0).to(tl.float32)
            b_z = tl.load(b_ih + HID + columns, mask=inside, other=0.0).to(tl.float32)
            b_n = tl.load(b_ih + 2 * HID + columns, mask=inside, other=0.0).to(tl.float32)
            r = sigmoid(r + b_r[None, :] + tl.load(state, mask=valid, other=0.0))
            z = sigmoid(z + b_z[None, :] + tl.load(state + HID, mask=valid, other=0.0))
            n_h = tl.load(state + 2 * HID, mask=valid, other=0.0)
            new = tanh(n_m + b_n[None, :] + r * n_h)
            place = rows[:, None] * HID + columns[None, :]
            old = tl.load(h + place, mask=valid, other=0.0)
            tl.store(h_new + place, new + z * (old - new), mask=valid)
            gate = gates + rows[:, None] * (4 * HID) + columns[None, :]
            tl.store(gate, r, mask=valid)
            tl.store(gate + HID, z, mask=valid)
            tl.store(gate + 2 * HID, n_h, mask=valid)
            tl.store(gate + 3 * HID, new, mask=valid)
        tl.debug_barrier()

        relu_layer(
            h_new,
            HID,
            rows,
            live,
            w1,
            b1,
            hidden,
            HIDDEN,
            HID,
            WIDTH,
            ROWS,
            BLOCK_HID,
            BLOCK_WIDTH,
        )
        if WIDTH_VE:
            relu_layer(
                h_new,
                HID,
                rows,
                live,
                w1_ve,
                b1_ve,
                hidden + WIDTH,
                HIDDEN,
                HID,
                WIDTH_VE,
                ROWS,
                BLOCK_HID,
                BLOCK_WIDTH,
            )
        tl.debug_barrier()

        relu_layer(
            hidden,
            HIDDEN,
            rows,
            live,
            w2,
            b2,
            said,
            SAID,
            WIDTH,
            HID,
            ROWS,
            BLOCK_WIDTH,
            BLOCK_HID,
        )
        if WIDTH_VE:
            relu_layer(
                hidden + WIDTH,
                HIDDEN,
                rows,
                live,
                w2_ve,
                b2_ve,
                said + HID,
                SAID,
                WIDTH_VE,
                HID,
                ROWS,
                BLOCK_WIDTH,
                BLOCK_HID,
            )
        tl.debug_barrier()


@triton.jit
def backward_pass(
    distances,
    node_offsets,
    matrix_offsets,
    ends,
    reaches,
    h,
    gates,
    hidden,
    said,
    grad_new,
    grad,
    grad_m,
    grad_gates,
    grad_hidden,
    grad_said,
    w_ih,
    w1,
    w2,
    w1_ve,
    w2_ve,
    ASCENDING: tl.constexpr,
    HID: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_VE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_HID: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_HEARD: tl.constexpr,
):
    """The gradients of one pass, its levels visited in the other order.

    Args:
        distances: from each node to those that hear it in this pass.
        ends, reaches: as for :func:`forward_pass`, of the order of this walk (``ASCENDING``).
        h, gates, hidden, said: what the pass started from and what it kept.
        grad_new: of the states after the pass.
        grad: of the states before it, but for what comes through w_hh.
        grad_m, grad_gates, grad_hidden, grad_said: of what was kept; of the gates those before
            the activations: r, z, the state's part of n, n.
    """
    graph = tl.program_id(0)
    first = tl.load(node_offsets + graph)
    left = tl.load(node_offsets + graph + 1) - first
    n = left
    origin = distances + tl.load(matrix_offsets + graph)
    SAID: tl.constexpr = 2 * HID if WIDTH_VE else HID
    HIDDEN: tl.constexpr = WIDTH + WIDTH_VE
    node = first if ASCENDING else first + n - 1
    end = tl.load(ends + node, mask=left > 0, other=0)
    reach = tl.load(reaches + node, mask=left > 0, other=0)
    while left > 0:
        if ASCENDING:
            start, stop, low, high = node, end, reach, node
        else:
            start, stop, low, high = end, node + 1, node + 1, reach
        left -= stop - start
        node = stop if ASCENDING else start - 1
        end = tl.load(ends + node, mask=left > 0, other=0)
        reach = tl.load(reaches + node, mask=left > 0, other=0)
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        live = rows < stop
        own_distances = origin + (rows - first) * n - first

        for column in range(0, HID, BLOCK_HID):
            columns = column + tl.arange(0, BLOCK_HID)
            inside = columns < HID
            valid = live[:, None] & inside[None, :]
            total = tl.zeros([ROWS, BLOCK_HID], tl.float32)
            total_ve = tl.zeros([ROWS, BLOCK_HID], tl.float32)
            for other in range(low, high, BLOCK_HEARD):
                others = (other + tl.arange(0, BLOCK_HEARD)).to(tl.int64)
                hears = others < high
                distance = tl.load(
                    own_distances[:, None] + others[None, :],
                    mask=live[:, None] & hears[None, :],
                    other=0,
                ).to(tl.float32)
                message = tl.load(
                    grad_m + others[:, None] * HID + columns[None, :],
                    mask=hears[:, None] & inside[None, :],
                    other=0.0,
                )
                direct = tl.where(distance == 1.0, 1.0, 0.0)
                total = tl.dot(direct, message, total, input_precision="ieee")
                if WIDTH_VE:
                    inverse = tl.where(distance > 0.0, 1.0 / tl.maximum(distance, 1.0), 0.0)
                    total_ve = tl.dot(inverse, message, total_ve, input_precision="ieee")
            place = rows[:, None] * SAID + columns[None, :]
            kept = tl.load(said + place, mask=valid, other=0.0) > 0.0
            tl.store(grad_said + place, tl.where(kept, total, 0.0), mask=valid)
            if WIDTH_VE:
                kept_ve = tl.load(said + place + HID, mask=valid, other=0.0) > 0.0
                tl.store(grad_said + place + HID, tl.where(kept_ve, total_ve, 0.0), mask=valid)
        tl.debug_barrier()

        relu_layer_backward(
            grad_said,
            SAID,
            rows,
            live,
            w2,
            hidden,
            grad_hidden,
            HIDDEN,
            WIDTH,
            HID,
            ROWS,
            BLOCK_WIDTH,
            BLOCK_HID,
        )
        if WIDTH_VE:
            relu_layer_backward(
                grad_said + HID,
                SAID,
                rows,
                live,
                w2_ve,
                hidden + WIDTH,
                grad_hidden + WIDTH,
                HIDDEN,
                WIDTH_VE,
                HID,
                ROWS,
                BLOCK_WIDTH,
                BLOCK_HID,
            )
        tl.debug_barrier()

        for column in range(0, HID, BLOCK_HID):
            columns = column + tl.arange(0, BLOCK_HID)
            inside = columns < HID
            valid = live[:, None] & inside[None, :]
            place = rows[:, None] * HID + columns[None, :]
            total = tl.load(grad_new + place, mask=valid, other=0.0)
            total = add_product(
                total,
                grad_hidden,
                rows,
                live,
                w1,
                columns,
                1,
                HID,
                HIDDEN,
                WIDTH,
                HID,
                BLOCK_WIDTH,
            )
            if WIDTH_VE:
                total = add_product(
                    total,
                    grad_hidden + WIDTH,
                    rows,
                    live,
                    w1_ve,
                    columns,
                    1,
                    HID,
                    HIDDEN,
                    WIDTH_VE,
                    HID,
                    BLOCK_WIDTH,
                )
            gate = rows[:, None] * (4 * HID) + columns[None, :]
            r = tl.load(gates + gate, mask=valid, other=0.0)
            z = tl.load(gates + gate + HID, mask=valid, other=0.0)
            n_h = tl.load(gates + gate + 2 * HID, mask=valid, other=0.0)
            new = tl.load(gates + gate + 3 * HID, mask=valid, other=0.0)
            old = tl.load(h + place, mask=valid, other=0.0)
            grad_n = total * (1.0 - z) * (1.0 - new * new)
            tl.store(grad_gates + gate, grad_n * n_h * r * (1.0 - r), mask=valid)
            tl.store(grad_gates + gate + HID, total * (old - new) * z * (1.0 - z), mask=valid)
            tl.store(grad_gates + gate + 2 * HID, grad_n * r, mask=valid)
            tl.store(grad_gates + gate + 3 * HID, grad_n, mask=valid)
            tl.store(grad + place, total * z, mask=valid)
        tl.debug_barrier()

        for column in range(0, HID, BLOCK_HID):
            columns = column + tl.arange(0, BLOCK_HID)
            total = tl.zeros([ROWS, BLOCK_HID], tl.float32)
            # r and z as they are, n from the fourth of the gates.
            total = add_product(
                total,
                grad_gates,
                rows,
                live,
                w_ih,
                columns,
                1,
                HID,
                4 * HID,
                2 * HID,
                HID,
                BLOCK_HID,
            )
            total = add_product(
                total,
                grad_gates + 3 * HID,
                rows,
                live,
                w_ih + 2 * HID * HID,
                columns,
                1,
                HID,
                4 * HID,
                HID,
                HID,
                BLOCK_HID,
            )
            tl.store(
                grad_m + rows[:, None] * HID + columns[None, :],
                total,
                mask=live[:, None] & (columns < HID)[None, :],
            )
        tl.debug_barrier()


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
    steps = torch.zeros(4, _aligned(nodes), dtype=torch.int32, device=device)
    ends, lowest, starts, highest = steps[:, :nodes]
    level_starts = torch.searchsorted(keys, keys)
    places = torch.arange(nodes, device=device)
    starts.copy_(places - (places - level_starts) % ROWS)
    ends.copy_(torch.minimum(starts + ROWS, torch.searchsorted(keys, keys, right=True)))
    sorted_distances = distances.new_zeros(2, _aligned(len(distances)))
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


def _aligned(count: int) -> int:
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


@dataclass
class Widths:
    """Sizes that the kernels are compiled for; ``width_ve`` is 0 where there is no mlp_ve."""

    hid: int
    width: int
    width_ve: int

    @classmethod
    def of(cls, weights: Sequence[Tensor]) -> Widths:
        return cls(len(weights[3]), len(weights[0]), len(weights[8]) if len(weights) > 8 else 0)

    @property
    def hidden(self) -> int:
        return self.width + self.width_ve

    @property
    def said(self) -> int:
        return (2 if self.width_ve else 1) * self.hid

    def kept(self) -> list[int]:
        """Of what a pass keeps of a node: m, gates, hidden and said."""
        return [self.hid, 4 * self.hid, self.hidden, self.said]

    def options(self, ascending: bool) -> dict[str, int | bool]:
        """Of a pass that visits the nodes in this order."""
        return {
            "ASCENDING": ascending,
            "HID": self.hid,
            "WIDTH": self.width,
            "WIDTH_VE": self.width_ve,
            "ROWS": ROWS,
            "BLOCK_HID": _block(self.hid),
            "BLOCK_WIDTH": _block(max(self.width, self.width_ve)),
            "BLOCK_HEARD": _BLOCK_HEARD,
            "num_warps": 4 if self.hid <= 64 else 8,
            # Loads must not be moved before the barriers.
            "num_stages": 1,
        }


def _block(size: int) -> int:
    return min(max(triton.next_power_of_2(size), 16), 64)


def _saved_shapes(num_nodes: int, weights: Sequence[Tensor], rounds: int) -> list[tuple[int, ...]]:
    """Of the float32 tensors that :func:`forward` keeps: h, m, gates, hidden, said."""
    widths, passes = Widths.of(weights), 2 * rounds
    kept = [(passes, num_nodes, width) for width in widths.kept()]
    return [(passes + 1, num_nodes, widths.hid), *kept]


def saved_like(
    x: Tensor, distances: Tensor, num_nodes: Tensor, weights: Sequence[Tensor], rounds: int
) -> list[Tensor]:
    """Tensors like those that :func:`forward` keeps, without values."""
    nodes, graphs = len(x), len(num_nodes)
    if nodes == 0:
        return []
    return [
        x.new_empty(graphs + 1, dtype=torch.int32),
        x.new_empty(graphs, dtype=torch.int64),
        x.new_empty(nodes, dtype=torch.int64),
        x.new_empty(4, _aligned(nodes), dtype=torch.int32),
        distances.new_empty(2, _aligned(len(distances))),
        *(x.new_empty(s, dtype=torch.float32) for s in _saved_shapes(nodes, weights, rounds)),
    ]


def forward(
    x: Tensor,
    distances: Tensor,
    num_nodes: Tensor,
    weights: Sequence[Tensor],
    rounds: int,
    save: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The final states, and what :func:`backward` needs, nothing unless ``save``.

    Args:
        x: (sum N, hid) on the device, float32 or narrower; all is computed in float32.
        distances, num_nodes, rounds: as for :func:`ghn_fast.ops.gated_gnn.gated_gnn`; that each
            matrix is strictly upper triangular is not checked.
        weights: of mlp, gru and, if any, mlp_ve, contiguous.
    """
    if len(x) == 0:
        return x.clone(), []
    widths, passes = Widths.of(weights), 2 * rounds
    mlp, (w_ih, w_hh, b_ih, b_hh), mlp_ve = weights[:4], weights[4:8], weights[8:] or weights[:4]
    with _on(x.device):
        schedule = make_schedule(distances, num_nodes)
        kept = passes if save else 1
        states, *others = _saved_shapes(len(x), weights, rounds)
        if not save:
            states, others = (2, *states[1:]), [(kept, *shape[1:]) for shape in others]
        h, *rest = (x.new_empty(shape, dtype=torch.float32) for shape in (states, *others))
        gates_h = h.new_empty(len(x), 3 * widths.hid)
        h[0] = x.index_select(0, schedule.order)
        for number in range(passes):
            before, after = h[number % len(h)], h[(number + 1) % len(h)]
            torch.addmm(b_hh.float(), before, w_hh.float().t(), out=gates_h)
            forward_pass[(len(num_nodes),)](
                *schedule.walk(number % 2 == 0),
                *(before, gates_h, after),
                *(tensor[number % kept] for tensor in rest),
                *(w_ih, b_ih, *mlp, *mlp_ve),
                **widths.options(number % 2 == 0),
            )
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        out.index_copy_(0, schedule.order, after.to(x.dtype))
    return out, [*schedule.tensors(), h, *rest] if save else []


def backward(
    weights: Sequence[Tensor], saved: Sequence[Tensor], grad_out: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of x and of the weights from that of the final states."""
    if len(grad_out) == 0:
        return torch.zeros_like(grad_out), [torch.zeros_like(w) for w in weights]
    widths = Widths.of(weights)
    schedule, (h, m, gates, hidden, said) = Schedule(*saved[:5]), saved[5:]
    (w1, _, w2, _), (w_ih, w_hh, _, _), mlp_ve = weights[:4], weights[4:8], weights[8:]
    w1_ve, w2_ve = (mlp_ve[0], mlp_ve[2]) if mlp_ve else (w1, w2)
    with _on(grad_out.device):
        grad_m = torch.empty_like(m[0])
        grads = [torch.empty_like(tensor) for tensor in (gates, hidden, said)]
        grad_h = grad_out.index_select(0, schedule.order).float()
        for number in reversed(range(len(m))):
            grad_before = torch.empty_like(grad_h)
            grad_gates, grad_hidden, grad_said = (tensor[number] for tensor in grads)
            # A pass is undone from its end.
            ascending = number % 2 == 1
            backward_pass[(len(schedule.matrix_offsets),)](
                *schedule.walk(ascending),
                *(h[number], gates[number], hidden[number], said[number]),
                *(grad_h, grad_before, grad_m, grad_gates, grad_hidden, grad_said),
                *(w_ih, w1, w2, w1_ve, w2_ve),
                **widths.options(ascending),
            )
            grad_h = grad_before.addmm_(grad_gates[:, : 3 * widths.hid], w_hh.float())
        grad_x = torch.empty_like(grad_out, memory_format=torch.contiguous_format)
        grad_x.index_copy_(0, schedule.order, grad_h.to(grad_out.dtype))
        sums = _weight_gradients(widths, h, m, hidden, *grads)
    return grad_x, [total.to(w.dtype) for total, w in zip(sums, weights, strict=True)]


def _weight_gradients(
    widths: Widths,
    h: Tensor,
    m: Tensor,
    hidden: Tensor,
    grad_gates: Tensor,
    grad_hidden: Tensor,
    grad_said: Tensor,
) -> list[Tensor]:
    """Sums over all nodes and passes, in the order of the weights."""
    hid = widths.hid
    before, after, m, hidden, gates, grad_hidden, grad_said = (
        tensor.flatten(0, 1)
        for tensor in (h[:-1], h[1:], m, hidden, grad_gates, grad_hidden, grad_said)
    )
    bias = gates.sum(0)
    gru = [
        torch.cat((gates[:, : 2 * hid].t() @ m, gates[:, 3 * hid :].t() @ m)),
        gates[:, : 3 * hid].t() @ before,
        torch.cat((bias[: 2 * hid], bias[3 * hid :])),
        bias[: 3 * hid].clone(),
    ]
    mlps = []
    spans = [(0, widths.width), (widths.width, widths.hidden)]
    for index, (start, stop) in enumerate(spans[: 2 if widths.width_ve else 1]):
        units, grad_units = hidden[:, start:stop], grad_hidden[:, start:stop]
        grad_own = grad_said[:, index * hid : (index + 1) * hid]
        first, second = (grad_units, after), (grad_own, units)
        mlps.append([part for dy, x in (first, second) for part in (dy.t() @ x, dy.sum(0))])
    return [*mlps[0], *gru, *(mlps[1] if len(mlps) > 1 else [])]


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Launches go to this device, and nothing is cast automatically."""
    guard = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with guard, torch.autocast(device.type, enabled=False):
        yield
