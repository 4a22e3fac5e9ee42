"""The public codes and this one, side by side: equal weights predict equal parameters.

Needs them on the path: ``PYTHONPATH=<ppuda>:<ghn3> pytest tests/test_public_codes.py``. The models
are those of reference families on which the public codes find the right graph, and that the
conformance files do not hold.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

import ghn_fast
from ghn_fast.ghn import ghn2, ghn3

IMAGENET = {"num_classes": 1000, "max_shape": (64, 64, 16, 16)}
BY_PPUDA = (
    *("alexnet", "vgg11", "vgg13_bn", "resnet34", "resnet101", "resnext50_32x4d"),
    *("wide_resnet50_2", "densenet169", "regnet_x_400mf", "mobilenet_v2", "convnext_small"),
)
BY_GHN3 = (
    *("resnet34", "densenet121", "regnet_x_400mf", "regnet_y_400mf", "mobilenet_v3_small"),
    *("convnext_tiny", "squeezenet1_1", "mnasnet0_75", "shufflenet_v2_x1_0", "efficientnet_b0"),
    *("swin_t", "vit_b_32"),
)
# Its first row is a class token's, which the public code leaves as it was drawn.
RANDOM = {"encoder.pos_embedding"}


def public(module: str) -> object:
    pytest.importorskip(module, reason=f"{module.partition('.')[0]} is not importable")
    return importlib.import_module(module)


def changed(model: nn.Module, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that a public code has predicted; it leaves some as they are."""
    named = model.named_parameters()
    return {n: p.detach() for n, p in named if n not in RANDOM and not torch.equal(p, before[n])}


def compare(name: str, ours: nn.Module, theirs: nn.Module) -> None:
    torch.manual_seed(0)
    one, other = models.get_model(name).eval(), models.get_model(name).eval()
    before = {n: p.detach().clone() for n, p in other.named_parameters()}
    theirs(other)
    ghn_fast.predict(one, ours)
    expected = changed(other, before)
    assert len(expected) > 0.8 * len(before)
    for parameter, value in expected.items():
        found = one.get_parameter(parameter).detach()
        assert (found - value).norm() <= 1e-4 * value.norm(), parameter


@pytest.mark.parametrize("name", BY_PPUDA)
def test_ghn2(name: str) -> None:
    peer = public("ppuda.ghn.nn")
    torch.manual_seed(1)
    ours = ghn2(**IMAGENET).eval()
    theirs = peer.GHN(**ours.config.to_dict(), debug_level=0).eval()
    theirs.load_state_dict(ours.state_dict())
    compare(name, ours, theirs)


@pytest.mark.parametrize("name", BY_GHN3)
def test_ghn3(name: str) -> None:
    peer = public("ghn3.nn")
    torch.manual_seed(1)
    ours = ghn3("t").eval()
    shape = ours.config.max_shape
    theirs = peer.GHN3(shape, 1000, 64, weight_norm=True, ve=True, layernorm=True, pretrained=True)
    theirs.load_state_dict(ours.state_dict())
    theirs.fix_embed_layers()
    compare(name, ours, theirs.eval())
