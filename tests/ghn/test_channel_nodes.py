"""GHNs whose graphs show what moves channels, from the graph to training and evaluation."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import ghn_fast
from ghn_fast.checkpoint import CheckpointError, from_pretrained
from ghn_fast.evaluation import evaluate
from ghn_fast.ghn import GHN, GHNConfig, ghn2, ghn3, logah, make_config
from ghn_fast.ghn.files import load
from ghn_fast.ghn.make import adapt
from ghn_fast.graph import (
    CHANNEL_NODE_TYPES,
    LANGUAGE_NODE_TYPES,
    NODE_TYPES,
    Graph,
    GraphBatch,
    Origins,
)
from ghn_fast.nets.families import FAMILIES, sample_member, space
from ghn_fast.nets.families.signature import signature
from ghn_fast.train import ConfigError, TrainConfig, Trainer
from tests.train.test_trainer import TINY, make_images

SMALL = {"hid": 8, "max_shape": (16, 16, 7, 7)}
LARGE = {"hid": 16, "layers": 1, "heads": 2, "max_shape": (32, 32, 16, 16)}
MAKERS = {
    "ghn2": lambda **own: ghn2(**SMALL, **own),
    "ghn3": lambda **own: ghn3(num_classes=10, **LARGE, **own),
    "logah": lambda **own: logah("tiny", **LARGE, lora_r=4, max_ck_lora=100, **own),
}


@pytest.fixture(params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return str(request.param)


def shufflenet() -> nn.Module:
    return models.ShuffleNetV2([2, 1, 1], [8, 16, 24, 32, 32], num_classes=10)


def parameters(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


def test_off_nothing_is_new(kind: str) -> None:
    ghn = MAKERS[kind]()
    assert ghn.node_types == NODE_TYPES
    assert "channel_nodes" not in ghn.config.to_dict()
    assert len(ghn.node_type_embedding.weight) == len(NODE_TYPES)


def test_a_checkpoint_knows(kind: str, tmp_path: Path) -> None:
    ghn = MAKERS[kind](channel_nodes=True)
    ghn.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.config == ghn.config
    assert loaded.node_types == CHANNEL_NODE_TYPES
    assert make_config(ghn.config.to_dict()) == ghn.config
    torch.save({"state_dict": ghn.state_dict()}, tmp_path / "alone.pt")
    assert load(tmp_path / "alone.pt")[0].channel_nodes
    stated = {**ghn.config.to_dict(), "channel_nodes": False}
    torch.save({"state_dict": ghn.state_dict(), "config": stated}, tmp_path / "wrong.pt")
    with pytest.raises(CheckpointError, match="channel_nodes"):
        from_pretrained(tmp_path / "wrong.pt")


def test_a_split_is_seen() -> None:
    plain = ghn2(**SMALL).eval()
    adapted = copy.deepcopy(plain)
    adapt(adapted, replace(plain.config, channel_nodes=True))
    seen, unseen = (parameters(ghn_fast.predict(shufflenet(), g)) for g in (adapted, plain))
    assert not torch.allclose(seen, unseen)
    model = shufflenet()
    adapted(model.eval())
    assert torch.equal(parameters(model), seen)
    given = Graph.from_model(model, types=adapted.node_types)
    assert torch.equal(parameters(ghn_fast.predict(shufflenet(), adapted, graph=given)), seen)
    of_given = adapted.node_embeddings(GraphBatch([given])).mean(dim=0)
    assert torch.equal(adapted.embed(model), of_given)


@pytest.mark.parametrize("knows", [True, False])
def test_a_graph_of_other_types_is_made_anew(knows: bool) -> None:
    ghn = ghn2(**SMALL, channel_nodes=knows).eval()
    wanted, other = shufflenet(), shufflenet()
    ghn_fast.predict(wanted, ghn)
    graph = Graph.from_model(other, types=NODE_TYPES if knows else CHANNEL_NODE_TYPES)
    with pytest.warns(UserWarning, match=r"make it by ghn\.graph_of\(model\)"):
        ghn_fast.predict(other, ghn, graph=graph)
    assert torch.equal(parameters(other), parameters(wanted))
    again = shufflenet()
    with pytest.warns(UserWarning, match="made anew"):
        ghn([again], [graph])
    assert torch.equal(parameters(again), parameters(wanted))
    assert ghn.graph_of(again, ghn.graph_of(again)).types == ghn.node_types


def test_a_graph_of_other_types_alone_is_refused() -> None:
    graph = Graph.from_model(shufflenet(), types=CHANNEL_NODE_TYPES)
    with pytest.raises(ValueError, match="types shuffle, split, which the GHN does not know"):
        ghn_fast.embed(graph, ghn2(**SMALL))
    graph = Graph.from_model(shufflenet())
    with pytest.raises(ValueError, match="other types of nodes than the GHN knows"):
        ghn_fast.embed(graph, ghn2(**SMALL, channel_nodes=True))
    norm = nn.Sequential(nn.Conv2d(3, 8, 1), nn.RMSNorm(8), nn.Linear(8, 8))
    graph = Graph.from_model(norm, torch.zeros(1, 3, 8, 8), LANGUAGE_NODE_TYPES)
    with pytest.raises(ValueError, match="types rmsnorm, which the GHN does not know"):
        ghn_fast.embed(graph, ghn2(**SMALL, channel_nodes=True))


def test_language_models_show_none() -> None:
    with pytest.raises(ValueError, match="graphs of language models show no channel_nodes"):
        logah("tiny", language=True, channel_nodes=True)


# --- channels by their origins ----------------------------------------------------------------


class HandWrittenNorm(nn.Module):
    """Over the channels, in the middle as ConvNeXt's authors write it, or as the last."""

    def __init__(self, channels: int, last: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels))
        self.bias = nn.Parameter(torch.rand(channels))
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
        if self.last:
            return (x.movedim(1, -1) * self.weight + self.bias).movedim(-1, 1)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Shuffled(nn.Module):
    """Two layers with a shuffle of channels between them, or without."""

    def __init__(self, kind: str, shuffles: bool) -> None:
        super().__init__()
        self.stem, self.shuffles = nn.Conv2d(3, 12, 3, padding=1), shuffles
        between: dict[str, list[nn.Module]] = {
            "convolution": [],
            "norm": [nn.BatchNorm2d(12), nn.ReLU()],
            "depthwise": [nn.Conv2d(12, 12, 3, groups=12), nn.GroupNorm(12, 12)],
            "own norm": [HandWrittenNorm(12, last=False)],
            "own norm, channels last": [HandWrittenNorm(12, last=True)],
        }
        self.between = nn.Sequential(*between.get(kind, []))
        self.last = nn.Linear(12, 8) if kind == "linear" else nn.Conv2d(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.shuffles:
            x = x.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
        x = self.between(x)
        if isinstance(self.last, nn.Linear):
            return self.last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.last(x)


@pytest.mark.parametrize(
    "layers",
    ["convolution", "norm", "depthwise", "linear", "own norm", "own norm, channels last"],
)
def test_a_shuffled_network_computes_what_it_would_without(layers: str, kind: str) -> None:
    ghn, x = MAKERS[kind](channel_nodes=True).eval(), torch.randn(2, 3, 8, 8)
    model, other = Shuffled(layers, True), Shuffled(layers, False)
    graph = Graph.from_model(model, x, CHANNEL_NODE_TYPES)
    ghn_fast.predict(model, ghn, graph=graph)
    # The same embeddings, decoded without regard to where channels come from.
    unknown = [replace(node, origins=None) for node in graph.nodes]
    ghn_fast.predict(other, ghn, graph=replace(graph, nodes=tuple(unknown)))
    assert torch.allclose(model(x), other(x), atol=1e-5)
    assert not torch.allclose(parameters(model), parameters(other))
    trained = copy.deepcopy(model)
    ghn.train()(trained, graph)
    for name, parameter in model.named_parameters():
        assert torch.allclose(getattr(*attribute(trained, name)), parameter, atol=1e-6), name


def attribute(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, own = name.rpartition(".")
    return model.get_submodule(owner), own


def test_channels_keep_their_origins_through_units() -> None:
    nodes = {node.name: node for node in graph_of_shufflenet().nodes}
    origins = {name: node.origins for name, node in nodes.items() if node.origins is not None}
    first = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]  # two branches of 8, interleaved
    assert origins["stage2.1.branch2.0.weight"] == Origins(1, tuple(first[8:]))
    joined = [*first[:8], *range(8)]
    second = torch.tensor(joined).view(2, 8).T.flatten().tolist()
    assert origins["stage3.0.branch1.0.weight"] == Origins(0, tuple(second))
    assert origins["stage3.0.branch1.1.weight"] == Origins(0, tuple(second))
    assert origins["stage3.0.branch2.0.weight"] == Origins(1, tuple(second))
    assert "stage2.0.branch2.0.weight" not in origins
    plain = Graph.from_model(shufflenet())
    assert all(node.origins is None for node in plain.nodes)


def test_channels_that_a_depthwise_convolution_multiplies_have_the_origin_of_its_input() -> None:
    """As in the downsampling layers of FastViT."""
    stem, wider = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, groups=4)
    model = nn.Sequential(stem, wider, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8))
    model.append(nn.Conv2d(8, 6, 1))
    nodes = Graph.from_model(model, torch.zeros(2, 3, 12, 12), CHANNEL_NODE_TYPES).nodes
    pairs = (0, 0, 1, 1, 2, 2, 3, 3)
    places = {"1.weight": 0, "1.bias": 0, "2.weight": 0, "3.weight": 0, "3.bias": 0, "4.weight": 1}
    found = {node.name: node.origins for node in nodes if node.origins is not None}
    assert found == {name: Origins(dim, pairs) for name, dim in places.items()}
    like = nn.Sequential(stem, nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1))
    of_grey = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 8, 3), nn.Conv2d(8, 6, 1))
    for other in (like, of_grey):
        graph = Graph.from_model(other, torch.zeros(2, 3, 12, 12), CHANNEL_NODE_TYPES)
        assert all(node.origins is None for node in graph.nodes)


def graph_of_shufflenet() -> Graph:
    return Graph.from_model(shufflenet(), types=CHANNEL_NODE_TYPES)


def test_a_graph_of_another_width_is_refused_where_channels_move() -> None:
    wider = models.ShuffleNetV2([2, 1, 1], [8, 32, 24, 32, 32], num_classes=10)
    ghn = ghn2(**SMALL, channel_nodes=True)
    with pytest.raises(ValueError, match="make the graph from the model of this width"):
        ghn_fast.predict(wider, ghn, graph=graph_of_shufflenet())


# --- from a GHN without ------------------------------------------------------------------------


def test_adapted_it_predicts_what_it_did(kind: str) -> None:
    ghn = MAKERS[kind]().eval()
    model = models.resnet18(num_classes=10)
    before = parameters(ghn_fast.predict(model, ghn))
    known = ghn.node_type_embedding.weight.detach().clone()
    adapt(ghn, replace(ghn.config, channel_nodes=True, flat_kernels=True))
    assert torch.equal(parameters(ghn_fast.predict(model, ghn)), before)
    rows = ghn.node_type_embedding.weight
    assert rows.requires_grad
    assert torch.equal(rows[: len(known)], known)
    assert torch.allclose(rows[len(known) :], known.mean(dim=0).expand(2, -1))


def test_adapted_it_keeps_all_else(kind: str) -> None:
    with pytest.raises(ValueError, match="it is a GHN of"):
        adapt(MAKERS[kind](), replace(MAKERS[kind]().config, num_classes=7))
    ghn = MAKERS[kind](channel_nodes=True)
    with pytest.raises(ValueError, match="it is a GHN of"):
        adapt(ghn, replace(ghn.config, channel_nodes=False))


# --- families ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_the_same_networks(family: str) -> None:
    for index in range(2):
        plain = sample_member("families/val", 0, index, family=family)
        member = sample_member("families/val", 0, index, family=family, types=CHANNEL_NODE_TYPES)
        shapes, others = (
            {name: p.shape for name, p in m.model.named_parameters()} for m in (plain, member)
        )
        assert shapes == others
        moves = {node.type for node in member.graph.nodes} - set(NODE_TYPES)
        assert ("shuffle" in moves) == (family == "shuffle")
        assert moves or member.graph.digest() == plain.graph.digest()
        assert Graph.from_model(member.model).digest() == plain.graph.digest()


def test_named_architectures_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = sample_member("families/val", 0, 0, family="shuffle")
    monkeypatch.setattr(space, "named_architectures", lambda: {signature(plain.graph)})
    other = sample_member("families/val", 0, 0, family="shuffle", types=CHANNEL_NODE_TYPES)
    again = sample_member("families/val", 0, 0, family="shuffle")
    assert Graph.from_model(other.model).digest() == again.graph.digest()
    assert again.graph.digest() != plain.graph.digest()


# --- training and evaluation -------------------------------------------------------------------

SHUFFLE = replace(
    TINY,
    ghn={**TINY.ghn, "channel_nodes": True},
    mixture={"families/shuffle": 1.0},
    max_work=100,
    steps=2,
)


def test_is_trained_from_a_ghn_without(tmp_path: Path) -> None:
    start = ghn2(**SMALL)
    start.save_pretrained(tmp_path / "start")
    config = replace(SHUFFLE, init=str(tmp_path / "start"))
    trainer = Trainer(config, tmp_path / "run", make_images(), make_images(64))
    drawn, _ = trainer.networks.draw(0)
    assert all("shuffle" in {node.type for node in network.graph.nodes} for network in drawn)
    first = trainer.ghn.node_type_embedding.weight.detach().clone()
    assert torch.equal(first[: len(NODE_TYPES)], start.node_type_embedding.weight)
    trainer.fit()
    trained = trainer.ghn.node_type_embedding.weight
    assert not torch.equal(trained[-1], trained[-2])
    assert from_pretrained(tmp_path / "run" / "ghn.safetensors").config.channel_nodes
    resumed = Trainer(config, tmp_path / "run", make_images(), make_images(64))
    assert torch.equal(resumed.ghn.node_type_embedding.weight, trained)
    other = replace(config, ghn={**config.ghn, "hid": 16})
    with pytest.raises(ConfigError, match="it is a GHN of GHNConfig"):
        Trainer(other, tmp_path / "other", make_images(), make_images(64))


@pytest.mark.parametrize("split", ["zoo", "families/val/shuffle"])
def test_is_evaluated_with_its_graphs(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghn_fast.evaluation.run.zoo_names", lambda: ("shufflenet_v2_x0_5",))
    seen: list[set[str]] = []
    forward = GHN.forward

    def watched(ghn: GHN, model: nn.Module, graphs: Graph) -> nn.Module:
        seen.append({node.type for node in graphs.nodes})
        return forward(ghn, model, graphs)

    monkeypatch.setattr(GHN, "forward", watched)
    for own in (True, False):
        ghn = GHN(GHNConfig(**SMALL, channel_nodes=own))
        evaluate(ghn, split, make_images(64), num_nets=1)
    assert ["shuffle" in types for types in seen] == [True, False]


def test_those_that_are_trained_now_have_it_and_published_ones_not() -> None:
    assert make_config(TrainConfig().ghn).node_types == CHANNEL_NODE_TYPES
    assert make_config(TrainConfig.preset("ghn2-paper").ghn).node_types == NODE_TYPES
    assert ghn_fast.ghn2().config.node_types == NODE_TYPES
