from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.checkpoint import CheckpointError, from_pretrained, save
from ghn_fast.ghn import GHN as CoreGHN
from ghn_fast.ghn import GHNConfig, ghn3
from ghn_fast.graph import Graph as CoreGraph
from ghn_fast.ppuda.deepnets1m.graph import Graph, GraphBatch
from ghn_fast.ppuda.deepnets1m.net import Network
from ghn_fast.ppuda.ghn import nn as published
from ghn_fast.ppuda.ghn.nn import GHN, GHN1, GHN2
from tests.ppuda.conftest import CONFIG, write_published

MakeNet = Callable[..., nn.Module]


def values(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from checkpoints that the machine may have."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(published.CHECKPOINTS_VARIABLE, raising=False)


def test_load(ghn: GHN, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = GHN.load(write_published(ghn, tmp_path / "g.pt"), debug_level=2, verbose=True)
    assert not loaded.training
    assert loaded.debug_level == 2
    assert {name: getattr(loaded, name) for name in ("max_shape", "num_classes")} == {
        "max_shape": (16, 16, 5, 5),
        "num_classes": 6,
    }
    assert loaded.ve
    assert loaded.layernorm
    assert loaded.weight_norm
    for name, value in ghn.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].cpu(), value), name
    assert str(sum(p.numel() for p in ghn.parameters())) in capsys.readouterr().out


def test_a_ghn3_is_refused(tmp_path: Path) -> None:
    save(ghn3("t"), tmp_path / "three.safetensors")
    with pytest.raises(CheckpointError, match=r"ghn_fast\.from_pretrained"):
        GHN.load(tmp_path / "three.safetensors")


@pytest.mark.parametrize("place", ["folder", "variable"])
@pytest.mark.parametrize(("make", "name"), [(GHN1, "ghn1_imagenet"), (GHN2, "ghn2_imagenet")])
def test_published_files_are_found(
    ghn: GHN,
    make: Callable[[], GHN],
    name: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / ("checkpoints" if place == "folder" else "mine")
    write_published(ghn, folder / f"{name}.pt")
    if place == "variable":
        monkeypatch.setenv(published.CHECKPOINTS_VARIABLE, str(folder))
    loaded = make()
    assert loaded.num_classes == 6
    assert loaded.debug_level == 1


def test_missing_file_says_where_to_put_it() -> None:
    with pytest.raises(CheckpointError, match=r"checkpoints/ghn1_imagenet\.pt.*GHN_FAST_CHECKPO"):
        GHN1("imagenet")


def test_variable_can_name_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(name: Any) -> CoreGHN:
        asked.append(name)
        return CoreGHN(GHNConfig(**CONFIG))

    monkeypatch.setenv(published.CHECKPOINTS_VARIABLE, "somebody/ppuda")
    monkeypatch.setattr(published, "from_pretrained", fake)
    GHN2("imagenet")
    assert asked == ["somebody/ppuda:ghn2_imagenet.pt"]


def test_shipped_ghn_takes_the_place_of_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(published.CHECKPOINTS_VARIABLE, raising=False)
    with pytest.warns(UserWarning, match=r"ghn2_cifar10\.pt .*ghn2-cifar10"):
        found = GHN2("cifar10")
    assert found.config == from_pretrained("ghn2-cifar10").config


def test_same_as_ghn_fast(ghn: GHN, make_net: MakeNet, tmp_path: Path) -> None:
    core = from_pretrained(write_published(ghn, tmp_path / "g.pt"))
    expected = values(core(make_net()))  # type: ignore[arg-type]
    found = values(ghn(make_net()))
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_forms_of_graphs(ghn: GHN, make_net: MakeNet) -> None:
    net = make_net()
    expected = values(ghn(net))
    graph = Graph(make_net())
    forms: list[Any] = [graph, GraphBatch([graph]).to_device("cpu"), [graph], graph.core]
    for graphs in forms:
        found = values(ghn(make_net(), graphs))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_returned(ghn: GHN, make_net: MakeNet) -> None:
    net = make_net()
    assert ghn(net) is net
    assert ghn([net]) is net
    several = [net, make_net()]
    assert ghn(several) is several
    result, embeddings = ghn(several, return_embeddings=True)
    assert result is several
    assert embeddings.shape == (2 * Graph(net).n_nodes, 8)
    half = embeddings[: len(embeddings) // 2]
    torch.testing.assert_close(half.mean(dim=0), ghn.embed(net))


def test_training_attaches(ghn: GHN, make_net: MakeNet) -> None:
    ghn.train()
    nets = [make_net()]
    assert ghn(nets, GraphBatch([Graph(make_net())])) is nets
    weight = nets[0].get_submodule("0")._parameters["weight"]
    assert weight is not None
    weight.sum().backward()
    gradient = ghn.decoder.fc[0].weight.grad  # type: ignore[union-attr]
    assert isinstance(gradient, Tensor)
    assert gradient.abs().sum() > 0


def test_keep_grads(ghn: GHN, make_net: MakeNet) -> None:
    net = make_net()
    ghn(net, keep_grads=True)
    assert net[3].weight.grad_fn is not None  # type: ignore[index]
    assert not ghn.training
    net = make_net()
    ghn.train()(net, keep_grads=False)
    assert isinstance(net[3].weight, nn.Parameter)  # type: ignore[index]
    assert net[3].weight.grad_fn is None  # type: ignore[index]
    assert ghn.training


@pytest.mark.parametrize(
    ("flags", "training", "batch_statistics"),
    [
        ({}, False, True),
        ({"bn_train": False}, False, False),
        ({}, True, False),
        ({"bn_track_running_stats": True}, False, False),
        ({"bn_track_running_stats": False, "bn_train": False}, False, True),
        ({"bn_track_running_stats": False}, True, True),
    ],
)
def test_batch_norm_flags(
    ghn: GHN, make_net: MakeNet, flags: dict[str, bool], training: bool, batch_statistics: bool
) -> None:
    net = make_net().eval()
    ghn.train(training)(net, **flags)
    norm = net[1]  # type: ignore[index]
    assert norm.training is batch_statistics
    assert norm.track_running_stats is not batch_statistics
    assert not net[3].training  # type: ignore[index]
    with torch.no_grad():
        net[0](torch.randn(4, 3, 8, 8))  # type: ignore[index]
        out = norm(5 + torch.randn(64, 24, 4, 4))
        weight, bias = norm.weight, norm.bias
    mean = ((out - bias.view(1, -1, 1, 1)) / weight.view(1, -1, 1, 1)).mean()
    assert abs(mean) < 1e-3 if batch_statistics else abs(mean - 5) < 0.1


def test_class_layers_are_left(ghn: GHN, make_net: MakeNet) -> None:
    net = make_net(num_classes=9)
    before = values(net)
    ghn(net, predict_class_layers=False)
    after, own = values(net), values(ghn(make_net(num_classes=6)))
    for name in before:
        if name.startswith("7."):
            assert torch.equal(after[name], before[name])
        else:
            # Encoded as a layer of 6 classes, so the rest is what a network of 6 classes gets.
            assert torch.equal(after[name], own[name]), name


@pytest.mark.parametrize("training", [False, True])
def test_class_layers_of_other_numbers(ghn: GHN, make_net: MakeNet, training: bool) -> None:
    net = make_net(num_classes=15)
    before = values(net)
    ghn.train(training)(net)
    weight, bias = (net[7]._parameters[name] for name in ("weight", "bias"))  # type: ignore[index]
    assert weight.shape == (15, 8)
    assert (weight.grad_fn is not None) == training
    assert not torch.equal(weight, before["7.weight"])
    torch.testing.assert_close(weight[6:12], weight[:6], rtol=0, atol=0)
    torch.testing.assert_close(weight[12:], weight[:3], rtol=0, atol=0)
    torch.testing.assert_close(bias[6:12], bias[:6], rtol=0, atol=0)
    few = make_net(num_classes=2)
    ghn.eval()(few)
    assert few[7].weight.shape == (2, 8)  # type: ignore[index]


@pytest.mark.parametrize("training", [False, True])
def test_autocast_makes_no_difference_to_class_layers_of_other_numbers(
    ghn: GHN, make_net: MakeNet, training: bool
) -> None:
    heads = []
    for enabled in (False, True):
        net = make_net(num_classes=15)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            ghn.train(training)(net)
        heads.append(net[7]._parameters)  # type: ignore[index]
    for name in ("weight", "bias"):
        torch.testing.assert_close(heads[1][name], heads[0][name], rtol=0, atol=0)


def test_reduce_graph(ghn: GHN) -> None:
    genotype = {
        "normal": [("conv_3x3", 0), ("conv_1x1", 1), ("conv_1x1", 0), ("conv_1x1", 1)],
        "normal_concat": [3],
        "reduce": [("max_pool_3x3", 0), ("max_pool_3x3", 1)] * 2,
        "reduce_concat": [3],
    }

    def make() -> nn.Module:
        return Network(8, 6, genotype, 1, is_imagenet_input=False).eval()

    unused = set(CoreGraph.from_model(make()).unused)
    assert "cells.0._ops.0.op.1.weight" in unused
    assert set(values(ghn(make()))) > unused
    net = ghn(make(), reduce_graph=True)
    assert not set(values(net)) & unused
    assert net(torch.randn(2, 3, 32, 32))[0].shape == (2, 6)


def test_a_network_without_memory(ghn: GHN) -> None:
    genotype = {
        "normal": [("conv_3x3", 0), ("conv_1x1", 1)],
        "normal_concat": [2],
        "reduce": [("max_pool_3x3", 0), ("max_pool_3x3", 1)],
        "reduce_concat": [2],
    }
    net = Network(8, 6, genotype, 1, is_imagenet_input=False, light=True)
    with pytest.raises(ValueError, match="light=False"):
        ghn(net, Graph(copy.deepcopy(net).to_empty(device="cpu")))


def test_debug_levels(ghn: GHN, make_net: MakeNet, capsys: pytest.CaptureFixture[str]) -> None:
    ghn(make_net())
    assert capsys.readouterr().out == ""
    ghn.debug_level = 1
    net = ghn(make_net())
    total = sum(parameter.numel() for parameter in net.parameters())
    assert f"predicted 7 tensors with {total} of {total}" in capsys.readouterr().out
    ghn(make_net(9), predict_class_layers=False)
    assert f"predicted 5 tensors with {total - 54} of {total + 27}" in capsys.readouterr().out
    ghn(make_net(), keep_grads=True)
    assert f"with {total} of {total}" in capsys.readouterr().out
    ghn.debug_level = 3
    ghn(make_net())
    printed = capsys.readouterr().out
    assert "7 tensors have a gradient" in printed
    assert "3.weight" in printed


def test_several_gpus_are_refused(ghn: GHN) -> None:
    with pytest.raises(NotImplementedError, match="one device"):
        published.ghn_parallel(ghn)
