"""The list of parameters that are made from blocks, and what has to fit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from ghn_fast._system.writable import is_expanded

RULES = ("scale", "norm_weight", "bias")
"""How values p are normalised: scale * p, 2 sigmoid(p / 2), tanh(p / 5)."""

MAX_DIMS = 5
"""Of a parameter: output channels, input channels, three of space."""

MOST_ELEMENTS = 2**60
"""Of a tensor: its bytes are counted in 64 bits."""


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

    Attributes:
        tiles: of the table.
        scales, rules: of each, rules as their places in :data:`RULES`.
        entries: block, row, rule, dimensions and as many sizes of each, one after the other.

    Raises:
        ValueError: an unknown rule, or a parameter of more than five dimensions, of a negative
            size or of more elements than can be counted.
    """

    def __init__(self, tiles: Iterable[Tile]) -> None:
        self.tiles = tuple(Tile(*tile) for tile in tiles)
        for tile in self.tiles:
            if tile.rule not in RULES:
                raise ValueError(f"rule must be one of {RULES}, not {tile.rule!r}")
            if len(tile.shape) > MAX_DIMS:
                raise ValueError(f"parameters of {len(tile.shape)} dimensions are not supported")
            check_sizes(tile.shape)
        # Here, and not when asked for: torch.compile cannot look behind a cached_property's lock.
        self.scales = [tile.scale for tile in self.tiles]
        self.rules = [RULES.index(tile.rule) for tile in self.tiles]
        self.entries = [
            value
            for tile, rule in zip(self.tiles, self.rules, strict=True)
            for value in (tile.block, tile.row, rule, len(tile.shape), *tile.shape)
        ]

    def __len__(self) -> int:
        return len(self.tiles)

    @cached_property
    def layouts(self) -> list[list[int]]:
        """Of each parameter where it is contiguous: its five sizes and five strides."""
        return [layout_of(tile.shape, _contiguous_strides(tile.shape)) for tile in self.tiles]

    @classmethod
    def from_entries(cls, entries: Sequence[int], scales: Sequence[float]) -> TileTable:
        """The table that has these ``entries`` and ``scales``.

        Raises:
            ValueError: they are not those of a table.
        """
        tiles, start = [], 0
        for scale in scales:
            block, row, rule, dims = (*entries[start : start + 4], -1, -1, -1, -1)[:4]
            if not (0 <= rule < len(RULES) and 0 <= dims <= MAX_DIMS):
                break
            shape = tuple(entries[start + 4 : start + 4 + dims])
            tiles.append(Tile(block, row, shape, RULES[rule], scale))
            start += 4 + dims
        if start != len(entries) or len(tiles) != len(scales):
            raise ValueError(f"{len(entries)} entries and {len(scales)} scales are no table")
        return cls(tiles)


def layout_of(sizes: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Five sizes and five strides; a single dimension is that of the input channels."""
    before = 1 if len(sizes) == 1 else 0
    after = MAX_DIMS - before - len(sizes)
    return [*(1,) * before, *sizes, *(1,) * after, *(0,) * before, *strides, *(0,) * after]


def _contiguous_strides(shape: Sequence[int]) -> list[int]:
    strides = itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1)
    return list(strides)[::-1] if shape else []


def check_sizes(shape: Sequence[int]) -> None:
    """Raises ValueError for a shape that no tensor can have."""
    if min(shape, default=0) < 0 or math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"no tensor has the shape {tuple(shape)}")


def check_blocks(blocks: Sequence[Tensor], table: TileTable) -> None:
    if len({b.dtype for b in blocks}) > 1:
        raise TypeError(f"blocks have different dtypes: {sorted({str(b.dtype) for b in blocks})}")
    if len({b.device for b in blocks}) > 1:
        raise ValueError(
            f"blocks are on different devices: {sorted({str(b.device) for b in blocks})}"
        )
    shapes = [tuple(b.shape) for b in blocks]
    if () in shapes:
        raise ValueError("blocks must be tensors (n, *block), not of no dimensions")
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


def check_parameters(parameters: Sequence[Tensor], table: TileTable) -> None:
    if len(parameters) != len(table):
        raise ValueError(f"{len(parameters)} parameters were passed for {len(table)} tiles")
    for number, (parameter, tile) in enumerate(zip(parameters, table.tiles, strict=True)):
        if parameter.shape != tile.shape:
            raise ValueError(
                f"parameter {number} has shape {tuple(parameter.shape)}, its tile {tile.shape}"
            )
        if is_expanded(parameter):
            raise ValueError(f"parameter {number} is expanded: its elements share memory")


def check_gradients(grads: Sequence[Tensor | None], table: TileTable) -> None:
    if len(grads) != len(table):
        raise ValueError(f"{len(grads)} gradients were passed for {len(table)} tiles")
    for number, (grad, tile) in enumerate(zip(grads, table.tiles, strict=True)):
        if grad is not None and grad.shape != tile.shape:
            raise ValueError(
                f"gradient {number} has shape {tuple(grad.shape)}, its tile {tile.shape}"
            )
