"""Which parameters scale a branch that is added to a trunk, whatever they are called."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.graph.trace import trace

IMAGE = torch.zeros(2, 3, 8, 8)


class Block(nn.Module):
    """One convolution and factors for it."""

    def __init__(self, run: Callable[[Block, Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.stem, self.conv, self.other = (nn.Conv2d(n, 4, 1, dtype=dtype) for n in (3, 4, 4))
        self.a = nn.Parameter(torch.full((4,), 0.1))
        self.b = nn.Parameter(torch.full((1, 4, 1, 1), 0.1))
        self.token = nn.Parameter(torch.randn(4))
        self.run, self.dtype = run, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, self.stem(x.to(self.dtype)))


def roles(run: Callable[[Block, Tensor], Tensor], dtype: torch.dtype = torch.float32) -> set[str]:
    """The factors that are layer scales."""
    result = trace(Block(run, dtype), IMAGE)
    assert not result.unused.keys() - {"a", "b", "token", "other.weight", "other.bias"}
    return {name for name, role in result.other.items() if role == "layer_scale"}


def view(x: Tensor) -> Tensor:
    return x[:, None, None]


def in_place(m: Block, x: Tensor) -> Tensor:
    branch = m.conv(x)
    branch *= m.b
    branch += x
    return branch


def twice(m: Block, x: Tensor) -> Tensor:
    x = x + m.b * m.conv(x)
    return x + m.other(x) * m.b


BRANCHES: dict[str, tuple[set[str], Callable[[Block, Tensor], Tensor]]] = {
    "view": ({"a"}, lambda m, x: x + view(m.a) * m.conv(x)),
    "reshaped": (
        {"a"},
        lambda m, x: F.dropout(m.conv(x).mul(m.a.reshape(1, -1, 1, 1)), 0.1, False) + x,
    ),
    "channels last": (
        {"a"},
        lambda m, x: x + (m.a * m.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    ),
    "in place": ({"b"}, in_place),
    "two in turn": ({"a", "b"}, lambda m, x: x + view(m.a) * m.conv(x) + m.b * m.other(x)),
    "two that are summed": (
        {"a", "b"},
        lambda m, x: x + (view(m.a) * m.conv(x) + m.b * m.other(x)),
    ),
    "two that are stacked": (
        {"a", "b"},
        lambda m, x: x + torch.stack([view(m.a) * m.conv(x), m.b * m.other(x)]).sum(0),
    ),
    "of both": ({"b"}, lambda m, x: view(m.a) * x + m.b * m.conv(x)),
    "shared": ({"b"}, twice),
    "dense": ({"b"}, lambda m, x: torch.cat([m.b * m.conv(x), x], 1)),
    "on a token": ({"b"}, lambda m, x: view(m.token).expand(2, 4, 8, 8) + m.b * m.conv(x)),
    "projected trunk": ({"b"}, lambda m, x: m.other(x) + m.b * m.conv(x)),
}
OTHERS: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "a gain before a layer": lambda m, x: x + m.conv(m.b * x),
    "a gain and a shift": lambda m, x: m.b * m.conv(x) + view(m.a),
    "a mean of two": lambda m, x: m.b * m.conv(x) + (1 - m.b) * x,
    "a mean of layers": lambda m, x: view(m.a) * m.conv(x) + m.b * m.other(x),
    "a decay": lambda m, x: x + m.conv(x) * m.b.exp(),
    "a gate": lambda m, x: x + m.b.sigmoid() * m.conv(x),
    "in both ways": lambda m, x: x + m.b * m.conv(x) + m.other(x * m.b),
    "a factor of the trunk": lambda m, x: m.b * x + m.conv(x),
    "an output": lambda m, x: m.b * m.conv(x),
    "scaled noise": lambda m, x: m.conv(x) + m.b * torch.ones(2, 4, 8, 8),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_branch_is_scaled(name: str) -> None:
    expected, run = BRANCHES[name]
    assert roles(run) == expected


@pytest.mark.parametrize("name", OTHERS)
def test_other_factors_are_no_layer_scales(name: str) -> None:
    assert roles(OTHERS[name]) == set()


def test_scale_in_another_type() -> None:
    bfloat16 = torch.bfloat16
    assert roles(lambda m, x: x + m.b.to(x.dtype) * m.conv(x), bfloat16) == {"b"}
    assert roles(lambda m, x: x + view(m.a.bfloat16()) * m.conv(x), bfloat16) == {"a"}


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((3, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def test_what_is_called_so_needs_no_trunk() -> None:
    """As in MobileNetV4, where a block that changes the resolution has none."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), LayerScale(), nn.Conv2d(3, 3, 1))
    assert trace(model, IMAGE).other == {"1.gamma": "layer_scale"}


def test_run_for_real() -> None:
    def run(m: Block, x: Tensor) -> Tensor:
        return x + m.b * m.conv(x) if x.sum() >= -1e9 else x

    assert roles(run) == {"b"}
