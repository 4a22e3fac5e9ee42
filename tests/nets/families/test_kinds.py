"""Families of what timm has: their graphs are its, and their networks can be trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ghn_fast.graph import Graph
from ghn_fast.graph.types import CHANNEL_NODE_TYPES
from ghn_fast.nets.families import coat, fastvit, levit, parts, pit, sample_member, star
from ghn_fast.nets.families.draw import batch_norm
from ghn_fast.nets.families.transformer import pre_norm_layer

NEW = ("coat", "fastvit", "levit", "pit", "star", "text", "xcit")


@pytest.mark.parametrize("family", NEW)
def test_a_network_at_its_own_start_can_be_trained(family: str) -> None:
    torch.manual_seed(0)
    member = sample_member("families/train", 0, 1, family=family, max_work=60, with_values=True)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    optimizer = torch.optim.AdamW(member.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        loss = F.cross_entropy(member.model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("family", NEW)
def test_a_network_runs_in_half_precision(family: str) -> None:
    member = sample_member("families/train", 0, 0, family=family, max_work=60, with_values=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = member.model(torch.randn(2, 3, 32, 32)).square().mean()
    loss.backward()
    assert loss.isfinite()


def tokens() -> list[nn.Module]:
    return [nn.Flatten(2), parts.Transpose(1, 2)]


def vit_tiny() -> list[nn.Module]:
    layers = (pre_norm_layer(192, 3, 768) for _ in range(12))
    first = *tokens(), parts.ClassFirst(192), parts.Positions(65, 192)
    return [nn.Conv2d(3, 192, 4, 4), *first, *layers, nn.LayerNorm(192), parts.Token(0)]


def coat_lite_tiny() -> list[nn.Module]:
    shapes = ((3, 64, 4, 8, 8), (64, 128, 2, 8, 8), (128, 256, 2, 8, 4), (256, 320, 2, 8, 4))
    return [*(coat.Stage(*shape, 2, shape[1] == 320) for shape in shapes), nn.LayerNorm(320)]


def starnet_s1() -> list[nn.Module]:
    layers: list[nn.Module] = [star.normed(3, 32, 3, 2), nn.ReLU6()]
    for inputs, outputs, depth in ((32, 24, 2), (24, 48, 2), (48, 96, 8), (96, 192, 3)):
        layers.append(star.normed(inputs, outputs, 3, 2))
        layers += [star.Star(outputs, 7, 4, nn.ReLU6) for _ in range(depth)]
    return [*layers, batch_norm(192), nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def pit_ti() -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 8, 4, 2), pit.MapPositions(64, 8), *tokens()]
    layers.append(parts.ClassFirst(64))
    for stage, depth in enumerate((2, 6, 4)):
        width = 64 * 2**stage
        layers += [pit.Halve(width // 2)] if stage else []
        layers += [pre_norm_layer(width, width // 32, 4 * width) for _ in range(depth)]
    return [*layers, parts.Token(0), nn.LayerNorm(256)]


def levit_128s() -> list[nn.Module]:
    act = nn.Hardswish
    layers = [*parts.halving_stem(4, 128, act), *tokens()]
    attention = partial(levit.Attention, size=16, activation=act)
    for inputs, width, depth, heads in ((0, 128, 2, 4), (128, 256, 3, 6), (256, 384, 4, 8)):
        if inputs:
            layers.append(attention(inputs, width, inputs // 16, wide=4, halves=True))
            layers.append(parts.Residual(levit.perceptron(width, 2, act)))
        for _ in range(depth):
            layers.append(parts.Residual(attention(width, width, heads, wide=2)))
            layers.append(parts.Residual(levit.perceptron(width, 2, act)))
    return [*layers, parts.TokenMean()]


def fastvit_t8() -> list[nn.Module]:
    layers = [fastvit.block(3, 48, 3, 2), fastvit.block(48, 48, 3, 2, 48), fastvit.block(48, 48, 1)]
    for stage, depth in enumerate((2, 2, 4, 2)):
        width = 48 * 2**stage
        layers += [fastvit.halve(width // 2), fastvit.block(width, width, 1)] if stage else []
        for _ in range(depth):
            layers += [fastvit.Mixer(width, 1e-5), fastvit.perceptron(width, 3, 1e-5)]
    return [*layers, *fastvit.last(384), nn.AdaptiveAvgPool2d(1), nn.Flatten()]


NETS: dict[str, tuple[Callable[[], list[nn.Module]], int, int]] = {
    "vit_tiny_patch16_224": (vit_tiny, 192, 32),
    "coat_lite_tiny": (coat_lite_tiny, 320, 32),
    "starnet_s1": (starnet_s1, 192, 32),
    "pit_ti_224": (pit_ti, 256, 32),
    "levit_128s": (levit_128s, 384, 32),
    "fastvit_t8": (fastvit_t8, 768, 64),
}
"""By the name that timm has for it: a network but for its head, its features, a size of images."""


@pytest.mark.parametrize("name", NETS)
def test_graphs_are_those_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    make, features, size = NETS[name]
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=10)
        head: nn.Module = nn.Linear(features, 10)
        if name == "levit_128s":
            head = parts.Sum(*(levit.head(features, 10) for _ in range(2)))
        ours = nn.Sequential(*make(), head)
    ours.expected_input_sz = size  # type: ignore[assignment]
    graphs = [Graph.from_model(model.eval(), types=CHANNEL_NODE_TYPES) for model in (ours, theirs)]
    first, second = ([node.type for node in graph.nodes] for graph in graphs)
    assert first == second
    assert torch.equal(graphs[0].edges, graphs[1].edges)
    # Of patches and positions the sizes are those of images.
    shapes, same = (
        [node.shape for node in graph.nodes if node.type != "pos_enc"][2:] for graph in graphs
    )
    assert shapes == same
