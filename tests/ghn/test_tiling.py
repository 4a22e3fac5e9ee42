from __future__ import annotations

import math

import pytest
import torch

from ghn_fast.ghn.place.tiling import normalise, repeat, weight_scale


def test_tile_repeats_and_cuts() -> None:
    block = torch.arange(6.0).view(1, 2, 3)
    assert repeat(block, (3, 5)).tolist() == [
        [[0, 1, 2, 0, 1], [3, 4, 5, 3, 4], [0, 1, 2, 0, 1]],
    ]


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        ((64, 16, 3, 3), math.sqrt(2 / (16 * 9))),
        ((64, 1, 3, 3), math.sqrt(1 / 9)),  # depthwise: no ReLU follows
        ((64, 16, 1, 7), math.sqrt(1 / (16 * 7))),  # the first of a 1x7 and 7x1 pair
        ((64, 16, 7, 1), math.sqrt(2 / (16 * 7))),
        ((10, 64), math.sqrt(2 / 64)),
    ],
)
def test_weight_scale(shape: tuple[int, ...], scale: float) -> None:
    assert weight_scale(shape) == pytest.approx(scale)


def test_ranges(generator: torch.Generator) -> None:
    values = 4 * torch.randn(2, 50, generator=generator)
    norm = normalise(values, "norm_weight")
    assert (norm > 0).all()
    assert (norm < 2).all()
    torch.testing.assert_close(normalise(values, "bias"), torch.tanh(values / 5))
