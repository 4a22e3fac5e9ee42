"""Layer scales with GHNs for which a predicted branch takes part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

import ghn_fast
from ghn_fast.checkpoint import from_pretrained
from ghn_fast.ghn import GHN, ghn2
from ghn_fast.ghn.make import adapt
from ghn_fast.ghn.place.follow import has_small_scale
from ghn_fast.ghn.place.keep import MEANINGS, NO_NODE, RAISED, is_by_design
from ghn_fast.graph import Graph
from ghn_fast.train import Trainer
from tests.train.test_trainer import TINY, make_images

SMALL = {"hid": 8, "max_shape": (16, 16, 7, 7)}
STAGES = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def convnext(scale: float = 1e-6) -> nn.Module:
    torch.manual_seed(0)
    return models.ConvNeXt(STAGES, layer_scale=scale, num_classes=10).eval()


def scales(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if n.endswith("layer_scale")}


def ghn(**own: bool) -> GHN:
    torch.manual_seed(0)
    return ghn2(**SMALL, **own).eval()


@pytest.mark.parametrize("how", ["predict", "fill", "attach"])
def test_predicted_branches_take_part(how: str) -> None:
    model, own = convnext(), ghn(raised_layer_scales=True)
    if how == "attach":
        own.train()(model)
    else:
        _, report = ghn_fast.predict(model, own, return_report=True, fill=how == "fill")
        reasons = {report.unpredicted[name] for name in scales(model)}
        assert reasons == {"filled: layer_scale" if how == "fill" else RAISED}
        assert is_by_design(RAISED)
        assert RAISED in MEANINGS
    assert len(scales(model)) == 2
    assert all(torch.equal(scale, torch.full_like(scale, 0.1)) for scale in scales(model).values())


def test_output_depends_on_what_blocks_compute() -> None:
    kept, opened = convnext(), convnext()
    ghn_fast.predict(kept, ghn())
    ghn_fast.predict(opened, ghn(raised_layer_scales=True))
    for model, changes in ((kept, False), (opened, True)):
        before = model(IMAGES)
        with torch.no_grad():
            model.features[1][0].block[5].weight.neg_()
        assert (model(IMAGES) - before).abs().max() > 1e-2 * before.std() or not changes
        assert (model(IMAGES) - before).abs().max() < 1e-4 * before.std() or changes


def test_without_the_setting_they_keep_their_values() -> None:
    model = convnext()
    _, report = ghn_fast.predict(model, ghn(), return_report=True)
    for name, scale in scales(model).items():
        assert report.unpredicted[name] == NO_NODE
        assert torch.equal(scale, torch.full_like(scale, 1e-6))
    assert "raised_layer_scales" not in ghn().config.to_dict()


def test_what_was_trained_or_asked_for_stays() -> None:
    model = convnext()
    first, second = scales(model).values()
    first[3] += 1e-7
    expected = first.clone(), second.clone()
    _, report = ghn_fast.predict(
        model, ghn(raised_layer_scales=True), return_report=True, keep="features.3"
    )
    assert all(map(torch.equal, scales(model).values(), expected))
    assert RAISED not in report.unpredicted.values()


@pytest.mark.parametrize(
    ("scale", "small"),
    [
        (torch.full((8, 1, 1), 1e-6), True),
        (torch.full((1, 1, 8), 0.01), True),
        (torch.full((8,), 1e-5, dtype=torch.bfloat16), True),
        (torch.ones(8), False),
        (torch.zeros(8), False),
        (torch.full((8,), -1e-6), False),
        (torch.full((8,), torch.nan), False),
        (torch.full((8,), 0.1), False),
        (torch.linspace(1e-6, 2e-6, 8), False),
        (torch.full((4, 4), 1e-6), False),
        (torch.tensor(1e-6), False),
        (torch.empty(0), False),
    ],
    ids=lambda value: str(tuple(value.shape)) if isinstance(value, Tensor) else "",
)
def test_constants_that_authors_set(scale: Tensor, small: bool) -> None:
    assert has_small_scale(scale) is small


def test_networks_in_training_have_them_too(tmp_path: Path) -> None:
    config = replace(
        TINY,
        ghn={**TINY.ghn, "raised_layer_scales": True},
        mixture={"families/convnext": 1.0},
        max_work=100,
        steps=1,
    )
    trainer = Trainer(config, tmp_path, make_images(), make_images(64))
    drawn, _ = trainer.networks.draw(0)
    networks = [network.model for network in drawn if "layer_scale" in network.graph.other.values()]
    assert networks
    trainer.ghn.attach_leaves(networks, [Graph.from_model(network) for network in networks])
    found = [p for network in networks for n, p in network.named_parameters() if "layer_scale" in n]
    assert found
    assert all(torch.equal(scale, torch.full_like(scale, 0.1)) for scale in found)
    trainer.fit()
    assert from_pretrained(tmp_path / "ghn.safetensors").config.raised_layer_scales


def test_a_trained_ghn_takes_the_setting_on() -> None:
    own = ghn()
    adapt(own, replace(own.config, raised_layer_scales=True))
    model = ghn_fast.predict(convnext(), own)
    assert all(torch.equal(scale, torch.full_like(scale, 0.1)) for scale in scales(model).values())
