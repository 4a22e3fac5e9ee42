"""Embeddings of parameter shapes (arXiv 2110.13100, appendix B.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ghn_fast.graph import Node


def channel_vocabulary(num_classes: int) -> list[int]:
    """The numbers of channels that have an embedding of their own."""
    return sorted(
        {1, 3, num_classes, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)}
    )


def spatial_vocabulary(max_size: int) -> list[int]:
    """The kernel sizes that have an embedding of their own."""
    return sorted({*range(1, max(12, max_size), 2), 14, 16})


def nearest(vocabulary: Sequence[int], largest: int, exceptions: dict[int, int]) -> Tensor:
    """Table from a value to the index of the nearest in the vocabulary (the lower of two).

    Returns:
        (largest + 1,) int64; values above ``largest`` take the last entry.
    """
    # On the CPU even where a GHN is built on the meta device, to be filled from a checkpoint.
    values = torch.arange(largest + 1, device="cpu")
    sizes = torch.tensor(vocabulary, device="cpu")
    table = torch.bucketize(values, (sizes[:-1] + sizes[1:]) / 2)
    for value, like in exceptions.items():
        table[value] = vocabulary.index(like)
    table[-1] = len(vocabulary) - 1
    return table


def shape_as_4d(shape: Sequence[int], node_type: str = "conv") -> tuple[int, int, int, int]:
    """A parameter's shape as (out, in, height, width).

    A linear layer's (o, i) is (o, i, 1, 1), a vector's (n,) is (n, 1, 1, 1), that of a single
    number (1, 1, 1, 1). Of more than four dimensions, such as a video kernel's (o, i, t, h, w),
    the first two and the last two are taken. Tables of positions are (1, channels, height, width),
    see :class:`PositionTable`.
    """
    shape = tuple(shape)
    if node_type == "pos_enc" and len(shape) > 2:
        table = PositionTable.of(shape)
        return (1, table.channels, table.height, table.width)
    if len(shape) > 4:
        shape = (*shape[:2], *shape[-2:])
    padded = (*shape, *(1,) * (4 - len(shape)))
    return padded[0], padded[1], padded[2], padded[3]


class PositionTable(NamedTuple):
    """How the dimensions of a table of positions are to be read.

    Channels are the last dimension, as in (1, T, C) and (1, H, W, C). Of three dimensions and more
    that count they are the first, as in (1, C, H, W), where the other two are equal or, if that
    does not tell, where the first is not smaller than the last. Positions that are not given as
    height and width are taken for a square grid, and for extra rows before it where it does not
    come out even, as those of class tokens are.

    Attributes:
        rows: as many as positions, the extra ones too.
    """

    channels: int
    height: int
    width: int
    rows: int
    channels_first: bool

    @classmethod
    def of(cls, shape: Sequence[int]) -> PositionTable:
        single = len(shape) == 4 and shape[0] == 1
        sizes = list(shape[1:]) if single else [size for size in shape if size > 1]
        sizes = [1] * (2 - len(sizes)) + sizes
        first = len(sizes) > 2 and _channels_first(sizes)
        channels, positions = (sizes[0], sizes[1:]) if first else (sizes[-1], sizes[:-1])
        rows = math.prod(positions)
        if len(positions) == 2 and (first or min(positions) > 1):
            return cls(channels, positions[0], positions[1], rows, first)
        side = math.isqrt(rows)
        return cls(channels, side, side, rows, first)


def _channels_first(sizes: Sequence[int]) -> bool:
    if len(sizes) == 3 and (sizes[0] == sizes[1]) != (sizes[1] == sizes[2]):
        return sizes[1] == sizes[2]
    return sizes[0] >= sizes[-1]


_NO_SHAPE = (0, 0, 0, 0)


class ShapeEncoder(nn.Module):
    """Adds to each node the embedding of its shape: out, in, height and width, hid/4 wide each.

    Args:
        hid: width of the node embeddings.
        num_classes, max_shape: of the GHN.
        larger: sizes above the largest number of channels that are known too, ascending.
    """

    channel_index: Tensor
    spatial_index: Tensor

    def __init__(
        self, hid: int, num_classes: int, max_shape: Sequence[int], larger: Sequence[int] = ()
    ) -> None:
        super().__init__()
        channels = [*channel_vocabulary(num_classes), *larger]
        spatial = spatial_vocabulary(max_shape[3])
        # The extra last entry of each is for nodes without a shape.
        self.embed_spatial = nn.Embedding(len(spatial) + 1, hid // 4)
        self.embed_channel = nn.Embedding(len(channels) + 1, hid // 4)
        # 4 to 7 channels and 2x2 kernels do not occur in training; they take a size that does.
        self.channel_index = nearest(channels, channels[-1], dict.fromkeys(range(4, 8), 8))
        self.spatial_index = nearest(spatial, spatial[-1], {2: 3})

    def indices(self, nodes: Sequence[Node]) -> Tensor:
        """(N, 4) int64: the embeddings' indices of each node's shape, on the CPU."""
        shapes = [
            _NO_SHAPE if node.shape is None else shape_as_4d(node.shape, node.type)
            for node in nodes
        ]
        return self.indices_of(torch.tensor(shapes, dtype=torch.int64, device="cpu"))

    def indices_of(self, sizes: Tensor) -> Tensor:
        """:meth:`indices` of shapes (N, 4) as (out, in, height, width); zeros stand for none."""
        channels = self.channel_index[sizes[:, :2].clamp(max=len(self.channel_index) - 1)]
        spatial = self.spatial_index[sizes[:, 2:].clamp(max=len(self.spatial_index) - 1)]
        without = sizes[:, 0] == 0
        channels[without] = self.embed_channel.num_embeddings - 1
        spatial[without] = self.embed_spatial.num_embeddings - 1
        return torch.cat((channels, spatial), dim=1)

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        """x (N, hid) and indices (N, 4) to (N, hid)."""
        channels = self.embed_channel(indices[:, :2]).flatten(1)
        spatial = self.embed_spatial(indices[:, 2:]).flatten(1)
        return x + torch.cat((channels, spatial), dim=1)
