"""Weights by their use: out, in and the kernel, whatever their storage."""

from __future__ import annotations

import pytest
import torch

from ghn_fast.graph import Layout, Storage

MAP = Layout(((-1,), (-1, 2, 3)), ((0,), (1,), (2,), (3,)))
CHANNELS_LAST = Layout(((-1,), (2, 3, -1)), ((0,), (3,), (1,), (2,)))
TRANSPOSED = Layout(((-1,), (-1,)), ((1,), (0,)))


@pytest.mark.parametrize("layout", [MAP, CHANNELS_LAST])
def test_view_is_the_same_memory_and_stored_its_inverse(layout: Layout) -> None:
    stored = torch.arange(5 * 24.0).view(5, 24)
    kernel = layout.view(stored)
    assert kernel.shape == layout.shape(stored.shape) == (5, 4, 2, 3)
    assert kernel.data_ptr() == stored.data_ptr()
    assert torch.equal(layout.stored(kernel, stored.shape), stored)


def test_a_linear_layer_over_a_map_is_the_convolution() -> None:
    x, weight = torch.randn(2, 4, 2, 3), torch.randn(5, 24)
    convolved = torch.nn.functional.conv2d(x, MAP.view(weight)).flatten(1)
    assert torch.allclose(x.flatten(1) @ weight.T, convolved, atol=1e-5)
    last = torch.nn.functional.conv2d(x, CHANNELS_LAST.view(weight)).flatten(1)
    assert torch.allclose(x.permute(0, 2, 3, 1).flatten(1) @ weight.T, last, atol=1e-5)


def test_layouts_follow_each_other() -> None:
    storage = Storage((24, 5), (TRANSPOSED, MAP))
    stored = torch.randn(24, 5)
    assert torch.equal(storage.view(stored), MAP.view(stored.T))
    assert torch.equal(storage.stored(storage.view(stored)), stored)


def test_a_size_that_cannot_be_split_is_named() -> None:
    with pytest.raises(ValueError, match=r"25 elements cannot be split into \(-1, 2, 3\)"):
        MAP.shape((5, 25))
    with pytest.raises(ValueError, match="2 dimensions"):
        MAP.shape((5, 4, 3))
