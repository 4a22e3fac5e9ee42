"""What nodes hear of others: sums over them, weighted by their distances."""

from __future__ import annotations

import triton
import triton.language as tl

from ghn_fast.kernels.gated_gnn.layers import add_dot


@triton.jit
def hear(
    own,
    rows,
    live,
    low,
    high,
    said,
    m,
    HID: tl.constexpr,
    VIRTUAL: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HEARD: tl.constexpr,
):
    """Messages from what the nodes ``low`` to ``high`` have said."""
    SAID: tl.constexpr = 2 * HID if VIRTUAL else HID
    for column in range(0, HID, BLOCK_H):
        columns = column + tl.arange(0, BLOCK_H)
        inside = columns < HID
        message = tl.zeros([rows.shape[0], BLOCK_H], tl.float32)
        for other in range(low, high, BLOCK_HEARD):
            others = (other + tl.arange(0, BLOCK_HEARD)).to(tl.int64)
            heard = others < high
            direct, inverse = edges(own, others, live, heard)
            place = said + others[:, None] * SAID + columns[None, :]
            valid = heard[:, None] & inside[None, :]
            message = add_dot(message, direct, tl.load(place, mask=valid, other=0.0))
            if VIRTUAL:
                message = add_dot(message, inverse, tl.load(place + HID, mask=valid, other=0.0))
        place = rows[:, None] * HID + columns[None, :]
        tl.store(m + place, message, mask=live[:, None] & inside[None, :])


@triton.jit
def hear_backward(
    own,
    rows,
    live,
    low,
    high,
    grad_m,
    said,
    grad_said,
    HID: tl.constexpr,
    VIRTUAL: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HEARD: tl.constexpr,
):
    """Gradients of what was said, before its activation, from those of the messages."""
    SAID: tl.constexpr = 2 * HID if VIRTUAL else HID
    for column in range(0, HID, BLOCK_H):
        columns = column + tl.arange(0, BLOCK_H)
        inside = columns < HID
        valid = live[:, None] & inside[None, :]
        total = tl.zeros([rows.shape[0], BLOCK_H], tl.float32)
        total_ve = tl.zeros([rows.shape[0], BLOCK_H], tl.float32)
        for other in range(low, high, BLOCK_HEARD):
            others = (other + tl.arange(0, BLOCK_HEARD)).to(tl.int64)
            hears = others < high
            direct, inverse = edges(own, others, live, hears)
            message = tl.load(
                grad_m + others[:, None] * HID + columns[None, :],
                mask=hears[:, None] & inside[None, :],
                other=0.0,
            )
            total = add_dot(total, direct, message)
            if VIRTUAL:
                total_ve = add_dot(total_ve, inverse, message)
        place = rows[:, None] * SAID + columns[None, :]
        store_where_active(said, grad_said, place, total, valid)
        if VIRTUAL:
            store_where_active(said, grad_said, place + HID, total_ve, valid)


@triton.jit
def edges(own, others, live, there):
    """Between rows and others: 1 where they are neighbours, and 1 / distance; else 0."""
    distance = tl.load(
        own[:, None] + others[None, :], mask=live[:, None] & there[None, :], other=0
    ).to(tl.float32)
    direct = tl.where(distance == 1.0, 1.0, 0.0)
    return direct, tl.where(distance > 0.0, 1.0 / tl.maximum(distance, 1.0), 0.0)


@triton.jit
def store_where_active(y, grad, place, total, valid):
    """The gradient of what a ReLU made ``y`` of."""
    active = tl.load(y + place, mask=valid, other=0.0) > 0.0
    tl.store(grad + place, tl.where(active, total, 0.0), mask=valid)
