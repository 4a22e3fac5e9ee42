"""The gated graph network of GHN-1 and GHN-2."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from ghn_fast.ghn.mlp import MLP
from ghn_fast.ops.gated_gnn import gated_gnn


class GatedGNN(nn.Module):
    """Message passing along the graph, forward and backward (arXiv 2110.13100, eq. 3 and 4)."""

    def __init__(self, hid: int, ve: bool) -> None:
        super().__init__()
        self.mlp = MLP(hid, (hid // 2 if ve else hid, hid))
        if ve:
            self.mlp_ve = MLP(hid, (hid // 2, hid))
        self.ve = ve
        self.gru = nn.GRUCell(hid, hid)

    def forward(self, x: Tensor, distances: Tensor, num_nodes: Tensor) -> Tensor:
        """x (sum N, hid), distances (sum N*N,) uint8, num_nodes (B,) int64 to (sum N, hid)."""
        gru = self.gru
        return gated_gnn(
            x,
            distances,
            num_nodes,
            mlp=_weights(self.mlp),
            mlp_ve=_weights(self.mlp_ve) if self.ve else None,
            gru=(gru.weight_ih, gru.weight_hh, gru.bias_ih, gru.bias_hh),
        )


def _weights(mlp: MLP) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, second = cast(nn.Linear, mlp.fc[0]), cast(nn.Linear, mlp.fc[2])
    return first.weight, first.bias, second.weight, second.bias
