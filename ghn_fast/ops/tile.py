"""From decoded blocks to parameters: tile, cut and normalise (arXiv 2110.13100, section 3.4)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

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

RULES = ("scale", "norm_weight", "bias")
"""How values p are normalised: scale * p, 2 sigmoid(p / 2), tanh(p / 5)."""

MAX_DIMS = 5
"""Of a parameter: output channels, input channels, three of space."""


class Tile(NamedTuple):
    """One parameter, and what it is made from.

    Attributes:
        block: which tensor of blocks it is made from.
        row: which of that tensor's blocks.
        shape: of the parameter, with as many dimensions as the block.
        rule: one of :data:`RULES`.
        scale: for the rule ``scale``.
    """

    block: int
    row: int
    shape: tuple[int, ...]
    rule: str = "scale"
    scale: float = 1.0


class TileTable:
    """A list of :class:`Tile` in the form that :func:`tile` and :func:`tile_` take.

    Worth keeping where the same parameters are predicted again.

    Raises:
        ValueError: an unknown rule, or a parameter of more than five dimensions.
    """

    def __init__(self, tiles: Iterable[Tile]) -> None:
        self.tiles = tuple(Tile(*tile) for tile in tiles)
        for tile in self.tiles:
            if tile.rule not in RULES:
                raise ValueError(f"rule must be one of {RULES}, not {tile.rule!r}")
            if len(tile.shape) > MAX_DIMS:
                raise ValueError(f"parameters of {len(tile.shape)} dimensions are not supported")

    def __len__(self) -> int:
        return len(self.tiles)

    @cached_property
    def scales(self) -> list[float]:
        return [tile.scale for tile in self.tiles]

    @cached_property
    def rules(self) -> list[int]:
        return [RULES.index(tile.rule) for tile in self.tiles]

    @cached_property
    def layouts(self) -> list[list[int]]:
        """Of each parameter where it is contiguous: its five sizes and five strides."""
        return [_layout(tile.shape, _contiguous_strides(tile.shape)) for tile in self.tiles]

    @cached_property
    def entries(self) -> list[int]:
        """Block, row, rule, dimensions and as many sizes of each tile, one after the other."""
        rows = zip(self.tiles, self.rules, strict=True)
        return [
            value
            for tile, rule in rows
            for value in (tile.block, tile.row, rule, len(tile.shape), *tile.shape)
        ]

    @classmethod
    def from_entries(cls, entries: Sequence[int], scales: Sequence[float]) -> TileTable:
        """The table that has these ``entries`` and ``scales``."""
        values = iter(entries)
        tiles = []
        for scale in scales:
            block, row, rule, dims = itertools.islice(values, 4)
            shape = tuple(itertools.islice(values, dims))
            tiles.append(Tile(block, row, shape, RULES[rule], scale))
        return cls(tiles)


def tile(
    blocks: Sequence[Tensor],
    table: TileTable,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> list[Tensor]:
    """New parameters: blocks repeated along every dimension, cut to a shape, and normalised.

    Args:
        blocks: tensors (n, *block) of n blocks each, with any strides; all of one dtype, float32
            or float64 on the CPU, float32, float16 or bfloat16 on a CUDA device (on the reference
            path any floating type), and on one device.
        table: the parameters that are wanted.
        dtype: of the parameters, that of the blocks where left out.
        backend: "triton" (on CUDA devices), "cpp" (on the CPU), "reference" (PyTorch), or None
            for the fastest that works. Only the reference can be differentiated twice.

    Returns:
        The parameters in the table's order. Differentiable with respect to the blocks.

    Raises:
        ValueError: a tile that names a block that is not there or has another number of
            dimensions, or a backend that does not work for these tensors.
        TypeError: blocks of different dtypes.
    """
    _check_blocks(blocks, table)
    dtype = dtype or (blocks[0].dtype if blocks else torch.get_default_dtype())
    backend = _choose(backend, blocks, [dtype])
    if backend == "reference":
        return tile_reference(blocks, table, dtype)
    if len(table) == 0:
        return []
    return list(_op(list(blocks), table.entries, table.scales, dtype, backend))


@torch.no_grad()
def tile_(
    blocks: Sequence[Tensor],
    table: TileTable,
    parameters: Sequence[Tensor],
    backend: str | None = None,
) -> None:
    """:func:`tile` into the memory of existing parameters, without gradients.

    Args:
        blocks: as for :func:`tile`.
        table: as for :func:`tile`.
        parameters: as many as the table has tiles, of their shapes; float32, float64, float16 or
            bfloat16 (on the reference path any floating type), with any strides, on the blocks'
            device. They must not overlap.
        backend: as for :func:`tile`.

    Raises:
        ValueError: as for :func:`tile`, and for parameters of other shapes.
        TypeError: as for :func:`tile`.
    """
    _check_blocks(blocks, table)
    _check_parameters(parameters, table)
    backend = _choose(backend, blocks, {p.dtype for p in parameters}, parameters)
    if backend == "reference":
        for parameter, value in zip(parameters, tile_reference(blocks, table), strict=True):
            parameter.copy_(value)
        return
    _fill(blocks, table, parameters, backend)
    torch.autograd.graph.increment_version([p for p in parameters if not p.is_inference()])


@torch.no_grad()
def tile_backward(
    blocks: Sequence[Tensor],
    table: TileTable,
    grads: Sequence[Tensor | None],
    backend: str | None = None,
) -> list[Tensor]:
    """The gradients of the blocks from those of the parameters that :func:`tile` makes of them.

    For loops that have the parameters' gradients at hand: autograd takes as long for its records
    of a thousand small parameters as the sums take.

    Args:
        blocks: as for :func:`tile`.
        table: as for :func:`tile`.
        grads: of each parameter, in the table's order; None counts as zeros.
        backend: as for :func:`tile`.

    Raises:
        ValueError: as for :func:`tile`, and for gradients of other shapes.
        TypeError: as for :func:`tile`.
    """
    _check_blocks(blocks, table)
    for number, (grad, tile) in enumerate(zip(grads, table.tiles, strict=True)):
        if grad is not None and grad.shape != tile.shape:
            raise ValueError(
                f"gradient {number} has shape {tuple(grad.shape)}, its tile {tile.shape}"
            )
    backend = _choose(backend, blocks, [g.dtype for g in grads if g is not None])
    if backend == "reference":
        return _reference_backward(blocks, table, grads)
    return _backward(blocks, grads, table, [torch.empty_like(b) for b in blocks], backend)


def _reference_backward(
    blocks: Sequence[Tensor], table: TileTable, grads: Sequence[Tensor | None]
) -> list[Tensor]:
    leaves = [block.detach().requires_grad_() for block in blocks]
    with torch.enable_grad():
        parameters = tile_reference(leaves, table)
    pairs = [(p, g.to(p)) for p, g in zip(parameters, grads, strict=True) if g is not None]
    torch.autograd.backward([p for p, _ in pairs], [g for _, g in pairs])
    return [torch.zeros_like(b) if b.grad is None else b.grad for b in leaves]


def tile_reference(
    blocks: Sequence[Tensor], table: TileTable, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """:func:`tile` in PyTorch, on any device."""
    return [
        _normalise(_repeat(blocks[t.block][t.row], t.shape), t.rule, t.scale).to(dtype=dtype)
        for t in table.tiles
    ]


def _repeat(block: Tensor, shape: Sequence[int]) -> Tensor:
    repeats = [math.ceil(size / have) for size, have in zip(shape, block.shape, strict=True)]
    whole = block.repeat(repeats) if max(repeats, default=1) > 1 else block
    return whole[tuple(slice(size) for size in shape)]


def _normalise(values: Tensor, rule: str, scale: float) -> Tensor:
    if rule == "norm_weight":
        return 2 * torch.sigmoid(0.5 * values)
    if rule == "bias":
        return torch.tanh(0.2 * values)
    return values * scale


# The core's functions by the dtype of blocks.
_CPP_FORWARD = {torch.float32: core.tile_float, torch.float64: core.tile_double}
_CPP_BACKWARD = {torch.float32: core.tile_backward_float, torch.float64: core.tile_backward_double}

# By the dtype of parameters: the core's number of it.
_CPP_TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def _layout(sizes: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Five sizes and five strides; a single dimension is that of the input channels."""
    before = 1 if len(sizes) == 1 else 0
    after = MAX_DIMS - before - len(sizes)
    return [*(1,) * before, *sizes, *(1,) * after, *(0,) * before, *strides, *(0,) * after]


def _contiguous_strides(shape: Sequence[int]) -> list[int]:
    strides = itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1)
    return list(strides)[::-1] if shape else []


def _fill(
    blocks: Sequence[Tensor], table: TileTable, parameters: Sequence[Tensor], backend: str
) -> None:
    targets = [
        [p.data_ptr(), *(layout if p.is_contiguous() else _layout(p.shape, p.stride()))]
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
    fill = _CPP_FORWARD[blocks[0].dtype]
    fill(sources, targets, types, table.rules, table.scales, torch.get_num_threads())


def _block_infos(blocks: Sequence[Tensor], table: TileTable) -> list[list[int]]:
    """For each tile the address, sizes and strides of its block."""
    origins = [b.data_ptr() for b in blocks]
    steps = [b.stride(0) * b.element_size() for b in blocks]
    layouts = [_layout(b.shape[1:], b.stride()[1:]) for b in blocks]
    return [[origins[t.block] + t.row * steps[t.block], *layouts[t.block]] for t in table.tiles]


@torch.library.custom_op(
    "ghn_fast::tile",
    mutates_args=(),
    schema="(Tensor[] blocks, int[] entries, float[] scales, ScalarType dtype, str backend)"
    " -> Tensor[]",
)
def _op(
    blocks: list[Tensor],
    entries: list[int],
    scales: list[float],
    dtype: torch.dtype,
    backend: str,
) -> list[Tensor]:
    """:func:`tile` in C++ or Triton; the table comes as its ``entries`` and ``scales``."""
    table = TileTable.from_entries(entries, scales)
    parameters = [blocks[0].new_empty(t.shape, dtype=dtype) for t in table.tiles]
    _fill(blocks, table, parameters, backend)
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
    """:func:`_backward` with the table as its ``entries`` and ``scales``.

    ``dims``, ``sizes`` and ``strides`` describe the gradients, ``like`` has their dtype and
    device.
    """
    table = TileTable.from_entries(entries, scales)
    results = _new_blocks(dims, sizes, strides, like)
    return _backward(values, grads, table, results, backend)


def _backward(
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
        [[g.data_ptr(), *_layout(g.shape, g.stride())] for g in present],
        [_CPP_TYPES[grad.dtype] for grad in present],
        [RULES.index(tile.rule) for tile in tiles],
        [tile.scale for tile in tiles],
        results[0].dtype,
        results[0].device,
    )


def _row_infos(blocks: Tensor) -> list[list[int]]:
    """For each block of a tensor its address, sizes and strides."""
    layout = _layout(blocks.shape[1:], blocks.stride()[1:])
    step = blocks.stride(0) * blocks.element_size()
    return [[blocks.data_ptr() + row * step, *layout] for row in range(len(blocks))]


def _new_blocks(
    dims: list[int], sizes: list[int], strides: list[int], like: Tensor
) -> list[Tensor]:
    bounds = list(itertools.accumulate(dims, initial=0))
    return [
        like.new_empty_strided(sizes[start:stop], strides[start:stop])
        for start, stop in itertools.pairwise(bounds)
    ]


@_op.register_fake
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


_op.register_autograd(_differentiate, setup_context=_setup_context)


def _choose(
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


def _works(backend: str, blocks: Sequence[Tensor], devices: set[torch.device]) -> bool:
    if backend == "triton":
        right = all(b.dtype in TRITON_DTYPES for b in blocks) and len(devices) == 1
        return right and all(triton_runs_on(device) for device in devices)
    right = all(b.dtype in _CPP_FORWARD for b in blocks)
    return right and all(device.type == "cpu" for device in devices)


def _check_blocks(blocks: Sequence[Tensor], table: TileTable) -> None:
    if len({b.dtype for b in blocks}) > 1:
        raise TypeError(f"blocks have different dtypes: {sorted({str(b.dtype) for b in blocks})}")
    if len({b.device for b in blocks}) > 1:
        raise ValueError(
            f"blocks are on different devices: {sorted({str(b.device) for b in blocks})}"
        )
    shapes = [b.shape for b in blocks]
    for number, tile in enumerate(table.tiles):
        if not 0 <= tile.block < len(blocks) or not 0 <= tile.row < shapes[tile.block][0]:
            raise ValueError(
                f"tile {number} is made from block {tile.row} of tensor {tile.block}; there are "
                f"{len(blocks)} tensors of {[s[0] for s in shapes]} blocks"
            )
        block = shapes[tile.block][1:]
        if len(block) != len(tile.shape):
            raise ValueError(
                f"tile {number} of shape {tile.shape} is made from a block of shape "
                f"{tuple(block)}: both must have equally many dimensions"
            )
        if 0 in block and 0 not in tile.shape:
            raise ValueError(f"tile {number} is made from an empty block")


def _check_parameters(parameters: Sequence[Tensor], table: TileTable) -> None:
    if len(parameters) != len(table):
        raise ValueError(f"{len(parameters)} parameters were passed for {len(table)} tiles")
    for number, (parameter, tile) in enumerate(zip(parameters, table.tiles, strict=True)):
        if parameter.shape != tile.shape:
            raise ValueError(
                f"parameter {number} has shape {tuple(parameter.shape)}, its tile {tile.shape}"
            )
        if not parameter.is_contiguous() and _overlaps_itself(parameter):
            raise ValueError(f"parameter {number} is expanded: its elements share memory")


def _overlaps_itself(tensor: Tensor) -> bool:
    dims = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in dims)
