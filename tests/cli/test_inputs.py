from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.cli.errors import UsageError
from ghn_fast.cli.inputs import make_inputs


class TwoTowers(nn.Module):
    """Its inputs have the names that transformers gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tokens = nn.Conv2d(5, 4, 3), nn.Embedding(50, 4)

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        return self.conv(pixel_values).mean((2, 3)) + self.tokens(input_ids).mean(1)


class Tower(TwoTowers):
    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        return self.conv(images)


def test_none_without_options() -> None:
    assert make_inputs(Tower(), None, None) is None


def test_shape_of_one_example() -> None:
    (images,) = make_inputs(Tower().double(), "5x9x7", None)
    assert images.shape == (2, 5, 9, 7)
    assert images.dtype == torch.float64


def test_by_name_where_the_model_has_such() -> None:
    inputs = make_inputs(TwoTowers(), "5x9x7", 6)
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "pixel_values": (2, 5, 9, 7),
        "input_ids": (2, 6),
    }
    assert inputs["input_ids"].max() < 50
    TwoTowers()(**inputs)


@pytest.mark.parametrize(
    ("shape", "token_ids"), [("99999999999x9999x9999", None), (f"{10**30}", None), (None, 10**30)]
)
def test_an_example_that_is_too_large(shape: str | None, token_ids: int | None) -> None:
    with pytest.raises(UsageError, match="an example has at most"):
        make_inputs(TwoTowers(), shape, token_ids)


@pytest.mark.parametrize("shape", ["3,64,64", "3x", "0x4", "", "3x-1"])
def test_a_shape_that_is_none(shape: str) -> None:
    with pytest.raises(UsageError, match="such as 3x64x64"):
        make_inputs(Tower(), shape, None)
