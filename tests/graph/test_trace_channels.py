"""Splits and shuffles of channels in graphs that show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.ops.misc import Permute

from ghn_fast.graph import CHANNEL_NODE_TYPES, LANGUAGE_NODE_TYPES, NODE_TYPES, Graph
from ghn_fast.graph.trace import tracer
from ghn_fast.nets import build_net, sample_net_args
from ghn_fast.nets.families.ghosts import Ghosts

IMAGE = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    """A convolution, something that moves its 8 channels, and two layers after it."""

    def __init__(self, move: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.move = nn.Conv2d(3, 8, 3, padding=1), move
        self.part, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.whole = nn.Conv2d(8, 8, 1)
        self.tokens, self.positions = nn.Linear(8, 24), nn.Linear(64, 64)
        self.head = nn.LazyLinear(10)
        self(IMAGE)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.move(self, self.stem(x).relu()).flatten(2).mean(2))


def joined(net: Net, parts: tuple[Tensor, ...]) -> Tensor:
    """One part as it is, the other through a convolution."""
    first, second = parts
    return torch.cat((first, net.part(second)), 1)


def quarters(net: Net, half: Tensor, rest: Tensor) -> Tensor:
    third, last = rest.relu().chunk(2, 1)
    return torch.cat((half, third, net.part(torch.cat((last, last), 1))), 1)


def partly_added(y: Tensor, x: Tensor) -> Tensor:
    return torch.cat((y[:, :4] + x[:, :4], y[:, 4:]), 1)


def shuffled(x: Tensor, groups: int = 2) -> Tensor:
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return x.view(batch, channels, height, width)


def attention(net: Net, x: Tensor) -> Tensor:
    """Of four heads of two channels, with queries, keys and values from one layer."""
    tokens = net.tokens(x.flatten(2).transpose(1, 2)).reshape(len(x), 64, 3, 4, 2)
    query, key, value = tokens.permute(2, 0, 3, 1, 4).unbind(0)
    mixed = (query @ key.mT).softmax(-1) @ value
    return mixed.transpose(1, 2).reshape(len(x), 64, 8).transpose(1, 2)


def windows(net: Net, x: Tensor) -> Tensor:
    """Swin's windows of 4 x 4 and back, in the layout (B, H, W, C)."""
    x = x.permute(0, 2, 3, 1).view(len(x), 2, 4, 2, 4, 8).permute(0, 1, 3, 2, 4, 5)
    x = F.layer_norm(x.reshape(-1, 16, 8), (8,)).view(-1, 2, 2, 4, 4, 8)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 8, 8, 8).permute(0, 3, 1, 2)


def gated(net: Net, x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=1)
    return net.part(value * gate.sigmoid())


def gated_apart(net: Net, x: Tensor) -> Tensor:
    """A gate that mixes positions, as gMLP's."""
    value, gate = x.flatten(2).chunk(2, dim=1)
    return value * net.positions(gate)


def merged(net: Net, x: Tensor) -> Tensor:
    """Swin's merging of 2 x 2 positions, which become channels."""
    x = x.permute(0, 2, 3, 1).reshape(len(x), 4, 2, 4, 2, 8).permute(0, 1, 3, 2, 4, 5)
    return x.flatten(3).permute(0, 3, 1, 2)


def in_layout(move: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[Net, Tensor], Tensor]:
    """Moves along the last dimension of (B, H, W, C)."""

    def moves(net: Net, x: Tensor) -> Tensor:
        parts = move(x.permute(0, 2, 3, 1).contiguous() * 2)
        return joined(net, tuple(part.permute(0, 3, 1, 2) for part in parts))

    return moves


MOVES: dict[str, tuple[Callable[[Net, Tensor], Tensor], dict[str, int]]] = {
    "chunk": (lambda net, x: joined(net, x.chunk(2, dim=1)), {"split": 1}),
    "split": (lambda net, x: joined(net, torch.split(x, [4, 4], 1)), {"split": 1}),
    "slices": (lambda net, x: joined(net, (x[:, :4], x[:, 4:])), {"split": 1}),
    "every second": (lambda net, x: joined(net, (x[:, ::2], x[:, 1::2])), {"split": 1}),
    "narrow": (lambda net, x: joined(net, (x.narrow(1, 0, 4), x.narrow(1, 4, 4))), {"split": 1}),
    "unbind": (lambda net, x: joined(net, x.unflatten(1, (2, 4)).unbind(1)), {"split": 1}),
    "last": (in_layout(lambda x: x.chunk(2, -1)), {"split": 1}),
    "halves of halves": (
        lambda net, x: joined(net, (x[:, :4], torch.cat(x[:, 4:].relu().chunk(2, 1), 1))),
        {"split": 1},
    ),
    "parts of a part": (lambda net, x: quarters(net, *x.chunk(2, 1)), {"split": 2}),
    "partial residual": (lambda net, x: partly_added(net.whole(x), x), {"split": 1}),
    "shuffle": (lambda net, x: net.whole(shuffled(x)), {"shuffle": 1}),
    "shuffle of a shuffle": (lambda net, x: shuffled(shuffled(x)), {"shuffle": 2}),
    "nn.ChannelShuffle": (lambda net, x: net.whole(nn.ChannelShuffle(4)(x)), {"shuffle": 1}),
    "nn.PixelShuffle": (lambda net, x: F.pixel_shuffle(x, 2), {"shuffle": 1}),
    "shuffle of heads": (
        lambda net, x: net.positions(
            x.flatten(2).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        ),
        {"shuffle": 1},
    ),
    "unit": (lambda net, x: shuffled(joined(net, x.chunk(2, 1))), {"split": 1, "shuffle": 1}),
    "gMLP": (gated_apart, {"split": 1}),
    # what is none
    "gate": (gated, {}),
    "attention": (attention, {}),
    "windows": (windows, {}),
    "merging": (merged, {}),
    "layout": (lambda net, x: Permute([0, 3, 1, 2])(Permute([0, 2, 3, 1])(x)), {}),
    "positions": (lambda net, x: torch.cat((x[:, :, :4], net.whole(x[:, :, 4:])), 2), {}),
    "all channels": (lambda net, x: net.whole(x) + x[:, :8], {}),
    "groups and back": (lambda net, x: net.whole(x.unflatten(1, (2, 4)).flatten(1, 2)), {}),
    "flattened": (lambda net, x: x.flatten(1)[:, :, None], {}),
}


def moved(graph: Graph) -> dict[str, int]:
    found = Counter(node.type for node in graph.nodes)
    return {name: found[name] for name in CHANNEL_NODE_TYPES[len(NODE_TYPES) :] if found[name]}


@pytest.mark.parametrize("name", MOVES)
def test_moves(name: str) -> None:
    move, expected = MOVES[name]
    net, plain = Net(move), Graph.from_model(Net(move), IMAGE)
    graph = Graph.from_model(net, IMAGE, CHANNEL_NODE_TYPES)
    assert moved(graph) == expected
    assert moved(plain) == {}
    assert graph.num_nodes == plain.num_nodes + sum(expected.values())
    if not expected:
        assert graph.digest() == plain.digest()


def test_shufflenet_shows_its_units() -> None:
    with Ghosts(seed=0):
        net = models.shufflenet_v2_x1_0().eval()
    plain, graph = Graph.from_model(net), Graph.from_model(net, types=CHANNEL_NODE_TYPES)
    assert moved(graph) == {"split": 13, "shuffle": 16}  # 3 of its 16 units halve the map instead
    assert (plain.num_nodes, graph.num_nodes) == (133, 162)
    assert graph.node_types.max() == CHANNEL_NODE_TYPES.index("shuffle")
    # A unit: its input is split; one half goes through three convolutions, to be joined with the
    # other; the result is shuffled.
    names = [node.name for node in graph.nodes]
    start = names.index("stage2.1.branch2.0.weight") - 1
    unit = [node.type for node in graph.nodes[start : start + 9]]
    layers = ["conv", "bn", "sep_conv", "bn", "conv", "bn"]
    assert unit == ["split", *layers, "concat", "shuffle"]
    edges = graph.edges.tolist()
    assert [start, start + 1] in edges
    assert [start, start + 7] in edges
    assert [source for source, target in edges if target == start + 8] == [start + 7]


@pytest.mark.parametrize("name", ["swin_t", "vit_b_16", "convnext_tiny", "densenet121"])
def test_what_moves_no_channels_has_the_graph_that_it_had(name: str) -> None:
    with Ghosts(seed=0):
        net = models.get_model(name).eval()
    assert (
        Graph.from_model(net, types=CHANNEL_NODE_TYPES).digest() == Graph.from_model(net).digest()
    )


@pytest.mark.parametrize("index", range(8))
def test_networks_of_deepnets_have_the_graphs_that_they_had(index: int) -> None:
    net = build_net(sample_net_args("val", 0, index), 10, False)
    assert (
        Graph.from_model(net, types=CHANNEL_NODE_TYPES).digest() == Graph.from_model(net).digest()
    )


@pytest.mark.parametrize("types", [NODE_TYPES, LANGUAGE_NODE_TYPES])
def test_other_graphs_do_not_look_for_them(
    types: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net(MOVES["unit"][0])
    expected = Graph.from_model(net, IMAGE, types).digest()
    monkeypatch.setattr(tracer, "drop_idle_splits", None)
    assert Graph.from_model(net, IMAGE, types).digest() == expected


@pytest.mark.parametrize("name", ["unit", "attention", "partial residual", "flattened"])
def test_run_for_real_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is scripted, whose operations are seen one by one."""
    net = Net(MOVES[name][0])
    expected = Graph.from_model(net, IMAGE, CHANNEL_NODE_TYPES).digest()
    traced = torch.jit.trace(net, IMAGE)
    assert Graph.from_model(traced, IMAGE, CHANNEL_NODE_TYPES).digest() == expected
    run = tracer._run
    monkeypatch.setattr(tracer, "_run", lambda call, training, execute: run(call, training, True))
    assert Graph.from_model(net, IMAGE, CHANNEL_NODE_TYPES).digest() == expected
