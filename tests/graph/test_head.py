"""The output layers: those that the first output comes from, if it has no positions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ghn_fast
from ghn_fast.graph import Graph, Node


def heads(model: nn.Module, *inputs: Tensor) -> list[str]:
    """The names of the last nodes of the output layers."""
    graph = Graph.from_model(model, inputs)
    return [graph.nodes[head].name for head in graph.heads]


def head(model: nn.Module, *inputs: Tensor) -> str | None:
    """That of the one output layer."""
    found = heads(model, *inputs)
    return found[0] if len(found) == 1 else None


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
        lambda m, x: m.a(x) @ m.b(x).T,
        lambda m, x: m.c(m.a(x)),
        lambda m, x: (x, m.a(m.b(x))),
        lambda m, x: m.a(x) + m.c(m.b(x)),
        lambda m, x: m.a(x) + m.b(m.a(x).relu()),
        lambda m, x: x + m.b(m.a(x)),
    ],
)
def test_an_output_that_is_not_of_layers_alone(run: Callable[..., object]) -> None:
    layers = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.LayerNorm(8)}
    assert heads(Run(run, **layers), FEATURES) == []


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.a(x) + m.b(x),
        lambda m, x: (m.a(x) + m.b(x.relu())) / 2,
        lambda m, x: 0.5 * m.b(x) + 0.5 * m.a(x),
    ],
)
def test_the_mean_of_several_layers_is_of_them_all(run: Callable[..., object]) -> None:
    """As that of networks with a head for distillation."""
    layers = {"a": nn.Linear(8, 10), "b": nn.Linear(8, 10)}
    model = Run(run, **layers)
    assert sorted(heads(model, FEATURES)) == ["a.bias", "b.bias"]
    _, report = ghn_fast.predict(model, example_inputs=FEATURES, return_report=True)
    assert {name: report.rules[f"{name}.weight"] for name in layers} == dict.fromkeys(
        layers, "class_weight"
    )
    assert all(report.rules[f"{name}.bias"] == "class_bias" for name in layers)


def test_graphs_from_elsewhere_end_in_their_classifier() -> None:
    """As those of DeepNets-1M do, of which nothing but nodes is known."""

    def graph(*nodes: Node) -> Graph:
        count = len(nodes) + 1
        edges = torch.stack((torch.arange(count - 1), torch.arange(1, count)), dim=1)
        return Graph((Node("input", "input"), *nodes), edges)

    weight, bias = Node("conv", "w", (7, 8), "w"), Node("bias", "b", (7,), "b")
    assert graph(weight, bias).heads == (2,)
    assert graph(weight).heads == ()
    assert graph(weight, Node("bias", "b", (8,), "b")).heads == ()
    assert graph(Node("conv", "w", (7, 8, 3, 3), "w"), bias).heads == ()
    assert graph(weight, bias, Node("glob_avg", "glob_avg")).heads == ()
