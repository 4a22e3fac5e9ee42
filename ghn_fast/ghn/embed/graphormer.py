"""The Graphormer of GHN-3: a transformer over the nodes that sees the graph in its attention.

"Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?" (arXiv 2303.04143,
section 3.2), after Graphormer (arXiv 2106.05234). Names of parameters are those of the published
checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast._system.device import to_device
from ghn_fast.graph import GraphBatch
from ghn_fast.ops.shortest_paths import matrices

MAX_DEGREE = 100
MAX_INPUT_DISTANCE = 1000
# Distances are bytes; the first two rows of their table are unused in the published checkpoints.
_DISTANCE_OFFSET = 2
_DISTANCES = 255 + _DISTANCE_OFFSET


class DistanceTable(nn.Module):
    """The learned embeddings of distances, one for each direction's value."""

    def __init__(self, hid: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(_DISTANCES, hid)


class Attention(nn.Module):
    """Multi-head self-attention with a bias for every pair of nodes.

    The bias is made in the first layer, which alone has the parameters for it.
    """

    def __init__(self, hid: int, heads: int, first: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(hid, 3 * hid, bias=False)
        self.to_out = nn.Sequential(nn.Linear(hid, hid))
        if first:
            self.edge_embed = DistanceTable(hid)
            self.proj_e = nn.Sequential(nn.Linear(2 * hid, hid), nn.ReLU(), nn.Linear(hid, heads))

    def forward(self, x: Tensor, padding: Padding, bias: Tensor) -> Tensor:
        """x (sum N, hid) and bias (B, heads, N, N) to (sum N, hid)."""
        qkv = padding.pad(self.to_qkv(x))
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heard = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.to_out(padding.unpad(heard.transpose(1, 2).flatten(2)))

    def bias_table(self, max_distance: int) -> Tensor:
        """(2 * max_distance + 1, heads): the bias of every pair of distances there can be.

        In a graph without cycles one of the two directions has no path, so that there are about a
        hundred pairs of (forward, backward) distance, however many pairs of nodes there are.
        Row 0 is for no path, row d for a path of length d forward, row max_distance + d backward.
        """
        embedding = self.edge_embed.embed.weight
        none = embedding[_DISTANCE_OFFSET].expand(max_distance, -1)
        some = embedding[_DISTANCE_OFFSET + 1 : _DISTANCE_OFFSET + 1 + max_distance]
        forward, backward = torch.cat((some, none), dim=1), torch.cat((none, some), dim=1)
        neither = embedding[_DISTANCE_OFFSET].repeat(2).unsqueeze(0)
        table: Tensor = self.proj_e(torch.cat((neither, forward, backward)))
        return table


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, hid: int) -> None:
        super().__init__()
        # The identities are where the published modules have dropout, which numbers the layers.
        self.net = nn.Sequential(
            nn.Linear(hid, 4 * hid), nn.GELU(), nn.Identity(), nn.Linear(4 * hid, hid)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class GraphormerLayer(nn.Module):
    """A pre-norm transformer layer over the nodes of each graph."""

    def __init__(self, hid: int, heads: int, first: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(hid)
        self.attn = Attention(hid, heads, first)
        self.ln2 = nn.LayerNorm(hid)
        self.ff = FeedForward(hid)

    def forward(self, x: Tensor, padding: Padding, bias: Tensor) -> Tensor:
        """x (sum N, hid) and bias (B, heads, N, N) to (sum N, hid)."""
        x = x + self.attn(self.ln1(x), padding, bias)
        return x + self.ff(self.ln2(x))


class Graphormer(nn.ModuleList):
    """Graphormer layers; the first makes the attention bias that all of them use."""

    def __init__(self, hid: int, layers: int, heads: int) -> None:
        super().__init__(GraphormerLayer(hid, heads, first=i == 0) for i in range(layers))

    def forward(self, x: Tensor, batch: GraphBatch) -> Tensor:
        """x (sum N, hid), with the batch on its device, to (sum N, hid)."""
        padding = Padding.of(batch, x.device)
        bias = self._bias(batch, padding)
        for layer in self:
            x = layer(x, padding, bias)
        return x

    def _bias(self, batch: GraphBatch, padding: Padding) -> Tensor:
        """(B, heads, N, N): what is added to the attention of node u to node v."""
        max_distance = max(graph.max_distance for graph in batch)
        first: Attention = self[0].attn  # type: ignore[assignment]
        table = first.bias_table(max_distance)
        bias = F.embedding(pair_indices(batch, padding, max_distance), table)
        bias = bias.permute(0, 3, 1, 2).contiguous()
        if padding.index is None:
            return bias
        return bias.masked_fill(~padding.valid[:, None, None, :], float("-inf"))


def pair_indices(batch: GraphBatch, padding: Padding, max_distance: int) -> Tensor:
    """(B, N, N) int64: each pair of nodes' row of the bias table."""
    forward = padding.matrices(batch).long()
    backward = forward.transpose(1, 2)
    return forward + torch.where(backward > 0, backward + max_distance, 0)


def centrality(batch: GraphBatch) -> tuple[Tensor, Tensor, Tensor]:
    """In-degree, out-degree and distance from the input of every node, each (sum N,) int64."""
    degrees_in, degrees_out, depths = [], [], []
    for matrix in matrices(batch.distances, batch.num_nodes.tolist()):
        direct = matrix == 1
        degrees_in.append(direct.sum(dim=0))
        degrees_out.append(direct.sum(dim=1))
        depths.append(matrix[0].long())
    return (
        torch.cat(degrees_in).clamp(max=MAX_DEGREE),
        torch.cat(degrees_out).clamp(max=MAX_DEGREE),
        torch.cat(depths).clamp(max=MAX_INPUT_DISTANCE),
    )


@dataclass(frozen=True)
class Padding:
    """Graphs of different sizes side by side, where attention needs them so.

    Attributes:
        shape: (B, N) with N the nodes of the largest graph.
        index: (sum N,) where each node goes in the flattened (B * N,); None if nothing is padded.
        valid: (B, N) bool, which places are nodes.
    """

    shape: tuple[int, int]
    index: Tensor | None
    valid: Tensor

    @classmethod
    def of(cls, batch: GraphBatch, device: torch.device) -> Padding:
        shape = (len(batch), int(batch.num_nodes.max()))
        valid = torch.arange(shape[1], device="cpu") < batch.num_nodes[:, None]
        index = None if bool(valid.all()) else valid.flatten().nonzero().squeeze(1)
        placed = None if index is None else to_device(index, device)
        return cls(shape, placed, to_device(valid, device))

    def pad(self, x: Tensor) -> Tensor:
        """(sum N, C) to (B, N, C), zero where there is no node."""
        if self.index is not None:
            rows = self.shape[0] * self.shape[1]
            x = x.new_zeros(rows, x.shape[1]).index_copy(0, self.index, x)
        return x.view(*self.shape, -1)

    def unpad(self, x: Tensor) -> Tensor:
        """(B, N, C) to (sum N, C)."""
        x = x.flatten(0, 1)
        return x if self.index is None else x.index_select(0, self.index)

    def matrices(self, batch: GraphBatch) -> Tensor:
        """(B, N, N) uint8: the graphs' distances, zero where there is no node."""
        if self.index is None:
            return batch.distances.view(self.shape[0], self.shape[1], self.shape[1])
        padded = batch.distances.new_zeros(self.shape[0], self.shape[1], self.shape[1])
        own = matrices(batch.distances, batch.num_nodes.tolist())
        for place, matrix in zip(padded, own, strict=True):
            place[: len(matrix), : len(matrix)] = matrix
        return padded
