"""Networks with tables of positions or flattened maps run on images of every usual size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ghn_fast.nets import DARTS, Network, check_image_size, sample_net_args


@pytest.mark.parametrize("size", [32, 64, 96, 128, 224])
def test_a_network_with_attention_takes_images_of_other_sizes(size: int) -> None:
    is_large = size > 32
    index = next(
        i for i in range(100) if "msa" in str(sample_net_args("train", 0, i, is_large)["genotype"])
    )
    net_args = {**sample_net_args("train", 0, index, is_large), "C": 8}
    network = Network(num_classes=4, is_imagenet_input=is_large, **net_args)
    with torch.no_grad():
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 4)


def _flattening(is_large: bool, **changed: Any) -> Network:
    arguments: dict[str, Any] = {"n_cells": 3, "fc_layers": 2, "fc_dim": 16, "glob_avg": False}
    return Network(4, 5, DARTS, is_imagenet_input=is_large, **{**arguments, **changed})


@pytest.mark.parametrize("size", [8, 16, 24, 32, 64, 96, 128, 224])
@pytest.mark.parametrize("stem", [{}, {"stem_pool": True}, {"stem_type": 1}])
def test_a_network_without_global_pooling_does_too(size: int, stem: dict[str, Any]) -> None:
    is_large = size > 32
    check_image_size(size, is_large)
    with torch.device("meta"):
        assert _flattening(is_large, **stem)(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_maps_of_the_usual_size_are_flattened_as_they_are() -> None:
    torch.manual_seed(0)
    network = _flattening(False).eval()
    seen: list[torch.Tensor] = []
    network.cells[-1].register_forward_hook(lambda *hooked: seen.append(hooked[2]))
    with torch.no_grad():
        logits = network(torch.randn(2, 3, 32, 32))
        assert logits.equal(network.classifier(seen[0].flatten(1)))


@pytest.mark.parametrize(
    ("size", "is_large", "nearest"),
    [(33, True, 32), (90, True, 96), (4, False, 8), (20, False, 16)],
)
def test_sizes_that_cannot_be_halved_are_refused(size: int, is_large: bool, nearest: int) -> None:
    with pytest.raises(ValueError, match=f"{size} pixels cannot be, .* take {nearest}"):
        check_image_size(size, is_large)
