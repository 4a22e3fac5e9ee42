"""From decoded blocks to parameters: tile, cut and normalise (arXiv 2110.13100, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ghn_fast.ops.tile.autograd import tile_op
from ghn_fast.ops.tile.launch import backward, choose, fill
from ghn_fast.ops.tile.reference import reference_backward, tile_reference
from ghn_fast.ops.tile.table import (
    MAX_DIMS,
    RULES,
    Tile,
    TileTable,
    check_blocks,
    check_gradients,
    check_parameters,
)

__all__ = [
    "MAX_DIMS",
    "RULES",
    "Tile",
    "TileTable",
    "tile",
    "tile_",
    "tile_backward",
    "tile_reference",
]


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
    dtype = dtype or (blocks[0].dtype if blocks else torch.get_default_dtype())
    backend = choose(backend, blocks, [dtype])
    if backend == "reference" or len(table) == 0:
        check_blocks(blocks, table)
        return tile_reference(blocks, table, dtype)
    return list(tile_op(list(blocks), table.entries, table.scales, dtype, backend))


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
    check_blocks(blocks, table)
    check_parameters(parameters, table)
    backend = choose(backend, blocks, {p.dtype for p in parameters}, parameters)
    if backend == "reference":
        for parameter, value in zip(parameters, tile_reference(blocks, table), strict=True):
            parameter.copy_(value)
        return
    fill(blocks, table, parameters, backend)
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
    check_blocks(blocks, table)
    check_gradients(grads, table)
    backend = choose(backend, blocks, [g.dtype for g in grads if g is not None])
    if backend == "reference":
        return reference_backward(blocks, table, grads)
    return backward(blocks, grads, table, [torch.empty_like(b) for b in blocks], backend)
