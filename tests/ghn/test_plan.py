"""Which rule each parameter gets, and what shapes beyond the published ones decode to."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import ghn_fast
from ghn_fast.ghn import GHN, ghn1, ghn2, make_plan
from ghn_fast.ghn.place.keep import (
    EMBEDDING,
    EMPTY,
    MISSHAPEN,
    NO_NODE,
    SCALAR,
    TOO_MANY_DIMENSIONS,
)
from ghn_fast.graph import Graph, GraphBatch, Node
from ghn_fast.prediction import PredictionReport


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 32, generator=torch.Generator().manual_seed(2))


def chain(*nodes: Node) -> Graph:
    """The graph of layers one after the other."""
    everything = (Node("input", "input"), *nodes, Node("sum", "sum"))
    steps = torch.arange(len(everything) - 1)
    return Graph(everything, torch.stack((steps, steps + 1), dim=1))


def rule_of(node_type: str, parameter: Tensor, ghn: GHN) -> str:
    """Of a node's parameter of which nothing but its type and shape is known."""
    graph = chain(Node(node_type, "w", tuple(parameter.shape), "w"))
    plan = make_plan(GraphBatch([graph]), ghn.config, [nn.ParameterDict({"w": parameter})])
    return {**plan.rules(0), **plan.kept[0]}["w"]


@pytest.mark.parametrize(
    ("node_type", "shape", "rule"),
    [
        ("conv", (8, 4, 3, 3), "weight"),
        ("conv", (8, 4, 3), "weight"),
        ("conv", (24, 8), "weight"),
        ("conv", (8, 4, 2, 3, 3), "video_weight"),
        ("conv", (2, 3, 2, 2, 2, 2), TOO_MANY_DIMENSIONS),
        ("bias", (24,), "bias"),
        ("bias", (1, 8, 1, 1), "bias"),
        ("bias", (4, 6), "bias"),
        ("ln", (8,), "norm_weight"),
        ("ln", (8, 5, 5), "norm_weight"),
        ("ln", (), SCALAR),
        ("conv", (0, 4), EMPTY),
        ("pos_enc", (1, 10, 8), "pos_enc"),
        ("pos_enc", (20, 8), "pos_enc"),
        ("pos_enc", (1, 4, 4, 8), "pos_enc"),
        ("pos_enc", (1, 2, 4, 4, 1, 8), "pos_enc"),
    ],
)
def test_rules(ghn: GHN, node_type: str, shape: tuple[int, ...], rule: str) -> None:
    assert rule_of(node_type, torch.zeros(shape), ghn) == rule


def test_video_kernels_give_what_image_kernels_give_on_a_still(ghn: GHN, x: Tensor) -> None:
    image = ghn.decode(x, "weight", (70, 5, 3, 3))
    video = ghn.decode(x, "video_weight", (70, 5, 4, 3, 3))
    assert video.shape == (2, 70, 5, 4, 3, 3)
    torch.testing.assert_close(video.sum(dim=3), image)
    assert torch.equal(video[:, :, :, 0], video[:, :, :, 3])


def test_kernels_larger_than_any_block_are_repeated(ghn: GHN, x: Tensor) -> None:
    kernel = ghn.decode(x, "weight", (8, 3, 32, 32))
    assert kernel.shape == (2, 8, 3, 32, 32)
    assert torch.equal(kernel[..., 11:22, 22:], kernel[..., :11, :10])
    block = ghn.decoder(x, (8, 3, 11, 11))
    torch.testing.assert_close(kernel[..., :11, :11], block * math.sqrt(2 / (3 * 32 * 32)))


def test_kernels_of_one_dimension(ghn: GHN, x: Tensor) -> None:
    assert ghn.decode(x, "weight", (1, 6, 15)).shape == (2, 1, 6, 15)
    column = ghn.decode(x, "weight", (8, 6, 5, 1))
    torch.testing.assert_close(ghn.decode(x, "weight", (8, 6, 5)), column[..., 0])


@pytest.mark.parametrize("rule", ["bias", "norm_weight", "norm_bias"])
@pytest.mark.parametrize("shape", [(1, 100, 1, 1), (100, 5, 5), (1, 1, 100), (100, 7)])
def test_vectors_of_several_dimensions(
    ghn: GHN, x: Tensor, rule: str, shape: tuple[int, ...]
) -> None:
    vector = ghn.decode(x, rule, (100,))
    spread = ghn.decode(x, rule, shape)
    assert spread.shape == (2, *shape)
    for found, expected in zip(spread, vector, strict=True):
        assert torch.equal(
            found.reshape(100, -1), expected[:, None].expand(100, spread[0].numel() // 100)
        )


def test_position_tables_of_any_layout(ghn: GHN, x: Tensor) -> None:
    rows = ghn.decode(x, "pos_enc", (1, 36, 80))
    torch.testing.assert_close(ghn.decode(x, "pos_enc", (36, 80)), rows[:, 0])
    torch.testing.assert_close(ghn.decode(x, "pos_enc", (36, 1, 80)), rows[:, 0, :, None])
    torch.testing.assert_close(ghn.decode(x, "pos_enc", (1, 6, 6, 80)), rows.view(2, 1, 6, 6, 80))
    first = ghn.decode(x, "pos_enc", (1, 80, 6, 6))
    torch.testing.assert_close(first, rows.view(2, 1, 6, 6, 80).movedim(-1, 2))
    assert ghn.decode(x, "pos_enc", (1, 3, 7, 5, 80)).shape == (2, 1, 3, 7, 5, 80)


def test_without_normalisation(x: Tensor) -> None:
    """A GHN-1 spreads kernels over time all the same."""
    torch.manual_seed(0)
    ghn = ghn1().eval()
    image = ghn.decode(x, "weight", (8, 5, 3, 3))
    torch.testing.assert_close(ghn.decode(x, "video_weight", (8, 5, 2, 3, 3)).sum(dim=3), image)


# --- what models tell beyond shapes -----------------------------------------------------------


def predicted(model: nn.Module, ghn: GHN, images: object) -> PredictionReport:
    """The report, after making sure that what it says was decoded is new and all else is old."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    _, report = ghn_fast.predict(model, ghn, images, return_report=True)
    assert set(report.predicted) | set(report.unpredicted) == set(before)
    assert set(report.rules) == set(report.predicted)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert torch.equal(parameter, before[name]) == (name in report.unpredicted), name
    return report


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_transposed_convolutions_are_normalised_by_the_fan_in_they_have(
    ghn: GHN, stride: int, groups: int
) -> None:
    layer = nn.ConvTranspose2d(48, 8, 4, stride=stride, groups=groups)
    report = predicted(nn.Sequential(layer, nn.ReLU()), ghn, torch.zeros(1, 48, 8, 8))
    assert report.rules["0.weight"] == "transposed_weight"
    fan_in = 48 / groups * 16 / stride**2
    raw = layer.weight.detach() / math.sqrt(2 / fan_in)
    blocks = ghn2_without_normalisation(ghn)
    ghn_fast.predict(nn.Sequential(layer, nn.ReLU()), blocks, torch.zeros(1, 48, 8, 8))
    torch.testing.assert_close(layer.weight.detach(), raw)


def ghn2_without_normalisation(ghn: GHN) -> GHN:
    other = ghn2(weight_norm=False).eval()
    other.load_state_dict(ghn.state_dict())
    return other


@pytest.mark.parametrize("words", [30, 300])
def test_embeddings_keep_their_words(ghn: GHN, words: int) -> None:
    model = nn.Sequential(nn.Embedding(words, 16, padding_idx=0), nn.Linear(16, 10))
    report = predicted(model, ghn, torch.zeros(1, 4, dtype=torch.int64))
    assert report.unpredicted == {"0.weight": EMBEDDING}


class LooksUp(nn.Module):
    """An embedding without nn.Embedding: what counts is how the table is used."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(12, 8))
        self.fc = nn.Linear(8, 10)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.fc(nn.functional.embedding(ids, self.table).mean(1))
        return logits


def test_a_table_that_is_looked_up_is_an_embedding(ghn: GHN) -> None:
    report = predicted(LooksUp(), ghn, torch.zeros(1, 4, dtype=torch.int64))
    assert report.unpredicted == {"table": EMBEDDING}


def test_an_output_layer_that_sees_a_map_is_no_class_weight(ghn: GHN) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 6), nn.Flatten())
    graph = Graph.from_model(model, torch.zeros(1, 3, 8, 8))
    assert [graph.nodes[head].parameter for head in graph.heads] == ["1.bias"]
    rules = make_plan(GraphBatch([graph]), ghn.config, [model]).rules(0)
    assert (rules["1.weight"], rules["1.bias"]) == ("weight", "bias")


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.filter = nn.Parameter(torch.randn(4, 8, 5, dtype=torch.complex64))

    def forward(self, images: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(self.conv(images))
        return torch.fft.irfft2(spectrum * self.filter)


def test_complex_parameters_are_reported(ghn: GHN) -> None:
    model = Complex()
    before = model.filter.detach().clone()
    _, report = ghn_fast.predict(model, ghn, torch.zeros(1, 3, 8, 8), return_report=True)
    assert set(report.unpredicted) == {"filter"}
    assert "complex64" in report.unpredicted["filter"]
    assert torch.equal(model.filter, before)


def test_bias_of_another_shape_than_its_norm(ghn: GHN) -> None:
    graph = chain(Node("ln", "w", (8,), "w", "b"))
    model = nn.ParameterDict({"w": torch.zeros(8), "b": torch.zeros(8, 1)})
    plan = make_plan(GraphBatch([graph]), ghn.config, [model])
    assert plan.rules(0) == {"w": "norm_weight"}
    assert plan.kept[0] == {"b": MISSHAPEN}


def test_bias_of_a_frozen_norm(ghn: GHN) -> None:
    graph = chain(Node("bn", "bn.weight", (8,), None, "bn.bias"))
    plan = make_plan(GraphBatch([graph]), ghn.config)
    assert plan.rules(0) == {"bn.bias": "norm_bias"}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 100, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.words(ids)))


def test_tied_parameters_are_one(ghn: GHN) -> None:
    report = predicted(Tied(), ghn, torch.zeros(1, 4, dtype=torch.int64))
    assert set(report.predicted) == {"body.weight", "body.bias"}
    assert report.unpredicted == {"words.weight": EMBEDDING}


class Everything(nn.Module):
    """One of each: token, table, packed attention, layer scale, group, instance and RMS norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv3d(3, 16, (2, 16, 16), stride=(2, 16, 16))
        self.group = nn.GroupNorm(4, 16)
        self.instance = nn.InstanceNorm3d(16, affine=True)
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.randn(1, 9, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.gamma = nn.Parameter(torch.full((16,), 1e-5))
        self.rms = nn.RMSNorm(16)
        self.temporal = nn.Conv1d(16, 16, 3, padding=1, groups=16)
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))
        self.head = nn.Linear(16, 10)

    def forward(self, video: Tensor) -> Tensor:
        patches = self.instance(self.group(self.patches(video))).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.class_token.expand(len(video), -1, -1), patches), dim=1)
        tokens = tokens + self.pos_embed
        mixed, _ = self.attention(tokens, tokens, tokens)
        tokens = self.rms(tokens + self.gamma * mixed)
        tokens = self.temporal(tokens.transpose(1, 2)).transpose(1, 2)
        tokens, _ = self.lstm(tokens)
        return self.head(tokens.mean(dim=1) * self.logit_scale.exp())


def test_one_of_each(ghn: GHN) -> None:
    report = predicted(Everything(), ghn, torch.zeros(1, 3, 4, 32, 32))
    rules = report.rules
    assert rules["patches.weight"] == "video_weight"
    assert rules["group.weight"] == rules["instance.weight"] == rules["rms.weight"] == "norm_weight"
    assert rules["group.bias"] == rules["instance.bias"] == "norm_bias"
    assert rules["pos_embed"] == "pos_enc"
    assert rules["attention.in_proj_weight"] == "weight"
    assert rules["attention.in_proj_bias"] == "bias"
    assert rules["temporal.weight"] == "weight"
    assert rules["head.weight"] == "class_weight"
    own = ("class_token", "gamma", "logit_scale", "lstm.weight_hh_l0", "lstm.bias_ih_l0")
    assert all(report.unpredicted[name] == NO_NODE for name in own)


def test_the_ghn_itself_writes_the_same(ghn: GHN) -> None:
    """``ghn(model)`` and ``predict``, and in training what has no node carries no gradient."""
    video = torch.zeros(1, 3, 4, 32, 32)
    one = Everything()
    other, trained = copy.deepcopy(one), copy.deepcopy(one)
    ghn_fast.predict(one, ghn, video)
    ghn(other, Graph.from_model(other, video))
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    learning = ghn2(max_shape=(16, 16, 5, 5)).train()
    learning(trained, Graph.from_model(trained, video))
    trained(torch.randn(1, 3, 4, 32, 32)).square().sum().backward()
    assert learning.decoder.conv[0].weight.grad is not None
    assert isinstance(trained.class_token, nn.Parameter)
    assert torch.equal(trained.class_token, one.class_token)
