"""LoGAH: its decoder beside its definition, its files, and what the public code predicts."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import ghn_fast
from ghn_fast.checkpoint import CheckpointError, load_ghn, save
from ghn_fast.ghn import GHN, LoGAH, LoGAHConfig, logah
from ghn_fast.ghn.decode.low_rank import LowRankDecoder, rounded_channels, weight_and_bias
from ghn_fast.ppuda.utils import adjust_net
from tests.graph.test_language import build as build_language

LANGUAGE_MODELS = ("gpt2_l2_c96", "llama_l2_c96", "gpt2_l2_c96_tied")
MODELS = [
    *("logah_tiny/resnet18", "logah_tiny/vit_p4_c96", "logah_tiny/convnext_tiny"),
    *("logah_tiny/mobilenet_v2", "logah_tiny/squeezenet1_1"),
    *("logah_tiny_1d/resnet18", "logah_tiny_1d/vit_p4_c96", "logah_tiny_1d/convnext_tiny"),
    "logah_tiny_1d/regnet_x_400mf",
]


def small(**values: Any) -> LoGAH:
    config = {"hid": 16, "layers": 1, "heads": 2, "max_shape": (32, 32, 16, 16)}
    return LoGAH(LoGAHConfig(**{**config, "lora_r": 4, "max_ck_lora": 100, **values})).eval()


def whole_factors(decoder: LowRankDecoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """All K rows of both factors, as the paper defines them."""
    seeds = F.relu(decoder.mlp(x)).view(len(x), 2 * decoder.rank, decoder.rank)
    rows = decoder.l2(seeds).reshape(len(x), -1, decoder.rank)
    left, right = rows.split(decoder.most_rows, dim=1)
    return left, right


@pytest.mark.parametrize("size", [(3, 5, 1, 1), (30, 2, 3, 3), (4, 16, 2, 6), (100, 1, 1, 1)])
def test_only_the_rows_that_are_needed(size: tuple[int, int, int, int]) -> None:
    torch.manual_seed(0)
    decoder = LowRankDecoder(8, rank=4, most_rows=100)
    x = torch.randn(3, 8)
    left, right = whole_factors(decoder, x)
    out, channels, height, width = size
    for o, i, a, b in [(0, 0, 0, 0), (out - 1, channels - 1, height - 1, width - 1)]:
        expected = (left[:, o * height + a] * right[:, i * width + b]).sum(dim=1)
        torch.testing.assert_close(decoder(x, size)[:, o, i, a, b], expected)


def test_vectors_are_a_column() -> None:
    torch.manual_seed(0)
    decoder = LowRankDecoder(8, rank=4, most_rows=100)
    x = torch.randn(3, 8)
    left, right = whole_factors(decoder, x)
    column = (left @ right[:, :1].transpose(1, 2)).flatten(1)
    torch.testing.assert_close(weight_and_bias(decoder, x, 20).flatten(1), column[:, :40])


@pytest.mark.parametrize("use_1d_decoder", [False, True])
@pytest.mark.parametrize("rule", ["bias", "norm_weight", "norm_bias"])
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (8, 5, 5)])
def test_vectors_of_several_dimensions(
    shape: tuple[int, ...], rule: str, use_1d_decoder: bool
) -> None:
    torch.manual_seed(0)
    ghn, x = small(use_1d_decoder=use_1d_decoder), torch.randn(2, 16)
    vector = ghn.decode(x, rule, (8,)).view(2, *(8 if size == 8 else 1 for size in shape))
    assert torch.equal(ghn.decode(x, rule, shape), vector.expand(2, *shape))


@pytest.mark.parametrize("language", [False, True])
def test_predicts_norms_over_maps(language: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.LayerNorm((8, 6, 6)), nn.Flatten(), nn.Linear(288, 10))
    )
    _, report = ghn_fast.predict(
        model, small(language=language), torch.zeros(2, 3, 8, 8), return_report=True
    )
    assert report.unpredicted == {}
    weight = model[1].weight.detach()
    assert torch.equal(weight, weight[:, :1, :1].expand(8, 6, 6))
    assert len(weight.unique()) == 8


@pytest.mark.parametrize(
    ("channels", "counted"), [(8, 8), (12, 16), (63, 128), (64, 128), (500, 128), (40, 40)]
)
def test_channels_are_rounded(channels: int, counted: int) -> None:
    assert rounded_channels(channels, 128) == counted


@pytest.mark.parametrize("use_1d_decoder", [False, True])
def test_gradients_reach_every_parameter(use_1d_decoder: bool) -> None:
    torch.manual_seed(0)
    ghn = small(use_1d_decoder=use_1d_decoder).train()
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(8, 10),
    )
    graph = ghn_fast.Graph.from_model(model, torch.zeros(2, 3, 8, 8))
    ghn(model, graph)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in ghn.parameters())


def test_wide_layers_have_no_repeated_rows() -> None:
    torch.manual_seed(0)
    ghn = small(max_shape=(2048, 2048, 16, 16), max_ck_lora=4096)
    model = nn.Sequential(nn.Linear(256, 200), nn.ReLU(), nn.Linear(200, 10))
    ghn_fast.predict(model, ghn)
    assert len(model[0].weight.unique(dim=0)) == 200
    assert torch.linalg.matrix_rank(model[0].weight) == 4


@pytest.mark.parametrize("use_1d_decoder", [False, True])
def test_files_give_the_same_parameters(tmp_path: Path, use_1d_decoder: bool) -> None:
    ghn = small(use_1d_decoder=use_1d_decoder)
    save(ghn, tmp_path / "x.safetensors")
    loaded = load_ghn(tmp_path / "x.safetensors")
    assert isinstance(loaded, LoGAH)
    assert loaded.config == ghn.config
    models = [nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10)) for _ in range(2)]
    for model, predictor in zip(models, (ghn, loaded), strict=True):
        ghn_fast.predict(model, predictor)
    assert torch.equal(models[0][0].weight, models[1][0].weight)


def test_rank_of_another_configuration(tmp_path: Path) -> None:
    ghn = small()
    config = {**ghn.config.to_dict(), "is_ghn2": False, "lora": True, "lora_r": 5}
    config.pop("decoder")
    torch.save({"state_dict": ghn.state_dict(), "config": config}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"lora_r 5, the tensors 4"):
        load_ghn(tmp_path / "x.pt")


@pytest.mark.parametrize(("size", "millions"), [("tiny", 2.5), ("small", 21.4), ("base", 78.2)])
def test_sizes_of_the_paper(size: str, millions: float) -> None:
    with torch.device("meta"):
        ghn = logah(size)
    assert sum(p.numel() for p in ghn.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


class Words(nn.Module):
    """A language model of one linear layer, with the spread that its configuration asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(40, 8), nn.Linear(8, 40, bias=False)
        self.config = SimpleNamespace(initializer_range=0.25)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens))


@pytest.mark.parametrize("language", [False, True])
def test_spread_of_language_models(language: bool) -> None:
    torch.manual_seed(0)
    model, tokens = Words(), torch.tensor([[1, 2, 3]])
    _, report = ghn_fast.predict(model, small(language=language), tokens, return_report=True)
    assert not report.unpredicted
    assert report.rules["table.weight"] == "embedding"
    assert (abs(float(model.head.weight.detach().std()) - 0.25) < 1e-4) == language


def test_larger_vocabularies() -> None:
    encoder = small(language=True).shape_enc
    sizes = torch.tensor([8192, 8193, 20096, 20097, 50257, 10**6])
    found = encoder.channel_index[sizes.clamp(max=len(encoder.channel_index) - 1)]
    last = encoder.embed_channel.num_embeddings - 2
    assert (last - found).tolist() == [3, 3, 3, 2, 1, 0]


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match="size must be one of tiny, small, base, large"):
        logah("huge")


# ---------------------------------------------------------------- the public code


@functools.cache
def expectations(shared: Path) -> Any:
    return json.loads((shared / "conformance" / "logah.json").read_text())


@functools.cache
def checkpoint(shared: Path, name: str) -> GHN:
    return load_ghn(shared / "conformance" / "checkpoints" / f"{name}_random.pt")


def build(construct: str) -> nn.Module:
    """The model of an entry, which says how it is made in Python."""
    maker = re.search(r"torchvision\.models\.(\w+)\((.*)\)\)", construct)
    assert maker is not None
    arguments = re.findall(r"(\w+)=(\d+)", maker[2])
    kind = getattr(torchvision.models, maker[1])
    return adjust_net(kind(**{name: int(value) for name, value in arguments}))


def assert_close(tensor: Tensor, expected: list[float]) -> None:
    count, norm, dot = expected
    values = tensor.detach().double().flatten()
    assert len(values) == count
    tolerance = 1e-4 * norm + 1e-6
    waves = torch.cos(0.37 * torch.arange(len(values), dtype=torch.float64))
    assert float(values.norm()) == pytest.approx(norm, abs=tolerance)
    assert float(values @ waves) == pytest.approx(dot, abs=tolerance)


@pytest.mark.filterwarnings("ignore:.*is not fitted to small images")
@pytest.mark.parametrize("entry", MODELS)
def test_predicts_what_the_public_code_predicts(shared: Path, entry: str) -> None:
    expected = expectations(shared)[entry]
    ghn = checkpoint(shared, entry.partition("/")[0])
    model = build(expected["construct"])
    graph = ghn_fast.Graph.from_model(model, torch.randn(2, 3, 32, 32))
    assert graph.num_nodes == expected["nodes"]
    embedding = float(ghn.embed(graph).double().norm())
    assert embedding == pytest.approx(expected["embedding_mean_norm"], rel=1e-5)
    ghn(model, graph)
    parameters = dict(model.named_parameters())
    for name, value in expected["params"].items():
        assert_close(parameters[name], value)
    for name, value in expected.get("partial", {}).items():
        assert name == "encoder.pos_embedding[:, 1:]"
        assert_close(parameters["encoder.pos_embedding"][:, 1:], value)


@pytest.mark.parametrize("entry", LANGUAGE_MODELS)
def test_predicts_what_the_public_code_predicts_for_language(shared: Path, entry: str) -> None:
    expected = expectations(shared)[f"logah_tiny_lm/{entry}"]
    ghn, model = checkpoint(shared, "logah_tiny_lm"), build_language(expected["construct"])
    _, report = ghn_fast.predict(model, ghn, return_report=True)
    assert not report.unpredicted
    graph = ghn_fast.Graph.from_model(model, types=ghn.node_types)
    embedding = float(ghn.embed(graph).double().norm())
    assert embedding == pytest.approx(expected["embedding_mean_norm"], rel=1e-5)
    parameters = dict(model.named_parameters())
    for name, value in expected["params"].items():
        assert_close(parameters[name], value)
