from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ghn_fast.ghn.decode.corner_products import corner_products, corner_products_reference

CORNERS = [(2, 3), (5, 4), (5, 4), (1, 1), (2, 3)]
ROWS = [3, 1, 2, 4, 0]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(ROWS), 6), (5, 4, 6), (5, 4))
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    )


def test_products_and_gradients_are_those_of_slices() -> None:
    ours, theirs = inputs(), inputs()
    found = corner_products(*ours, CORNERS, ROWS)
    expected = corner_products_reference(*theirs, CORNERS, ROWS)
    weights = [torch.randn_like(value) for value in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    for values in (found, expected):
        sum((value * w).sum() for value, w in zip(values, weights, strict=True)).backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("copy_cost", [0, 1, 1000])
def test_without_gradients(copy_cost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By cut-out weights alone, and by wider products where those are cheaper."""
    monkeypatch.setattr("ghn_fast.ghn.decode.corner_products.COPY_COST", copy_cost)
    expected = corner_products_reference(*inputs(), CORNERS, ROWS)
    with torch.no_grad():
        found = corner_products(*inputs(), CORNERS, ROWS)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.detach())


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(lambda *args: corner_products(*args, CORNERS, ROWS), inputs())


def test_weights_alone() -> None:
    """Features that need no gradient, as where only the last layer is trained."""
    features, weight, bias = inputs()
    values = corner_products(features.detach(), weight, bias, CORNERS, ROWS)
    torch.cat([value.flatten() for value in values]).sum().backward()
    assert weight.grad is not None
    assert features.grad is None
