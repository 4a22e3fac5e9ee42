"""The low-rank decoder of LoGAH (arXiv 2405.16287, section 3.2): matrices of full width."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.ghn.mlp import MLP


class LowRankDecoder(nn.Module):
    """Decodes an embedding to two factors of K rows; a weight is the product of some of them.

    Where a GHN-3 repeats a block of 64 x 64 channels, these matrices have rank ``rank`` and no
    two equal rows. Only the rows that a weight needs are computed.

    Args:
        hid: width of the node embeddings.
        rank: of the products, r.
        most_rows: of each factor, K; the largest number of channels times kernel size.
    """

    def __init__(self, hid: int, rank: int, most_rows: int) -> None:
        super().__init__()
        self.rank, self.most_rows = rank, most_rows
        sizes = (4 * hid, 8 * hid, 2 * rank * rank)
        self.mlp = MLP(hid, sizes, last_relu=False)
        self.l2 = nn.Linear(rank, most_rows)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """x (n, hid) to weights (n, out, in, height, width) of at most K rows and columns.

        Args:
            x: of the weights' nodes.
            size: (out, in, height, width); out * height and in * width are at most K.
        """
        out, channels, height, width = size
        left, right = self.factors(x, out * height, channels * width)
        product = left @ right.transpose(1, 2)
        return product.view(len(x), out, height, channels, width).transpose(2, 3)

    def factors(self, x: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
        """(n, left, rank) and (n, right, rank): the first rows of each factor."""
        seeds = F.relu(self.mlp(x)).view(len(x), 2 * self.rank, self.rank)
        first, second = seeds.split(self.rank, dim=1)
        return self._rows(first, left), self._rows(second, right)

    def _rows(self, seeds: Tensor, count: int) -> Tensor:
        """Seeds (n, rank, rank) to the first rows (n, count, rank) of their factor.

        Each seed makes K numbers, and these are read on, seed after seed, as rows of a factor.
        """
        numbers = count * self.rank
        needed = math.ceil(numbers / self.most_rows)
        made = numbers if needed == 1 else self.most_rows
        values = F.linear(seeds[:, :needed], self.l2.weight[:made], self.l2.bias[:made])
        return values.flatten(1)[:, :numbers].view(len(seeds), count, self.rank)


def rounded_channels(channels: int, most: int) -> int:
    """How many channels a number of them counts as: at most ``most``, thirds made fourths.

    Only in vectors does it matter, whose bias begins where that many weights end.
    """
    channels = min(channels, most)
    if channels % 3 == 0:
        channels = channels // 3 * 4
    return most if 2 * channels >= most else channels


def weight_and_bias(decoder: LowRankDecoder, x: Tensor, channels: int) -> Tensor:
    """x (n, hid) to vectors (n, 2, channels): a column of the products, the weight's part first.

    Args:
        decoder: of the vectors.
        x: of the nodes.
        channels: as :func:`rounded_channels` counts them.
    """
    left, right = decoder.factors(x, 2 * channels, 1)
    return torch.bmm(left, right.transpose(1, 2)).view(len(x), 2, channels)
