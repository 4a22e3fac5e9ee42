"""Both directions on the host: what is kept between them, and the sums over all nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from ghn_fast.kernels.gated_gnn.passes import backward_pass, forward_pass
from ghn_fast.kernels.gated_gnn.schedule import Schedule, aligned, make_schedule
from ghn_fast.kernels.gated_gnn.widths import Widths


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
        x.new_empty(4, aligned(nodes), dtype=torch.int32),
        distances.new_empty(2, aligned(len(distances))),
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
