"""From node embeddings to parameter blocks (arXiv 2110.13100, section 2 and appendix B.1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.ghn.decode.corner_products import corner_products
from ghn_fast.ghn.mlp import MLP

BlockSize = tuple[int, ...]
"""(out, in, height, width)"""


class ConvDecoder(nn.Module):
    """Decodes embeddings to 4-D blocks of weights, only where they are needed.

    A linear layer makes 4·hid features for each of the K x K positions; two 1x1 convolutions turn
    them into an out x in block at each position. A block smaller than ``max_shape`` is the corner
    of the whole one, so only its positions and channels are computed.
    """

    def __init__(self, hid: int, max_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.max_shape = tuple(max_shape)
        out, channels, height, width = self.max_shape
        self.fc = nn.Sequential(nn.Linear(hid, 4 * hid * height * width), nn.ReLU())
        self.conv = nn.Sequential(
            self._pointwise_layer(4 * hid, 8 * hid),
            nn.ReLU(),
            self._pointwise_layer(8 * hid, out * channels),
        )
        self.class_layer_predictor = nn.Sequential(
            nn.ReLU(), self._pointwise_layer(out, num_classes)
        )

    def _pointwise_layer(self, in_features: int, out_features: int) -> nn.Module:
        """The published checkpoints of GHN-1 and GHN-2 hold these layers as convolutions."""
        return nn.Conv2d(in_features, out_features, 1)

    def _span(self, size: int, most: int) -> slice:
        """Which of ``most`` positions along a side a block of this size takes."""
        return slice(size)

    def forward(self, x: Tensor, block: Sequence[int]) -> Tensor:
        """x (n, hid) to the corner (n, out, in, height, width) of its blocks."""
        out, channels, height, width = block
        features = self._positions(x, height, width)
        features = F.relu(_pointwise(_layer(self.conv, 0), features))
        weight, bias = self._channels(out, channels)
        values = F.linear(features, weight, bias)
        return values.view(len(x), height, width, out, channels).permute(0, 3, 4, 1, 2)

    def kernels(self, x: Tensor, nodes: Mapping[BlockSize, Tensor]) -> list[Tensor]:
        """Blocks of several sizes in few matrix products.

        The products of the two layers up to the channels are shared by all blocks, those of the
        first by all blocks of equal height and width, those of the last by all of equal channels.

        Args:
            x: (N, hid), all embeddings.
            nodes: for each size the rows of x that have such a block, int64.

        Returns:
            For each size blocks (n, out, in, height, width).
        """
        sizes = sorted(nodes)  # those of equal channels next to each other
        features = F.relu(_pointwise(_layer(self.conv, 0), self._features(x, nodes, sizes)))
        rows = [len(nodes[size]) * math.prod(size[2:]) for size in sizes]
        last = _layer(self.conv, 2)
        weight = last.weight.view(*self.max_shape[:2], -1)
        values = corner_products(
            features, weight, last.bias.view(weight.shape[:2]), [size[:2] for size in sizes], rows
        )
        blocks = {
            size: value.unflatten(0, (-1, *size[2:])).permute(0, 3, 4, 1, 2)
            for size, value in zip(sizes, values, strict=True)
        }
        return [blocks[size] for size in nodes]

    def _features(
        self, x: Tensor, nodes: Mapping[BlockSize, Tensor], sizes: Sequence[BlockSize]
    ) -> Tensor:
        """(positions of all blocks, 4 * hid): the first layer, in the order of the sizes."""
        found: dict[BlockSize, Tensor] = {}
        by_space = sorted(sizes, key=lambda size: size[2:])
        for space, group in itertools.groupby(by_space, lambda size: size[2:]):
            members = list(group)
            rows = [nodes[size] for size in members]
            positions = self._positions(x[torch.cat(rows)], space[0], space[1])
            found.update(zip(members, positions.split([len(row) for row in rows]), strict=True))
        return torch.cat([found[size].flatten(0, 1) for size in sizes])

    def class_weight(self, x: Tensor, channels: int) -> Tensor:
        """x (n, hid) to classification layers (n, num_classes, channels)."""
        block = self(x, (self.max_shape[0], channels, 1, 1)).flatten(2)
        predictor = _layer(self.class_layer_predictor, 1)
        return _pointwise(predictor, F.relu(block).transpose(1, 2)).transpose(1, 2)

    def _positions(self, x: Tensor, height: int, width: int) -> Tensor:
        """(n, height * width, 4 * hid): the first layer at the corner's positions."""
        layer = _layer(self.fc, 0)
        shape = (-1, *self.max_shape[2:])
        rows = self._span(height, self.max_shape[2])
        columns = self._span(width, self.max_shape[3])
        weight = layer.weight.view(*shape, layer.in_features)[:, rows, columns].flatten(0, 2)
        bias = layer.bias.view(shape)[:, rows, columns].flatten()
        features = F.relu(F.linear(x, weight, bias))
        return features.view(len(x), -1, height * width).transpose(1, 2)

    def _channels(self, out: int, channels: int) -> tuple[Tensor, Tensor]:
        """The last layer's weight and bias for a corner of the channels."""
        layer = _layer(self.conv, 2)
        shape = self.max_shape[:2]
        weight = layer.weight.view(*shape, -1)[:out, :channels].flatten(0, 1)
        return weight, layer.bias.view(shape)[:out, :channels].flatten()


class MLPDecoder(nn.Module):
    """Decodes embeddings to whole blocks by an MLP: the baseline decoder of the paper."""

    def __init__(self, hid: int, max_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.max_shape = tuple(max_shape)
        self.num_classes = num_classes
        self.mlp = MLP(hid, (2 * hid, math.prod(self.max_shape)), last_relu=False)
        self.class_layer_predictor = nn.Sequential(
            nn.ReLU(), nn.Linear(2 * hid, num_classes * self.max_shape[0])
        )

    def forward(self, x: Tensor, block: Sequence[int]) -> Tensor:
        """x (n, hid) to the corner (n, out, in, height, width) of its blocks."""
        out, channels, height, width = block
        whole = self.mlp(x).view(-1, *self.max_shape)
        return whole[:, :out, :channels, :height, :width]

    def kernels(self, x: Tensor, nodes: Mapping[BlockSize, Tensor]) -> list[Tensor]:
        """See :meth:`ConvDecoder.kernels`."""
        return [self(x[rows], size) for size, rows in nodes.items()]

    def class_weight(self, x: Tensor, channels: int) -> Tensor:
        """x (n, hid) to classification layers (n, num_classes, channels)."""
        weight = self.class_layer_predictor(self.mlp.fc[0](x))
        return weight.view(len(x), self.num_classes, self.max_shape[1])[:, :, :channels]


def _layer(layers: nn.Sequential, index: int) -> nn.Linear:
    """A layer of weight and bias; a 1x1 convolution has them as well."""
    return cast(nn.Linear, layers[index])


def _pointwise(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer or 1x1 convolution over the last dimension."""
    return F.linear(x, layer.weight.flatten(1), layer.bias)
