"""Small layers that several parts of a GHN share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with a ReLU after each, or after each but the last."""

    def __init__(self, in_features: int, sizes: Sequence[int], last_relu: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for size in sizes:
            layers += [nn.Linear(in_features, size), nn.ReLU()]
            in_features = size
        # The name and the numbering of the published checkpoints.
        self.fc = nn.Sequential(*(layers if last_relu else layers[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)
