"""Embeddings of parameter shapes (arXiv 2110.13100, appendix B.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ghn_fast.graph import Node

LARGEST_CHANNELS = 8192


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


def shape_as_4d(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """A parameter's shape as (out, in, height, width).

    A linear layer's (o, i) is (o, i, 1, 1), a vector's (n,) is (n, 1, 1, 1), and a table of
    positions' (1, T, C) is (1, C, s, s) with s the integer root of T. A video kernel
    (o, i, t, h, w) leaves out its time.
    """
    shape = tuple(shape)
    if len(shape) == 3 and shape[0] == 1 and min(shape[1:]) > 1:
        side = math.isqrt(shape[1])
        return (1, shape[2], side, side)
    if len(shape) == 5:
        return (shape[0], shape[1], shape[3], shape[4])
    if len(shape) > 5:
        raise ValueError(f"a parameter of shape {shape} has too many dimensions")
    return (*shape, *(1,) * (4 - len(shape)))  # type: ignore[return-value]


class ShapeEncoder(nn.Module):
    """Adds to each node the embedding of its shape: out, in, height and width, hid/4 wide each."""

    channel_index: Tensor
    spatial_index: Tensor

    def __init__(self, hid: int, num_classes: int, max_shape: Sequence[int]) -> None:
        super().__init__()
        channels = channel_vocabulary(num_classes)
        spatial = spatial_vocabulary(max_shape[3])
        # The extra last entry of each is for nodes without a shape.
        self.embed_spatial = nn.Embedding(len(spatial) + 1, hid // 4)
        self.embed_channel = nn.Embedding(len(channels) + 1, hid // 4)
        # 4 to 7 channels and 2x2 kernels do not occur in training; they take a size that does.
        self.channel_index = nearest(channels, LARGEST_CHANNELS, dict.fromkeys(range(4, 8), 8))
        self.spatial_index = nearest(spatial, spatial[-1], {2: 3})

    def indices(self, nodes: Sequence[Node]) -> Tensor:
        """(N, 4) int64: the embeddings' indices of each node's shape, on the CPU."""
        shapes = [shape_as_4d(node.shape) if node.shape else (0, 0, 0, 0) for node in nodes]
        sizes = torch.tensor(shapes, dtype=torch.int64)
        channels = self.channel_index[sizes[:, :2].clamp(max=len(self.channel_index) - 1)]
        spatial = self.spatial_index[sizes[:, 2:].clamp(max=len(self.spatial_index) - 1)]
        without = torch.tensor([node.shape is None for node in nodes])
        channels[without] = self.embed_channel.num_embeddings - 1
        spatial[without] = self.embed_spatial.num_embeddings - 1
        return torch.cat((channels, spatial), dim=1)

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        """x (N, hid) and indices (N, 4) to (N, hid)."""
        channels = self.embed_channel(indices[:, :2]).flatten(1)
        spatial = self.embed_spatial(indices[:, 2:]).flatten(1)
        return x + torch.cat((channels, spatial), dim=1)
