"""Linear layers over flattened maps get what the convolution that computes the same gets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ghn_fast
from ghn_fast.checkpoint import from_pretrained
from ghn_fast.ghn import GHN, ghn2, ghn3
from ghn_fast.graph import Graph, GraphBatch
from ghn_fast.nets import build_net, graph_of, sample_net_args


class Plain(nn.Module):
    """A small VGG; the layer behind its map of 80 x 3 x 3 is linear or a convolution."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 80, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(3)
        self.hidden = nn.Linear(720, 96) if linear else nn.Conv2d(80, 96, 3)
        self.last = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x).relu())
        if isinstance(self.hidden, nn.Linear):
            x = x.flatten(1)
        return self.last(self.hidden(x).flatten(1).relu())


@pytest.fixture(params=["ghn2", "ghn3"])
def ghn(request: pytest.FixtureRequest) -> GHN:
    torch.manual_seed(0)
    made = ghn2() if request.param == "ghn2" else ghn3(num_classes=10)
    return with_flat_kernels(made).eval()


def with_flat_kernels(ghn: GHN, on: bool = True) -> GHN:
    ghn.config = replace(ghn.config, flat_kernels=on)
    return ghn


IMAGE = torch.zeros(2, 3, 8, 8)


def test_predicted_as_the_convolution(ghn: GHN) -> None:
    linear = ghn_fast.predict(Plain(True), ghn, IMAGE)
    convolution = ghn_fast.predict(Plain(False), ghn, IMAGE)
    for name, expected in convolution.named_parameters():
        assert torch.equal(linear.get_parameter(name).flatten(), expected.flatten()), name
    off = ghn_fast.predict(Plain(True), with_flat_kernels(ghn, False), IMAGE)
    assert not torch.allclose(off.hidden.weight.flatten(), convolution.hidden.weight.flatten())


def test_in_training_as_in_prediction(ghn: GHN) -> None:
    written = ghn_fast.predict(Plain(True), ghn, IMAGE)
    attached, leaved = Plain(True), Plain(True)
    graph = Graph.from_model(attached, IMAGE)
    ghn.train()(attached, graph)
    leaves = ghn.attach_leaves([leaved], [graph])
    x = torch.randn(4, 3, 8, 8)
    gradients = []
    for model in (attached, leaved):
        for name, expected in written.named_parameters():
            path, _, last = name.rpartition(".")
            found = model.get_submodule(path)._parameters[last]
            assert found is not None
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, atol=1e-6), name
        ghn.zero_grad()
        model(x).square().mean().backward()
        if model is leaved:
            leaves.backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in ghn.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("side", "share"), [(4, 1.0), (8, 1.0), (16, 1 / 4), (24, 1 / 9)])
def test_heads_over_large_maps_are_those_of_averaged_ones(
    ghn: GHN, side: int, share: float
) -> None:
    """Else their logits would grow with the map."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Flatten(), nn.Linear(6 * side**2, 10))
    image = torch.zeros(2, 3, side, side)
    weight = ghn_fast.predict(model, ghn, image)[2].weight.detach().view(10, 6, side, side)
    assert torch.equal(weight, weight[..., :1, :1].expand_as(weight))
    graph = ghn.graph_of(model, example_inputs=image)
    (head,) = (n for n, node in enumerate(graph.nodes) if node.parameter == "2.weight")
    decoded = ghn.decoder.class_weight(ghn.node_embeddings(GraphBatch([graph]))[[head]], 6)[0]
    largest = min(side, 8)
    scale = share * math.sqrt(2 / (6 * largest**2))
    torch.testing.assert_close(weight[..., 0, 0], scale * decoded.detach())


def test_heads_of_deepnets() -> None:
    index, net_args = next(
        (i, args)
        for i in range(200)
        if not (args := sample_net_args("bnfree", 0, i))["glob_avg"] and args["fc_layers"] > 1
    )
    net_args["C"] = net_args["fc_dim"] = 16
    direct = graph_of(net_args, index=index)
    assert direct.nodes == Graph.from_model(build_net(net_args, 10, False)).nodes
    flat = next(node for node in direct.nodes if node.kernel is not None)
    assert flat.name == "classifier.0.weight"
    out, channels, height, width = flat.over_map().shape or ()
    assert out == 16
    assert height == width > 1
    assert (16, channels * height * width) == flat.shape


def test_a_checkpoint_knows(tmp_path: Path) -> None:
    for on in (True, False):
        with_flat_kernels(ghn2(), on).save_pretrained(tmp_path / str(on))
        assert from_pretrained(tmp_path / str(on)).config.flat_kernels is on
    assert not ghn2().config.flat_kernels
    assert not ghn3().config.flat_kernels
