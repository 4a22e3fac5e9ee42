from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ghn_fast.train.pointwise import use_products


@pytest.mark.parametrize(
    ("channels", "outputs", "size", "options"),
    [
        (5, 7, 6, {}),
        (5, 7, 6, {"bias": False}),
        (5, 7, 7, {"stride": 2}),
        (40, 48, 2, {"stride": (1, 2), "bias": False}),
        (5, 7, 6, {"padding": "same"}),
    ],
)
def test_products_are_the_convolution(
    channels: int, outputs: int, size: int, options: dict[str, object]
) -> None:
    generator = torch.Generator().manual_seed(0)
    expected = nn.Conv2d(channels, outputs, 1, dtype=torch.float64, **options)  # type: ignore[arg-type]
    found = use_products(copy.deepcopy(expected))
    x = torch.randn(3, channels, size, size, dtype=torch.float64, generator=generator)
    results = []
    for module in (expected, found):
        inputs = x.clone().requires_grad_()
        out = module(inputs)
        out.square().sum().backward()
        results.append([out, inputs.grad, *(parameter.grad for parameter in module.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert "forward" in vars(found)


def test_other_convolutions_stay() -> None:
    others = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, padding=1)
    )
    use_products(others)
    assert not any("forward" in vars(module) for module in others)


def test_a_parameter_that_is_replaced_is_used() -> None:
    module = use_products(nn.Conv2d(3, 2, 1, bias=False))
    weight = torch.ones(2, 3, 1, 1, requires_grad=True)
    module._parameters["weight"] = weight  # type: ignore[assignment]
    x = torch.ones(1, 3, 2, 2)
    out = module(x)
    torch.testing.assert_close(out, torch.full((1, 2, 2, 2), 3.0))
    out.sum().backward()
    assert weight.grad is not None
    assert weight.grad.shape == weight.shape
