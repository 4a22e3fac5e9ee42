"""Tiles as an operation of PyTorch, and its gradient."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ghn_fast.ops.tile.launch import backward, check_fast, fill
from ghn_fast.ops.tile.table import TileTable, check_blocks, check_gradients, check_sizes


@torch.library.custom_op(
    "ghn_fast::tile",
    mutates_args=(),
    schema="(Tensor[] blocks, int[] entries, float[] scales, ScalarType dtype, str backend)"
    " -> Tensor[]",
)
def tile_op(
    blocks: list[Tensor],
    entries: list[int],
    scales: list[float],
    dtype: torch.dtype,
    backend: str,
) -> list[Tensor]:
    """:func:`tile` in C++ or Triton; the table comes as its ``entries`` and ``scales``."""
    table = TileTable.from_entries(entries, scales)
    check_blocks(blocks, table)
    check_fast(backend, blocks, [dtype])
    parameters = [blocks[0].new_empty(t.shape, dtype=dtype) for t in table.tiles]
    fill(blocks, table, parameters, backend)
    return parameters


@dataclass
class _BlockShape:
    """Of a tensor of blocks, and how its gradient shall lie in memory."""

    sizes: list[int]
    strides: list[int]

    @classmethod
    def of(cls, blocks: Tensor) -> _BlockShape:
        # Dense, in the order of the dimensions in memory.
        alike = torch.empty_like(blocks, device="meta")
        return cls(list(alike.shape), list(alike.stride()))


@torch.library.custom_op(
    "ghn_fast::tile_backward",
    mutates_args=(),
    schema="(Tensor?[] values, Tensor?[] grads, int[] entries, float[] scales, int[] dims,"
    " int[] sizes, int[] strides, Tensor like, str backend) -> Tensor[]",
)
def _backward_op(
    values: list[Tensor | None],
    grads: list[Tensor | None],
    entries: list[int],
    scales: list[float],
    dims: list[int],
    sizes: list[int],
    strides: list[int],
    like: Tensor,
    backend: str,
) -> list[Tensor]:
    """:func:`backward` with the table as its ``entries`` and ``scales``.

    ``dims``, ``sizes`` and ``strides`` describe the gradients, ``like`` has their dtype and
    device.
    """
    table = TileTable.from_entries(entries, scales)
    results = _new_blocks(dims, sizes, strides, like)
    check_blocks(results, table)
    check_gradients(grads, table)
    _check_values(values, results, table)
    check_fast(backend, results, [like.dtype, *(g.dtype for g in grads if g is not None)])
    return backward(values, grads, table, results, backend)


def _new_blocks(
    dims: list[int], sizes: list[int], strides: list[int], like: Tensor
) -> list[Tensor]:
    bounds = list(itertools.accumulate(dims, initial=0))
    if min(dims, default=0) < 0 or {bounds[-1]} != {len(sizes), len(strides)}:
        raise ValueError(f"{dims} dimensions need as many sizes and strides")
    parts = [(sizes[start:stop], strides[start:stop]) for start, stop in itertools.pairwise(bounds)]
    for shape, steps in parts:
        check_sizes(shape)
        check_sizes([1 + sum(size * step for size, step in zip(shape, steps, strict=True))])
        if min(steps, default=0) < 0:
            raise ValueError(f"no tensor has the strides {steps}")
    return [like.new_empty_strided(*part) for part in parts]


def _check_values(values: list[Tensor | None], results: list[Tensor], table: TileTable) -> None:
    """Raises ValueError unless the values that matter are there, of their gradients' shapes."""
    if len(values) != len(results):
        raise ValueError(f"{len(values)} blocks have {len(results)} gradients")
    needed = {tile.block for tile in table.tiles if tile.rule != "scale"}
    for number, (value, result) in enumerate(zip(values, results, strict=True)):
        if value is None and number in needed:
            raise ValueError(f"the values of blocks {number} are needed for their gradient")
        if value is not None and (value.shape, value.dtype, value.device) != (
            *(result.shape, result.dtype, result.device),
        ):
            raise ValueError(f"blocks {number} and their gradient differ in shape, dtype or device")


@tile_op.register_fake
def _(
    blocks: list[Tensor],
    entries: list[int],
    scales: list[float],
    dtype: torch.dtype,
    backend: str,
) -> list[Tensor]:
    table = TileTable.from_entries(entries, scales)
    return [blocks[0].new_empty(t.shape, dtype=dtype) for t in table.tiles]


@_backward_op.register_fake
def _(
    values: list[Tensor | None],
    grads: list[Tensor | None],
    entries: list[int],
    scales: list[float],
    dims: list[int],
    sizes: list[int],
    strides: list[int],
    like: Tensor,
    backend: str,
) -> list[Tensor]:
    return _new_blocks(dims, sizes, strides, like)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    blocks, entries, scales, _, backend = inputs
    table = TileTable.from_entries(entries, scales)
    # Values of blocks that are only scaled do not matter: they need not be kept.
    kept = sorted({t.block for t in table.tiles if t.rule != "scale"})
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(blocks[0].new_empty(0), *(blocks[i] for i in kept))
    ctx.kept, ctx.entries, ctx.scales, ctx.backend = kept, entries, scales, backend
    ctx.shapes = [_BlockShape.of(b) for b in blocks]


def _differentiate(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    like, *kept = ctx.saved_tensors
    values: list[Tensor | None] = [None] * len(ctx.shapes)
    for index, value in zip(ctx.kept, kept, strict=True):
        values[index] = value
    dims = [len(shape.sizes) for shape in ctx.shapes]
    sizes = [size for shape in ctx.shapes for size in shape.sizes]
    strides = [stride for shape in ctx.shapes for stride in shape.strides]
    result = _backward_op(
        values, grads, ctx.entries, ctx.scales, dims, sizes, strides, like, ctx.backend
    )
    return list(result), None, None, None, None


tile_op.register_autograd(_differentiate, setup_context=_setup_context)
