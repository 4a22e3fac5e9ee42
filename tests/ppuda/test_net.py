from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ghn_fast import nets
from ghn_fast.ppuda.deepnets1m.genotypes import DARTS, PDARTS, ViT, from_dict, to_dict
from ghn_fast.ppuda.deepnets1m.net import Network
from ghn_fast.ppuda.deepnets1m.ops import NormLayers, PosEnc

SMALL: dict[str, Any] = {"C": 8, "num_classes": 10, "n_cells": 3, "is_imagenet_input": False}
VIT: dict[str, Any] = {"genotype": ViT, "preproc": False, "C_mult": 1}


@pytest.mark.parametrize("arguments", [{"genotype": DARTS}, {"genotype": PDARTS}, VIT])
def test_output_is_a_pair(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = Network(**SMALL, **arguments, norm="bn").eval()
    core = nets.Network(**SMALL, **arguments, norm="bn").eval()
    core.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 32, 32)
    logits, auxiliary = network(images)
    assert auxiliary is None
    torch.testing.assert_close(logits, core(images))
    assert network.expected_input_sz == 32


@pytest.mark.parametrize(("norm", "tracks"), [("bn-track", True), ("bn", False), ("bnorm", False)])
def test_running_statistics(norm: str, tracks: bool) -> None:
    network = Network(**SMALL, genotype=DARTS, norm=norm)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    network(torch.randn(2, 3, 32, 32))
    for module in norms:
        assert module.track_running_stats is tracks
        assert (module.running_mean is not None) is tracks
    stem = network.stem[1]  # type: ignore[index]
    assert not tracks or stem.running_mean.abs().sum() > 0


def test_light_networks_have_no_memory() -> None:
    light, heavy = (Network(**SMALL, genotype=DARTS, norm="bn", light=on) for on in (True, False))
    assert all(parameter.is_meta for parameter in light.parameters())
    shapes = [
        {name: parameter.shape for name, parameter in network.named_parameters()}
        for network in (light, heavy)
    ]
    assert shapes[0] == shapes[1]


def test_what_is_not_offered() -> None:
    with pytest.raises(NotImplementedError, match="auxiliary"):
        Network(**SMALL, genotype=DARTS, auxiliary=True)
    with pytest.raises(ValueError, match="is_vit"):
        Network(**SMALL, genotype=DARTS, is_vit=True)
    network = Network(**SMALL, **VIT, is_vit=True)
    network.drop_path_prob = 0
    with pytest.raises(NotImplementedError, match=r"0\.2"):
        network.drop_path_prob = 0.2


def test_genotypes() -> None:
    assert from_dict(to_dict(PDARTS)) == PDARTS
    assert nn.LayerNorm in NormLayers
    assert PosEnc(8, 3).weight.shape == (1, 8, 3, 3)
