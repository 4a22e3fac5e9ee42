"""Which blocks a plan needs, and where each parameter finds its own.

Blocks of equal size are decoded together whatever the shapes of the parameters that are made from
them, so that decoding is a few large matrix products; from the blocks,
:func:`ghn_fast.ops.tile.tile_` then writes every parameter in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ghn_fast.ghn.config import GHNConfig
from ghn_fast.ghn.embed.shape_encoder import shape_as_4d
from ghn_fast.ghn.place.plan import Group, Plan, Target
from ghn_fast.ghn.place.tiling import channel_axis, normalisation
from ghn_fast.ops.tile import MAX_DIMS, Tile, TileTable

VECTOR_RULES = ("norm_weight", "norm_bias", "bias")
"""Rules of parameters that are decoded to a vector."""


class Source(NamedTuple):
    """A tensor of decoded blocks.

    Attributes:
        kind: ``kernel``, ``vector``, ``class_weight`` or ``class_bias``.
        size: of each block; of kernels (out, in, height, width), of classification weights
            (classes, in), of the others (channels,). There are two vectors a node: that of a
            norm's weight and that of a bias.
    """

    kind: str
    size: tuple[int, ...]


class View(NamedTuple):
    """A source's blocks with as many dimensions as the parameters that are made from them."""

    source: Source
    shape: tuple[int, ...]


@dataclass
class BlockTable:
    """How the parameters of a plan are made.

    Attributes:
        nodes: for each source the nodes that its blocks are decoded from, int64.
        views: the tensors of blocks that the tiles refer to.
        tiles: of each parameter in ``targets``.
        targets: what is made from blocks.
        direct: groups that are not tiled from a block: tables of positions, kernels that are
            interpolated, products of low rank, and parameters of more dimensions than a tile has.
    """

    nodes: dict[Source, Tensor]
    views: list[View]
    tiles: TileTable
    targets: list[Target]
    direct: list[Group]


@dataclass
class _Builder:
    config: GHNConfig
    nodes: dict[Source, dict[int, int]] = field(default_factory=dict)
    views: dict[View, int] = field(default_factory=dict)
    tiles: list[Tile] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    direct: list[Group] = field(default_factory=list)

    def add(self, group: Group) -> None:
        view = _view(group, self.config)
        block = self.views.setdefault(view, len(self.views))
        rows = self.nodes.setdefault(view.source, {})
        rule, scale = _normalisation(group, self.config)
        for target in group.targets:
            row = rows.setdefault(target.node, len(rows))
            if view.source.kind == "vector":
                row = 2 * row + (group.rule != "norm_weight")
            self.tiles.append(Tile(block, row, group.shape, rule, scale))
            self.targets.append(target)


def make_block_table(plan: Plan, config: GHNConfig, interpolates: bool = False) -> BlockTable:
    """Sorts what a plan decodes by the sizes of the blocks.

    Args:
        plan: of a batch.
        config: of the GHN.
        interpolates: kernels larger than the GHN's largest are not repeated in space.
    """
    builder = _Builder(config)
    for group in plan.groups:
        if _is_direct(group, config, interpolates):
            builder.direct.append(group)
        else:
            builder.add(group)
    nodes = {
        source: torch.tensor(list(rows), device="cpu") for source, rows in builder.nodes.items()
    }
    tiles = TileTable(builder.tiles)
    return BlockTable(nodes, list(builder.views), tiles, builder.targets, builder.direct)


def _is_direct(group: Group, config: GHNConfig, interpolates: bool) -> bool:
    if config.decoder == "low_rank" or group.rule == "pos_enc" or len(group.shape) > MAX_DIMS:
        return True
    if not interpolates or group.rule in (*VECTOR_RULES, "class_weight", "class_bias"):
        return False
    sizes = zip(shape_as_4d(group.shape)[2:], config.max_shape[2:], strict=True)
    return any(size > most for size, most in sizes)


def _view(group: Group, config: GHNConfig) -> View:
    """What a group's parameters are made from."""
    shape, max_shape = group.shape, config.max_shape
    if group.rule in VECTOR_RULES:
        return _vector_view(Source("vector", (max(max_shape[:2]),)), shape)
    if group.rule == "class_bias":
        return _vector_view(Source("class_bias", (config.num_classes,)), shape)
    if group.rule == "class_weight":
        size = (config.num_classes, min(shape[1], max_shape[1]))
        return View(Source("class_weight", size), (*size, *(1,) * (len(shape) - 2)))
    wanted = zip(shape_as_4d(shape), max_shape, strict=True)
    block = tuple(min(size, most) for size, most in wanted)
    source = Source("kernel", block)
    if group.rule == "video_weight":
        return View(source, (*block[:2], 1, *block[2:]))
    return View(source, block[: len(shape)])


def _vector_view(source: Source, shape: Sequence[int]) -> View:
    axis = channel_axis(shape)
    return View(source, (*(1,) * axis, *source.size, *(1,) * (len(shape) - axis - 1)))


def _normalisation(group: Group, config: GHNConfig) -> tuple[str, float]:
    """The tiles' rule and scale."""
    shape, times = group.shape, 1
    if group.rule == "video_weight":
        times, shape = shape[2], (*shape[:2], *shape[3:])
    if not config.weight_norm:
        return "scale", 1.0 / (times * group.factor)
    rule, scale = normalisation(group.rule, shape, group.fan_in)
    return rule, scale / (times * group.factor)
