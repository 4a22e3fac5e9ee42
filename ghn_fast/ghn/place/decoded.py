"""What a GHN decoded for a batch, and the parameters that are made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ghn_fast._system.device import to_device
from ghn_fast.ghn.place.block_table import BlockTable
from ghn_fast.ghn.place.plan import Group, Target, as_stored, keep_copies
from ghn_fast.ops.tile import TileTable, tile, tile_


@dataclass
class Decoded:
    """Blocks, and the parameters that are not made from blocks.

    Attributes:
        blocks: of the table's views.
        table: of the batch.
        direct: the table's direct groups with their parameters (n, *shape).
    """

    blocks: list[Tensor]
    table: BlockTable
    direct: list[tuple[Group, Tensor]]

    @property
    def targets(self) -> list[Target]:
        """Where each parameter belongs."""
        return [*self.table.targets, *(t for group, _ in self.direct for t in group.targets)]

    @property
    def device(self) -> torch.device:
        """Of all that was decoded."""
        return next((t.device for t in (*self.blocks, *self.direct_tensors())), torch.device("cpu"))

    def tensors(self) -> list[Tensor]:
        """The parameters of the targets; differentiable."""
        tiled = tile(self.blocks, self.table.tiles)
        return [*as_stored(self.table.targets, tiled), *self.direct_tensors()]

    def direct_tensors(self) -> list[Tensor]:
        """Those of the targets after the table's."""
        return [t for group, tensors in self.direct for t in as_stored(group.targets, tensors)]

    def write(self, parameters: Sequence[Tensor]) -> None:
        """Writes the values into parameters that are there, those of the targets."""
        tiled = len(self.table.targets)
        views = [t.view(p) for t, p in zip(self.table.targets, parameters, strict=False)]
        _tile_into(self.blocks, self.table.tiles, views)
        keep_copies(self.table.targets, views, parameters[:tiled])
        for parameter, tensor in zip(parameters[tiled:], self.direct_tensors(), strict=True):
            parameter.copy_(tensor)


def _tile_into(blocks: Sequence[Tensor], table: TileTable, parameters: Sequence[Tensor]) -> None:
    """:func:`tile_` for parameters that may be on several devices; blocks are the smaller part."""
    devices = {parameter.device for parameter in parameters}
    for device in devices:
        there = [index for index, p in enumerate(parameters) if p.device == device]
        part = table if len(devices) == 1 else TileTable(table.tiles[index] for index in there)
        tile_([to_device(b, device) for b in blocks], part, [parameters[index] for index in there])
