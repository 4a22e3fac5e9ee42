"""A pass over all graphs and its gradient: one program a graph, four phases a step of its walk.

Between the phases a barrier separates what is written from what is read.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ghn_fast.kernels.gated_gnn.cell import message_backward, update, update_backward
from ghn_fast.kernels.gated_gnn.layers import first_layers, second_layers, second_layers_backward
from ghn_fast.kernels.gated_gnn.messages import hear, hear_backward


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
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
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
    first, n, origin, node, end, reach = begin(
        distances, node_offsets, matrix_offsets, ends, reaches, ASCENDING
    )
    left = n
    while left > 0:
        start, stop, low, high = step_of(node, end, reach, ASCENDING)
        left -= stop - start
        node = stop if ASCENDING else start - 1
        # Asked for now, needed when this step is done.
        end = tl.load(ends + node, mask=left > 0, other=0)
        reach = tl.load(reaches + node, mask=left > 0, other=0)
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        live = rows < stop
        own = origin + (rows - first) * n - first

        hear(own, rows, live, low, high, said, m, HID, WIDTH_VE, BLOCK_H, BLOCK_HEARD)
        tl.debug_barrier()
        update(rows, live, m, gates_h, h, h_new, gates, w_ih, b_ih, HID, BLOCK_H)
        tl.debug_barrier()
        first_layers(
            rows, live, h_new, hidden, w1, b1, w1_ve, b1_ve, HID, WIDTH, WIDTH_VE, BLOCK_H, BLOCK_W
        )
        tl.debug_barrier()
        second_layers(
            rows, live, hidden, said, w2, b2, w2_ve, b2_ve, HID, WIDTH, WIDTH_VE, BLOCK_H, BLOCK_W
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
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
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
    first, n, origin, node, end, reach = begin(
        distances, node_offsets, matrix_offsets, ends, reaches, ASCENDING
    )
    left = n
    while left > 0:
        start, stop, low, high = step_of(node, end, reach, ASCENDING)
        left -= stop - start
        node = stop if ASCENDING else start - 1
        end = tl.load(ends + node, mask=left > 0, other=0)
        reach = tl.load(reaches + node, mask=left > 0, other=0)
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        live = rows < stop
        own = origin + (rows - first) * n - first
        hear_backward(
            own, rows, live, low, high, grad_m, said, grad_said, HID, WIDTH_VE, BLOCK_H, BLOCK_HEARD
        )
        tl.debug_barrier()
        second_layers_backward(
            rows,
            live,
            grad_said,
            hidden,
            grad_hidden,
            w2,
            w2_ve,
            HID,
            WIDTH,
            WIDTH_VE,
            BLOCK_H,
            BLOCK_W,
        )
        tl.debug_barrier()
        update_backward(
            rows,
            live,
            grad_new,
            grad_hidden,
            w1,
            w1_ve,
            gates,
            h,
            grad_gates,
            grad,
            HID,
            WIDTH,
            WIDTH_VE,
            BLOCK_H,
            BLOCK_W,
        )
        tl.debug_barrier()
        message_backward(rows, live, grad_gates, w_ih, grad_m, HID, BLOCK_H)
        tl.debug_barrier()


@triton.jit
def begin(distances, node_offsets, matrix_offsets, ends, reaches, ASCENDING: tl.constexpr):
    """A program's graph: its first node, how many it has, its distances, and the first step."""
    graph = tl.program_id(0)
    first = tl.load(node_offsets + graph)
    n = tl.load(node_offsets + graph + 1) - first
    node = first if ASCENDING else first + n - 1
    end = tl.load(ends + node, mask=n > 0, other=0)
    reach = tl.load(reaches + node, mask=n > 0, other=0)
    return first, n, distances + tl.load(matrix_offsets + graph), node, end, reach


@triton.jit
def step_of(node, end, reach, ASCENDING: tl.constexpr):
    """Nodes of a step, ``start`` to ``stop``, and those that it hears, ``low`` to ``high``."""
    if ASCENDING:
        start, stop, low, high = node, end, reach, node
    else:
        start, stop, low, high = end, node + 1, node + 1, reach
    return start, stop, low, high
