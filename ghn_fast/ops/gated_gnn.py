"""Gated message passing over directed acyclic graphs with virtual edges (GHN-1 and GHN-2).

Graph HyperNetworks (arXiv 1810.05749, section 3.2) pass messages once forward and once backward
through the topological order; GHN-2 (arXiv 2110.13100, equation 4) adds virtual edges weighted by
the inverse of the shortest path length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ghn_fast._core import core
from ghn_fast.ops.backends import (
    TRITON_DTYPES,
    check_known,
    fast_backend,
    triton_kernels,
    triton_runs_on,
    unsuitable,
)
from ghn_fast.ops.shortest_paths import check_size, matrices

MLP = Sequence[Tensor]
"""Two linear layers: weight (h1, hid), bias (h1,), weight (hid, h1), bias (hid,)."""

GRU = Sequence[Tensor]
"""A GRU cell: weights (3 hid, hid) of message and state, biases (3 hid,) of both; gates r, z, n."""


def gated_gnn(
    x: Tensor,
    distances: Tensor,
    num_nodes: Tensor,
    mlp: MLP,
    mlp_ve: MLP | None,
    gru: GRU,
    rounds: int = 1,
    backend: str | None = None,
) -> Tensor:
    """Passes messages forward and backward through each graph of a batch, ``rounds`` times.

    In topological order (reversed in the backward pass) each node v gets ::

        m_v = sum of MLP(h_u) over its direct neighbours u
            + sum of MLP_ve(h_u) / d over all u it hears at distance d
        h_v = GRU(m_v, h_v)

    where it hears its ancestors in the forward pass and its descendants in the backward pass
    (arXiv 2110.13100, equation 4). Both layers of both MLPs end in a ReLU.

    Args:
        x: (sum N, hid) initial states of the nodes, graph after graph; float32 or float64 on the
            CPU, float32, float16 or bfloat16 on a CUDA device (on the reference path any floating
            type). Sums are at least float32. Not modified. Under autocast it is taken in the
            weights' dtype.
        distances: (sum N^2,) uint8, the graphs' matrices of shortest path lengths, row-major, one
            after the other: entry (u, v) is the distance from u to v, 0 where v does not hear u.
            Nodes are in topological order, so each matrix is strictly upper triangular.
        num_nodes: (B,) int64 on the CPU, the number of nodes of each graph.
        mlp: weights of MLP, see :data:`MLP`.
        mlp_ve: the same of MLP_ve (its width may differ), or None for no virtual edges (GHN-1).
        gru: weights of the GRU cell in the layout of :class:`torch.nn.GRUCell`.
        rounds: how many times both passes are made.
        backend: "triton" (on CUDA devices), "cpp" (on the CPU), "reference" (PyTorch), or None
            for the fastest that works. Only the reference can be differentiated twice.

    Returns:
        (sum N, hid), the final states. Differentiable with respect to ``x`` and all weights.

    Raises:
        ValueError: shapes that do not fit together, a distance that does not go forward (a cycle,
            or nodes out of order), or an unknown backend. Triton does not check the order, as that
            would wait for the device: what it returns for wrong distances means nothing.
        TypeError: wrong dtypes.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(mlp[0].dtype)
    backend = backend or default_backend(x)
    check_known(backend)
    if backend == "reference":
        return gated_gnn_reference(x, distances, num_nodes, mlp, mlp_ve, gru, rounds)
    if not _works(backend, x):
        raise unsuitable(backend, [x.dtype], x.device)
    weights = [*mlp, *gru, *(mlp_ve or ())]
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights))
    return _op(x, distances, num_nodes, weights, rounds, save, backend)[0]


def default_backend(x: Tensor) -> str:
    """The backend that :func:`gated_gnn` takes for states like ``x`` unless told otherwise."""
    fast = fast_backend(x.device)
    return fast if _works(fast, x) else "reference"


def _works(backend: str, x: Tensor) -> bool:
    if backend == "triton":
        return x.dtype in TRITON_DTYPES and triton_runs_on(x.device)
    if backend == "cpp":
        return x.dtype in _CPP_FORWARD and x.device.type == "cpu"
    return True


def gated_gnn_reference(
    x: Tensor,
    distances: Tensor,
    num_nodes: Tensor,
    mlp: MLP,
    mlp_ve: MLP | None,
    gru: GRU,
    rounds: int = 1,
) -> Tensor:
    """:func:`gated_gnn` in PyTorch, level by level over the whole batch, on any device.

    A level holds the nodes whose longest chain of heard nodes is equally long; they hear only
    earlier levels, so that a level is one matrix product and one GRU cell over all its nodes.
    """
    _check(x, distances, num_nodes, mlp, mlp_ve, gru, rounds)
    layout = _Layout.build(distances, num_nodes)
    batch, width, hid = len(num_nodes), layout.width, x.shape[1]
    slots = layout.slots.to(x.device)
    dtype = torch.promote_types(x.dtype, torch.float32)
    mlp, gru = [w.to(dtype) for w in mlp], [w.to(dtype) for w in gru]
    mlp_ve = None if mlp_ve is None else [w.to(dtype) for w in mlp_ve]
    inverse = layout.inverse_distances(distances, num_nodes, dtype)
    direct = (inverse == 1).to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        h = inverse.new_zeros(batch * width, hid).index_copy(0, slots, x.to(dtype))
        h = h.view(batch, width, hid)
        for _ in range(rounds):
            for forward in (True, False):
                h = _traverse(h, layout, direct, inverse, mlp, mlp_ve, gru, forward)
        return h.reshape(batch * width, hid).index_select(0, slots).to(x.dtype)


@dataclass
class _Layout:
    """Where each node goes so that a level of all graphs is one slice.

    Every graph has ``width`` slots, level after level, each level padded to the most nodes that
    any of the graphs has in it.
    """

    bounds: np.ndarray  # (levels + 1,) where each level's slots begin
    slots: Tensor  # (sum N,) index of each node's slot among all graphs' slots

    @property
    def width(self) -> int:
        return int(self.bounds[-1])

    @classmethod
    def build(cls, distances: Tensor, num_nodes: Tensor) -> _Layout:
        levels = [_levels(d.numpy()) for d in matrices(distances.cpu(), num_nodes.tolist())]
        depth = max((int(level.max(initial=-1)) + 1 for level in levels), default=0)
        counts = np.array([np.bincount(level, minlength=depth) for level in levels])
        counts = counts.reshape(len(levels), depth)
        bounds = np.concatenate([[0], counts.max(axis=0, initial=0).cumsum()]).astype(np.int64)
        slots = [
            index * bounds[-1] + bounds[level] + _rank_within(level)
            for index, level in enumerate(levels)
        ]
        return cls(bounds, torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *slots])))

    def inverse_distances(self, distances: Tensor, num_nodes: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, width, width) of 1 / distance from row to column, 0 where there is none."""
        width = self.width
        steps = torch.arange(1, 256, dtype=torch.float64, device="cpu")
        table = torch.cat([steps.new_zeros(1), 1 / steps])
        table = table.to(dtype=dtype, device=distances.device)
        inverse = table.new_zeros(len(num_nodes), width, width)
        slots = self.slots.to(distances.device) % max(width, 1)
        start = 0
        for index, matrix in enumerate(matrices(distances, num_nodes.tolist())):
            own = slots[start : start + len(matrix)]
            inverse[index, own[:, None], own[None, :]] = table[matrix.long()]
            start += len(matrix)
        return inverse


def _traverse(
    h: Tensor,
    layout: _Layout,
    direct: Tensor,
    inverse: Tensor,
    mlp: MLP,
    mlp_ve: MLP | None,
    gru: GRU,
    forward: bool,
) -> Tensor:
    """One pass over all levels, from states (B, width, hid) to new ones."""
    if forward:
        direct, inverse = direct.transpose(1, 2), inverse.transpose(1, 2)
    spans = list(zip(layout.bounds[:-1].tolist(), layout.bounds[1:].tolist(), strict=True))
    before = list(h.split([stop - start for start, stop in spans], dim=1))
    after = list(before)
    said, said_ve = torch.zeros_like(h), torch.zeros_like(h)
    for level in range(len(spans)) if forward else reversed(range(len(spans))):
        start, stop = spans[level]
        heard = slice(0, start) if forward else slice(stop, None)
        message = direct[:, start:stop, heard] @ said[:, heard]
        if mlp_ve is not None:
            message = message + inverse[:, start:stop, heard] @ said_ve[:, heard]
        flat = message.flatten(0, 1), before[level].flatten(0, 1)
        state = torch.gru_cell(*flat, *gru).view_as(before[level])
        said[:, start:stop] = _mlp(state, mlp)
        if mlp_ve is not None:
            said_ve[:, start:stop] = _mlp(state, mlp_ve)
        after[level] = state
    return torch.cat(after, dim=1) if after else h


def _mlp(x: Tensor, weights: MLP) -> Tensor:
    w1, b1, w2, b2 = weights
    return F.relu(F.linear(F.relu(F.linear(x, w1, b1)), w2, b2))


def _levels(distances: np.ndarray) -> np.ndarray:
    """(N,) the number of nodes on the longest chain of heard nodes before each node."""
    if np.tril(distances).any():
        raise ValueError(
            "distances must be strictly upper triangular: a graph has a cycle, or its nodes are "
            "not in topological order"
        )
    heard = distances.T != 0
    levels = np.zeros(len(distances), dtype=np.int64)
    for v in range(1, len(levels)):
        levels[v] = ((levels[:v] + 1) * heard[v, :v]).max()
    return levels


def _rank_within(levels: np.ndarray) -> np.ndarray:
    """(N,) how many earlier nodes have the same level."""
    order = np.argsort(levels, kind="stable")
    first = np.searchsorted(levels[order], levels)
    rank = np.empty_like(levels)
    rank[order] = np.arange(len(levels))
    return rank - first


# The core's functions by dtype.
_CPP_FORWARD = {
    torch.float32: core.gated_gnn_forward_float,
    torch.float64: core.gated_gnn_forward_double,
}
_CPP_BACKWARD = {
    torch.float32: core.gated_gnn_backward_float,
    torch.float64: core.gated_gnn_backward_double,
}


@torch.library.custom_op(
    "ghn_fast::gated_gnn",
    mutates_args=(),
    schema="(Tensor x, Tensor distances, Tensor num_nodes, Tensor[] weights, int rounds, bool save,"
    " str backend) -> (Tensor, Tensor[])",
)
def _op(
    x: Tensor,
    distances: Tensor,
    num_nodes: Tensor,
    weights: list[Tensor],
    rounds: int,
    save: bool,
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    """:func:`gated_gnn` in C++ or Triton. The weights are mlp's, gru's and, if any, mlp_ve's.

    The second result is what the gradient needs, empty unless ``save``.
    """
    _check_op(x, distances, num_nodes, weights, rounds, backend)
    x, distances = x.contiguous(), distances.contiguous()
    weights = [w.contiguous() for w in weights]
    if backend == "triton":
        kernels = triton_kernels("gated_gnn")
        out, kept = kernels.forward(x, distances, num_nodes, weights, rounds, save)
        return out, kept
    out = torch.empty_like(x)
    saved = x.new_empty(_saved_size(x, weights, rounds) if save else 0)
    _CPP_FORWARD[x.dtype](
        _sizes(num_nodes, weights, rounds),
        distances.data_ptr(),
        [w.data_ptr() for w in weights],
        x.data_ptr(),
        out.data_ptr(),
        saved.data_ptr(),
        torch.get_num_threads(),
    )
    return out, [saved] if save else []


@torch.library.custom_op(
    "ghn_fast::gated_gnn_backward",
    mutates_args=(),
    schema="(Tensor distances, Tensor num_nodes, Tensor[] weights, Tensor[] saved, Tensor grad,"
    " int rounds, str backend) -> Tensor[]",
)
def _backward_op(
    distances: Tensor,
    num_nodes: Tensor,
    weights: list[Tensor],
    saved: list[Tensor],
    grad: Tensor,
    rounds: int,
    backend: str,
) -> list[Tensor]:
    """The gradients of x and of the weights from that of the result."""
    _check_op(grad, distances, num_nodes, weights, rounds, backend)
    without_values = grad.to("meta"), distances.to("meta")
    _check_saved(saved, _saved_like(*without_values, num_nodes, weights, rounds, backend), grad)
    grad = grad.contiguous()
    weights = [w.contiguous() for w in weights]
    if backend == "triton":
        grad_x, grad_weights = triton_kernels("gated_gnn").backward(weights, saved, grad)
        return [grad_x, *grad_weights]
    distances = distances.contiguous()
    grads = [torch.empty_like(grad), *(torch.empty_like(w) for w in weights)]
    _CPP_BACKWARD[grad.dtype](
        _sizes(num_nodes, weights, rounds),
        distances.data_ptr(),
        [w.data_ptr() for w in weights],
        saved[0].data_ptr(),
        grad.data_ptr(),
        grads[0].data_ptr(),
        [g.data_ptr() for g in grads[1:]],
        torch.get_num_threads(),
    )
    return grads


@_op.register_fake
def _(
    x: Tensor,
    distances: Tensor,
    num_nodes: Tensor,
    weights: list[Tensor],
    rounds: int,
    save: bool,
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    out = x.new_empty(x.shape)
    if not save:
        return out, []
    return out, _saved_like(x, distances, num_nodes, weights, rounds, backend)


@_backward_op.register_fake
def _(
    distances: Tensor,
    num_nodes: Tensor,
    weights: list[Tensor],
    saved: list[Tensor],
    grad: Tensor,
    rounds: int,
    backend: str,
) -> list[Tensor]:
    return [grad.new_empty(grad.shape), *(w.new_empty(w.shape) for w in weights)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    _, distances, num_nodes, weights, rounds, save, backend = inputs
    if not save:
        raise RuntimeError("ghn_fast::gated_gnn must be called with save=True to be differentiated")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(distances, num_nodes, *weights, *output[1])
    ctx.rounds, ctx.backend, ctx.num_weights = rounds, backend, len(weights)


def _differentiate(ctx: Any, grad: Tensor | None, _: list[Tensor | None]) -> tuple[Any, ...]:
    distances, num_nodes, *rest = ctx.saved_tensors
    weights, saved = rest[: ctx.num_weights], rest[ctx.num_weights :]
    if grad is None:
        return None, None, None, [None] * len(weights), None, None, None
    grads = _backward_op(distances, num_nodes, weights, saved, grad, ctx.rounds, ctx.backend)
    return grads[0], None, None, list(grads[1:]), None, None, None


_op.register_autograd(_differentiate, setup_context=_setup_context)


def _widths(weights: list[Tensor]) -> tuple[int, int]:
    """Of the hidden layers of mlp and mlp_ve; 0 where there is none."""
    return len(weights[0]), len(weights[8]) if len(weights) > 8 else 0


def _sizes(num_nodes: Tensor, weights: list[Tensor], rounds: int) -> core.GatedGnnSizes:
    return core.GatedGnnSizes(num_nodes.tolist(), len(weights[3]), *_widths(weights), rounds)


def _saved_size(x: Tensor, weights: list[Tensor], rounds: int) -> int:
    return core.gated_gnn_saved_size(len(x), x.shape[1], *_widths(weights), rounds)


def _saved_like(
    x: Tensor,
    distances: Tensor,
    num_nodes: Tensor,
    weights: list[Tensor],
    rounds: int,
    backend: str,
) -> list[Tensor]:
    """Tensors like those that the gradient needs, without values."""
    if backend == "cpp":
        return [x.new_empty(_saved_size(x, weights, rounds))]
    like: list[Tensor] = triton_kernels("gated_gnn").saved_like(
        x, distances, num_nodes, weights, rounds
    )
    return like


def _check_saved(saved: Sequence[Tensor], wanted: Sequence[Tensor], grad: Tensor) -> None:
    kinds = [[(t.shape, t.dtype) for t in tensors] for tensors in (saved, wanted)]
    if kinds[0] != kinds[1] or any(t.device != grad.device for t in saved):
        raise ValueError("what is needed for the gradient is not what the operation has saved")


def _check_op(
    x: Tensor,
    distances: Tensor,
    num_nodes: Tensor,
    weights: list[Tensor],
    rounds: int,
    backend: str,
) -> None:
    if len(weights) not in (8, 12):
        raise ValueError(f"mlp, gru and mlp_ve have 12 weights, or 8 without, not {len(weights)}")
    if backend not in ("cpp", "triton") or not _works(backend, x):
        raise ValueError(f"{backend!r} is no compiled backend for {x.dtype} on {x.device}")
    _check(x, distances, num_nodes, weights[:4], weights[8:] or None, weights[4:8], rounds)


def _check(
    x: Tensor,
    distances: Tensor,
    num_nodes: Tensor,
    mlp: MLP,
    mlp_ve: MLP | None,
    gru: GRU,
    rounds: int,
) -> None:
    if x.dim() != 2:
        raise ValueError(f"x must have shape (sum N, hid), not {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating type, not {x.dtype}")
    if distances.dtype != torch.uint8 or num_nodes.dtype != torch.int64:
        raise TypeError(
            f"distances must be uint8 and num_nodes int64, not {distances.dtype} and "
            f"{num_nodes.dtype}"
        )
    if num_nodes.device.type != "cpu" or num_nodes.dim() != 1:
        raise ValueError("num_nodes must be a one-dimensional tensor on the CPU")
    if distances.device != x.device:
        raise ValueError(f"distances are on {distances.device}, x on {x.device}")
    counts = num_nodes.tolist()
    entries = sum(n * n for n in counts)
    if min(counts, default=0) < 0 or sum(counts) != len(x) or distances.shape != (entries,):
        raise ValueError(
            f"x of {len(x)} nodes and distances of shape {tuple(distances.shape)} do not fit "
            f"num_nodes, which ask for {sum(counts)} nodes and shape ({entries},)"
        )
    check_size(max(counts, default=0))
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    hid = x.shape[1]
    _check_weights("gru", gru, [(3 * hid, hid), (3 * hid, hid), (3 * hid,), (3 * hid,)], x)
    for name, weights in (("mlp", mlp), ("mlp_ve", mlp_ve)):
        if weights is not None:
            h1 = weights[0].shape[0] if len(weights) > 0 and weights[0].dim() > 0 else 1
            if h1 == 0:
                raise ValueError(f"the hidden layer of {name} has no units")
            _check_weights(name, weights, [(h1, hid), (h1,), (hid, h1), (hid,)], x)


def _check_weights(
    name: str, weights: Sequence[Tensor], shapes: list[tuple[int, ...]], x: Tensor
) -> None:
    if [tuple(w.shape) for w in weights] != shapes:
        raise ValueError(
            f"{name} must have shapes {shapes}, not {[tuple(w.shape) for w in weights]}"
        )
    if any(w.dtype != x.dtype for w in weights):
        raise TypeError(f"{name} must have x's dtype {x.dtype}, not {[w.dtype for w in weights]}")
    if any(w.device != x.device for w in weights):
        raise ValueError(f"{name} must be on x's device {x.device}")
