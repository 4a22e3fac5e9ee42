"""All layers of a sample of models are decoded; ``bench/coverage.py`` has the whole."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from ghn_fast.ghn import GHN, ghn2
from ghn_fast.ghn.place.keep import NO_NODE
from ghn_fast.graph import Graph
from ghn_fast.prediction import predict

ROOT = Path(__file__).parents[1]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_coverage", ROOT / "bench" / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = load_script()
zoos = sys.modules["zoos"]


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2(num_classes=1000, max_shape=(64, 64, 16, 16)).eval()


def small_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 16, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96)


def small_swin() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlockV2

    sizes: dict[str, Any] = {"patch_size": [4, 4], "embed_dim": 24, "window_size": [7, 7]}
    return SwinTransformer(**sizes, depths=[2, 2], num_heads=[2, 4], block=SwinTransformerBlockV2)


def small_convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)])


def small_video() -> nn.Module:
    from torchvision.models.video import MViT
    from torchvision.models.video.mvit import MSBlockConfig

    block = partial(MSBlockConfig, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_kv=[1, 2, 2])
    blocks = [block(1, 24, 48, stride_q=[1, 1, 1]), block(2, 48, 48, stride_q=[1, 2, 2])]
    return MViT(
        (64, 64),
        8,
        blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=1000,
    )


def torchvision_model(name: str) -> nn.Module:
    from torchvision import models

    return models.get_model(name)


TORCHVISION: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "shufflenet_v2_x0_5": (partial(torchvision_model, "shufflenet_v2_x0_5"), set()),
    "mobilenet_v3_small": (partial(torchvision_model, "mobilenet_v3_small"), set()),
    "vit": (small_vit, {"pos_enc"}),
    "swin_v2": (small_swin, set()),
    "convnext": (small_convnext, set()),
    "mvit": (small_video, {"video_weight"}),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(ghn: GHN, name: str) -> None:
    build, rules = TORCHVISION[name]
    images = {"vit": (1, 3, 64, 64), "mvit": (1, 3, 8, 64, 64)}.get(name, (1, 3, 224, 224))
    model, report = predict(build(), ghn, torch.zeros(images), return_report=True)
    assert set(report.unpredicted.values()) <= {NO_NODE}
    names = {name for name, _ in model.named_parameters()}
    assert set(report.predicted) | set(report.unpredicted) == names
    assert rules <= set(report.rules.values())
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")
@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_fpn", "swin3d_t"])
def test_memory_of_a_graph(name: str) -> None:
    """Real constants of these models' own would take more than 100 MB."""
    model = zoos.torchvision_model(name)
    assert script.growth(lambda: Graph.from_model(model)) < 100
    assert script.growth(lambda: torch.zeros(50_000_000)) > 150


@pytest.mark.parametrize(
    "name", ["test_vit", "test_efficientnet", "test_convnext", "test_nfnet", "resnest14d"]
)
def test_timm(ghn: GHN, name: str) -> None:
    pytest.importorskip("timm")
    record = script.cover(script.Entry("timm", "", name, lambda: zoos.timm_model(name)), ghn)
    assert record.error == ""
    assert record.unpredicted.keys() <= {NO_NODE}
    assert record.complete
    assert record.decoded > 0.9 * record.parameters


def test_transformers(ghn: GHN) -> None:
    pytest.importorskip("transformers")
    records = [script.cover(entry, ghn) for entry in zoos.transformers_models()]
    assert {r.group for r in records} >= {"ViT", "Swin", "BERT", "GPT-2", "T5", "Llama"}
    assert {r.name: r.error or r.unpredicted for r in records if not r.complete} == {}


def test_script_goes_on_where_it_was_broken_off(ghn: GHN, tmp_path: Path) -> None:
    built = []

    def build(number: int) -> nn.Module:
        built.append(number)
        if number == 1:
            raise RuntimeError("out of luck")
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 7))

    def entries() -> list[Any]:
        return [script.Entry("timm", "", f"m{i}", partial(build, i)) for i in range(3)]

    log = tmp_path / "log.jsonl"
    script.run(iter(entries()[:2]), ghn, log)
    script.run(iter(entries()), ghn, log)
    assert built == [0, 1, 2]
    records = script.read(log)
    assert [record.name for record in records] == ["m0", "m1", "m2"]
    page = script.table(records, "some GHN", {"timm": 3}, 40.0)
    assert "| timm | 3 | 0 | 4 | 36.4 | 2 | 1 |" in page
    assert "- m1: RuntimeError: out of luck" in page
    assert "3 models were drawn. All of timm. **Not in it: torchvision, transformers," in page
    assert "Samples" not in page
    assert "Samples: 3 of 9 of timm" in script.table(records, "some GHN", {"timm": 9}, 40.0)
    assert "- m2: 2 (2.weight): output layer of 7; this GHN predicts 1000" in page


def test_script_makes_any_ghn_that_a_configuration_describes() -> None:
    from ghn_fast.ghn.logah import LoGAH

    small = '{"decoder": "low_rank", "hid": 16, "layers": 1, "heads": 2, "max_shape": [8, 8, 3, 3]}'
    ghn, described = script.make("", small)
    assert type(ghn) is LoGAH
    assert (ghn.config.hid, ghn.config.num_classes) == (16, 1000)
    assert "low_rank" in described


def test_libraries_are_tried_in_turn_and_in_an_order_drawn_at_random() -> None:
    sizes = {"timm": 5, "monai": 2}
    every = [script.Entry(z, "", f"m{i}", nn.Identity) for z, n in sizes.items() for i in range(n)]
    order = script.in_turn(every, None)
    assert [entry.zoo for entry in order[:4]] == ["timm", "monai", "timm", "monai"]
    assert {entry.key for entry in order} == {entry.key for entry in every}
    assert order == script.in_turn(every, None)
    assert [entry.name for entry in order if entry.zoo == "timm"] != [f"m{i}" for i in range(5)]
    assert script.in_turn(every, 1) == order[:2]
    later = order[-1].key
    assert script.begun(order, {order[0].key, later}) == {order[0].key}
