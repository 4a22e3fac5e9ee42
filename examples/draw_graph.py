"""A ResNet-18 as the graph that a GHN reads: draw_graph.png."""

from __future__ import annotations

import torchvision

import ghn_fast
from ghn_fast.graph.draw import draw

graph = ghn_fast.Graph.from_model(torchvision.models.resnet18(num_classes=10))
draw(graph, "draw_graph.png", title="resnet18")
print(f"{len(graph.nodes)} nodes, {len(graph.edges)} edges, depth {int(graph.distances.max())}")
