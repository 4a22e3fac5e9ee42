"""Networks with tables of positions run on images of every usual size."""

from __future__ import annotations

import pytest
import torch

from ghn_fast.nets import Network, sample_net_args


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
