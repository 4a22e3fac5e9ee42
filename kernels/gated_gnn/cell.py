"""The GRU cell: from a node's message and its state to its next state, and back."""

from __future__ import annotations

import triton
import triton.language as tl

from ghn_fast.kernels.activations import sigmoid, tanh
from ghn_fast.kernels.gated_gnn.layers import add_dot, add_product


@triton.jit
def update(
    rows,
    live,
    m,
    gates_h,
    h,
    h_new,
    gates,
    w_ih,
    b_ih,
    HID: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Next states from messages and from ``gates_h``, the part of the gates that states make."""
    for column in range(0, HID, BLOCK_H):
        columns = column + tl.arange(0, BLOCK_H)
        inside = columns < HID
        valid = live[:, None] & inside[None, :]
        r = tl.zeros([rows.shape[0], BLOCK_H], tl.float32)
        z = tl.zeros([rows.shape[0], BLOCK_H], tl.float32)
        n_m = tl.zeros([rows.shape[0], BLOCK_H], tl.float32)
        for inner in range(0, HID, BLOCK_H):
            ins = inner + tl.arange(0, BLOCK_H)
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
            r = add_dot(r, x, w_r)
            z = add_dot(z, x, w_z)
            n_m = add_dot(n_m, x, w_n)
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


@triton.jit
def update_backward(
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
    HID: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_VE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Gradients of the gates and of the states before, from those of the next states.

    These are given by ``grad_new`` and by what comes through the MLPs' hidden units.
    """
    HIDDEN: tl.constexpr = WIDTH + WIDTH_VE
    for column in range(0, HID, BLOCK_H):
        columns = column + tl.arange(0, BLOCK_H)
        valid = live[:, None] & (columns < HID)[None, :]
        place = rows[:, None] * HID + columns[None, :]
        total = tl.load(grad_new + place, mask=valid, other=0.0)
        total = add_product(
            total, grad_hidden, HIDDEN, rows, live, w1, columns, 1, HID, WIDTH, HID, BLOCK_W
        )
        if WIDTH_VE:
            own = grad_hidden + WIDTH
            total = add_product(
                total, own, HIDDEN, rows, live, w1_ve, columns, 1, HID, WIDTH_VE, HID, BLOCK_W
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


@triton.jit
def message_backward(
    rows, live, grad_gates, w_ih, grad_m, HID: tl.constexpr, BLOCK_H: tl.constexpr
):
    """Gradients of the messages from those of the gates."""
    # r and z as they are, n from the fourth of the gates.
    grad_n, w_n = grad_gates + 3 * HID, w_ih + 2 * HID * HID
    for column in range(0, HID, BLOCK_H):
        columns = column + tl.arange(0, BLOCK_H)
        total = tl.zeros([rows.shape[0], BLOCK_H], tl.float32)
        total = add_product(
            total, grad_gates, 4 * HID, rows, live, w_ih, columns, 1, HID, 2 * HID, HID, BLOCK_H
        )
        total = add_product(
            total, grad_n, 4 * HID, rows, live, w_n, columns, 1, HID, HID, HID, BLOCK_H
        )
        place = rows[:, None] * HID + columns[None, :]
        tl.store(grad_m + place, total, mask=live[:, None] & (columns < HID)[None, :])
