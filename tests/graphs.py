"""Random graphs for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from ghn_fast.graph import Graph, Node


def random_edges(num_nodes: int, generator: torch.Generator, density: float = 0.1) -> Tensor:
    """(E, 2): a path through all nodes, and some edges that skip ahead."""
    skips = torch.rand(num_nodes, num_nodes, generator=generator) < density
    adjacency = skips.triu(diagonal=1) | torch.ones(num_nodes - 1).diag(1).bool()
    return adjacency.nonzero()


def small_classifier(channels: int = 8, num_classes: int = 10) -> Graph:
    """The graph of conv, bn, global pooling and a linear layer, written by hand."""
    nodes = (
        Node("input", "input"),
        Node("conv", "conv.weight", (channels, 3, 3, 3), "conv.weight"),
        Node("bn", "bn.weight", (channels,), "bn.weight", "bn.bias"),
        Node("glob_avg", "glob_avg"),
        Node("conv", "fc.weight", (num_classes, channels), "fc.weight"),
        Node("bias", "fc.bias", (num_classes,), "fc.bias"),
    )
    return Graph(nodes, torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]))


class SmallClassifier(torch.nn.Module):
    """The model that :func:`small_classifier` is the graph of."""

    def __init__(self, channels: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn = torch.nn.BatchNorm2d(channels)
        self.fc = torch.nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.bn(self.conv(images)))
        return self.fc(features.mean(dim=(2, 3)))


class NamedOutputs(SmallClassifier):
    """The same, whose logits have a name."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": super().forward(images)}
