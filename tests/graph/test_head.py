"""The output layer: that which the first output comes from, if it has no positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.graph import Graph, Node


def head(model: nn.Module, *inputs: Tensor) -> str | None:
    """The name of the last node of the output layer."""
    graph = Graph.from_model(model, inputs)
    return None if graph.head is None else graph.nodes[graph.head].name


class Run(nn.Module):
    """Layers, and what is done with them."""

    def __init__(self, run: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> object:
        return self.run(self, *inputs)


FEATURES, IMAGES, TOKENS = torch.zeros(2, 8), torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 8)


@pytest.mark.parametrize("bias", [True, False])
def test_one_value_a_class(bias: bool) -> None:
    layer = nn.Linear(8, 7, bias=bias)
    assert head(nn.Sequential(nn.Linear(8, 8), layer), FEATURES) == (
        "1.bias" if bias else "1.weight"
    )


@pytest.mark.parametrize("kernel", [1, 3, 8])
def test_a_convolution_with_positions_is_none(kernel: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 1, kernel))
    assert head(model, IMAGES) == ("1.bias" if kernel == 8 else None)


def test_positions_that_are_averaged_are_none() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 7, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    assert head(model, IMAGES) == "1.bias"


def test_a_sequence_has_positions_whichever_dimension_comes_first() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 7))
    assert head(model, TOKENS) is None
    assert head(Run(lambda m, x: m.a(x).transpose(0, 1), a=nn.Linear(8, 7)), TOKENS) is None
    assert head(Run(lambda m, x: m.a(x).flatten(0, 1), a=nn.Linear(8, 7)), TOKENS) is None
    assert head(Run(lambda m, x: m.a(x)[:, 0], a=nn.Linear(8, 7)), TOKENS) == "a.bias"


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: (m.a(x), m.b(x)),
        lambda m, x: (m.b(x), m.a(x))[::-1],
        lambda m, x: {"logits": m.a(x), "features": m.b(x)},
        lambda m, x: [m.a(x).softmax(-1), m.b(x)],
        lambda m, x: m.a(x).squeeze(),
    ],
)
def test_the_first_output_decides(run: Callable[..., object]) -> None:
    assert head(Run(run, a=nn.Linear(8, 7), b=nn.Linear(8, 7)), FEATURES) == "a.bias"


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.a(x) + m.b(x),
        lambda m, x: m.a(x) @ m.b(x).T,
        lambda m, x: m.c(m.a(x)),
        lambda m, x: (x, m.a(m.b(x))),
    ],
)
def test_an_output_of_several_layers_or_of_none(run: Callable[..., object]) -> None:
    layers = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.LayerNorm(8)}
    assert head(Run(run, **layers), FEATURES) is None


def test_graphs_from_elsewhere_end_in_their_classifier() -> None:
    """As those of DeepNets-1M do, of which nothing but nodes is known."""

    def graph(*nodes: Node) -> Graph:
        count = len(nodes) + 1
        edges = torch.stack((torch.arange(count - 1), torch.arange(1, count)), dim=1)
        return Graph((Node("input", "input"), *nodes), edges)

    weight, bias = Node("conv", "w", (7, 8), "w"), Node("bias", "b", (7,), "b")
    assert graph(weight, bias).head == 2
    assert graph(weight).head is None
    assert graph(weight, Node("bias", "b", (8,), "b")).head is None
    assert graph(Node("conv", "w", (7, 8, 3, 3), "w"), bias).head is None
    assert graph(weight, bias, Node("glob_avg", "glob_avg")).head is None
