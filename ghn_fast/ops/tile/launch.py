"""Tiles in C++ and Triton: which of them, and the addresses that they get."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
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
from ghn_fast.ops.tile.table import RULES, TileTable, layout_of

# The core's functions by the dtype of blocks.
_CPP_FORWARD = {torch.float32: core.tile_float, torch.float64: core.tile_double}
_CPP_BACKWARD = {torch.float32: core.tile_backward_float, torch.float64: core.tile_backward_double}

# By the dtype of parameters: the core's number of it.
_CPP_TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def choose(
    backend: str | None,
    blocks: Sequence[Tensor],
    dtypes: Iterable[torch.dtype],
    parameters: Sequence[Tensor] = (),
) -> str:
    """The backend to take for blocks and for parameters of the given dtypes."""
    devices = {tensor.device for tensor in (*blocks, *parameters)} or {torch.device("cpu")}
    known = all(dtype in _CPP_TYPES for dtype in dtypes)
    if backend is None:
        fast = fast_backend(next(iter(devices)))
        return fast if known and _works(fast, blocks, devices) else "reference"
    check_known(backend)
    if backend != "reference" and not (known and _works(backend, blocks, devices)):
        raise unsuitable(backend, [*(b.dtype for b in blocks), *dtypes], next(iter(devices)))
    return backend


def check_fast(backend: str, blocks: Sequence[Tensor], dtypes: Iterable[torch.dtype]) -> None:
    """Raises ValueError for a backend that is none of the compiled ones, or not for these."""
    if choose(backend, blocks, list(dtypes)) == "reference":
        raise ValueError("the operation is there for the backends 'cpp' and 'triton' only")


def _works(backend: str, blocks: Sequence[Tensor], devices: set[torch.device]) -> bool:
    if backend == "triton":
        right = all(b.dtype in TRITON_DTYPES for b in blocks) and len(devices) == 1
        return right and all(triton_runs_on(device) for device in devices)
    right = all(b.dtype in _CPP_FORWARD for b in blocks)
    return right and all(device.type == "cpu" for device in devices)


def fill(
    blocks: Sequence[Tensor], table: TileTable, parameters: Sequence[Tensor], backend: str
) -> None:
    """Fills the parameters from the blocks."""
    targets = [
        [p.data_ptr(), *(layout if p.is_contiguous() else layout_of(p.shape, p.stride()))]
        for p, layout in zip(parameters, table.layouts, strict=True)
    ]
    if not targets:
        return
    types = [_CPP_TYPES[p.dtype] for p in parameters]
    sources = _block_infos(blocks, table)
    if backend == "triton":
        like = blocks[0]
        kernels = triton_kernels("tile")
        kernels.fill(sources, targets, types, table.rules, table.scales, like.dtype, like.device)
        return
    forward = _CPP_FORWARD[blocks[0].dtype]
    forward(sources, targets, types, table.rules, table.scales, torch.get_num_threads())


def _block_infos(blocks: Sequence[Tensor], table: TileTable) -> list[list[int]]:
    """For each tile the address, sizes and strides of its block."""
    origins = [b.data_ptr() for b in blocks]
    steps = [b.stride(0) * b.element_size() for b in blocks]
    layouts = [layout_of(b.shape[1:], b.stride()[1:]) for b in blocks]
    return [[origins[t.block] + t.row * steps[t.block], *layouts[t.block]] for t in table.tiles]


def backward(
    values: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    table: TileTable,
    results: list[Tensor],
    backend: str,
) -> list[Tensor]:
    """Fills ``results``, the gradients of the blocks, from those of the parameters (None: zero).

    ``values`` are the blocks whose values matter.
    """
    if not results:
        return results
    if backend == "triton":
        _sum_on_device(values, grads, table, results)
        return results
    dtype = results[0].dtype
    # Tiles of the same block follow each other; the first of them overwrites.
    order = sorted(range(len(table)), key=lambda i: table.tiles[i][:2])
    rows = [table.tiles[i][:2] for i in order]
    adds = [i > 0 and rows[i] == rows[i - 1] for i in range(len(rows))]
    used = [0] * len(results)
    for (block, _), add in zip(rows, adds, strict=True):
        used[block] += not add
    for result, count in zip(results, used, strict=True):
        if count < len(result):
            result.zero_()
    # Kept until the core has read them.
    dense = [None if g is None else g.to(dtype).contiguous() for g in grads]
    blocks = [r if v is None else v for r, v in zip(results, values, strict=True)]
    sources, targets = _block_infos(blocks, table), _block_infos(results, table)
    _CPP_BACKWARD[dtype](
        [sources[i] for i in order],
        [targets[i] for i in order],
        [[0 if (g := dense[i]) is None else g.data_ptr(), *table.layouts[i]] for i in order],
        adds,
        [table.rules[i] for i in order],
        [table.scales[i] for i in order],
        torch.get_num_threads(),
    )
    return results


def _sum_on_device(
    values: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    table: TileTable,
    results: Sequence[Tensor],
) -> None:
    """Writes the gradients of all blocks into ``results`` by Triton."""
    firsts = list(itertools.accumulate((len(result) for result in results), initial=0))
    used = [number for number, grad in enumerate(grads) if grad is not None]
    tiles = [table.tiles[number] for number in used]
    present = [grad for grad in grads if grad is not None]
    sources = []
    for value, result in zip(values, results, strict=True):
        rows = _row_infos(result if value is None else value)
        # Values that do not matter have no address.
        sources += [[0, *row[1:]] for row in rows] if value is None else rows
    triton_kernels("tile").fill_backward(
        sources,
        [row for result in results for row in _row_infos(result)],
        [firsts[tile.block] + tile.row for tile in tiles],
        [[g.data_ptr(), *layout_of(g.shape, g.stride())] for g in present],
        [_CPP_TYPES[grad.dtype] for grad in present],
        [RULES.index(tile.rule) for tile in tiles],
        [tile.scale for tile in tiles],
        results[0].dtype,
        results[0].device,
    )


def _row_infos(blocks: Tensor) -> list[list[int]]:
    """For each block of a tensor its address, sizes and strides."""
    layout = layout_of(blocks.shape[1:], blocks.stride()[1:])
    step = blocks.stride(0) * blocks.element_size()
    return [[blocks.data_ptr() + row * step, *layout] for row in range(len(blocks))]
