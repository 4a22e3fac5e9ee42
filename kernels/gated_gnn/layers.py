"""Layers of both MLPs for some rows, which they read from global memory and leave there."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_layers(
    rows,
    live,
    h,
    hidden,
    w,
    b,
    w_ve,
    b_ve,
    HID: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_VE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Hidden units of both MLPs, beside each other, from states."""
    HIDDEN: tl.constexpr = WIDTH + WIDTH_VE
    relu_layer(h, HID, rows, live, w, b, hidden, HIDDEN, HID, WIDTH, BLOCK_H, BLOCK_W)
    if WIDTH_VE:
        own = hidden + WIDTH
        relu_layer(h, HID, rows, live, w_ve, b_ve, own, HIDDEN, HID, WIDTH_VE, BLOCK_H, BLOCK_W)


@triton.jit
def second_layers(
    rows,
    live,
    hidden,
    said,
    w,
    b,
    w_ve,
    b_ve,
    HID: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_VE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """What both MLPs say, beside each other, from their hidden units."""
    HIDDEN: tl.constexpr = WIDTH + WIDTH_VE
    SAID: tl.constexpr = 2 * HID if WIDTH_VE else HID
    relu_layer(hidden, HIDDEN, rows, live, w, b, said, SAID, WIDTH, HID, BLOCK_W, BLOCK_H)
    if WIDTH_VE:
        x, y = hidden + WIDTH, said + HID
        relu_layer(x, HIDDEN, rows, live, w_ve, b_ve, y, SAID, WIDTH_VE, HID, BLOCK_W, BLOCK_H)


@triton.jit
def second_layers_backward(
    rows,
    live,
    grad_said,
    hidden,
    grad_hidden,
    w,
    w_ve,
    HID: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_VE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Gradients of the hidden units, before their activation, from those of what is said."""
    HIDDEN: tl.constexpr = WIDTH + WIDTH_VE
    SAID: tl.constexpr = 2 * HID if WIDTH_VE else HID
    relu_layer_backward(
        grad_said, SAID, rows, live, w, hidden, grad_hidden, HIDDEN, WIDTH, HID, BLOCK_W, BLOCK_H
    )
    if WIDTH_VE:
        dy, x, dx = grad_said + HID, hidden + WIDTH, grad_hidden + WIDTH
        relu_layer_backward(
            dy, SAID, rows, live, w_ve, x, dx, HIDDEN, WIDTH_VE, HID, BLOCK_W, BLOCK_H
        )


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
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """y[rows] = relu(x[rows] @ w.T + bias)."""
    for start in range(0, num_out, BLOCK_OUT):
        columns = start + tl.arange(0, BLOCK_OUT)
        inside = columns < num_out
        total = tl.zeros([rows.shape[0], BLOCK_OUT], tl.float32)
        total = add_product(
            total, x, x_stride, rows, live, w, columns, num_in, 1, num_in, num_out, BLOCK_IN
        )
        total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        place = rows[:, None] * y_stride + columns[None, :]
        # A maximum would lose NaN.
        positive = tl.where(total < 0.0, 0.0, total)
        tl.store(y + place, positive, mask=live[:, None] & inside[None, :])


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
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """dx[rows] = dy[rows] @ w where x > 0, for x that came out of a ReLU."""
    for start in range(0, num_in, BLOCK_IN):
        columns = start + tl.arange(0, BLOCK_IN)
        valid = live[:, None] & (columns < num_in)[None, :]
        total = tl.zeros([rows.shape[0], BLOCK_IN], tl.float32)
        total = add_product(
            total, dy, dy_stride, rows, live, w, columns, 1, num_in, num_out, num_in, BLOCK_OUT
        )
        place = rows[:, None] * x_stride + columns[None, :]
        kept = tl.load(x + place, mask=valid, other=0.0) > 0.0
        tl.store(dx + place, tl.where(kept, total, 0.0), mask=valid)


@triton.jit
def add_product(
    total,
    x,
    x_stride: tl.constexpr,
    rows,
    live,
    w,
    columns,
    stride_out: tl.constexpr,
    stride_in: tl.constexpr,
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
        total = add_dot(total, a, b.to(tl.float32))
    return total


@triton.jit
def add_dot(total, a, b):
    """total + a @ b, in float32 throughout."""
    return tl.dot(a, b, total, input_precision="ieee")
