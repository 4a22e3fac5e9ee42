"""Tiles in PyTorch, on any device, and by autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ghn_fast.ops.tile.table import TileTable


def tile_reference(
    blocks: Sequence[Tensor], table: TileTable, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """:func:`tile` in PyTorch, on any device."""
    return [
        normalised(repeated(blocks[t.block][t.row], t.shape), t.rule, t.scale).to(dtype=dtype)
        for t in table.tiles
    ]


def repeated(block: Tensor, shape: Sequence[int]) -> Tensor:
    """A block repeated along every dimension and cut to a shape."""
    repeats = [math.ceil(size / have) for size, have in zip(shape, block.shape, strict=True)]
    whole = block.repeat(repeats) if max(repeats, default=1) > 1 else block
    return whole[tuple(slice(size) for size in shape)]


def normalised(values: Tensor, rule: str, scale: float) -> Tensor:
    """Values by a rule of :data:`ghn_fast.ops.tile.RULES`."""
    if rule == "norm_weight":
        return 2 * torch.sigmoid(0.5 * values)
    if rule == "bias":
        return torch.tanh(0.2 * values)
    return values * scale


def reference_backward(
    blocks: Sequence[Tensor], table: TileTable, grads: Sequence[Tensor | None]
) -> list[Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors of inference mode can have no gradient; copies of them can.
        leaves = [block.detach().clone().requires_grad_() for block in blocks]
        parameters = tile_reference(leaves, table)
        used = [(p, g) for p, g in zip(parameters, grads, strict=True) if g is not None]
        torch.autograd.backward([p for p, _ in used], [g.to(p).clone() for p, g in used])
    return [torch.zeros_like(b) if b.grad is None else b.grad for b in leaves]
