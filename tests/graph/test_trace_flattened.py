"""Linear layers over flattened maps are noted as the convolutions that they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.graph import Graph


class Head(nn.Module):
    """A convolution, a way to flatten its map of 8 x 6 x 5, a linear layer and another."""

    def __init__(self, flatten: Callable[[Tensor], Tensor], features: int = 240) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.flatten = flatten
        self.hidden = nn.Linear(features, 16)
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(self.flatten(self.stem(x))).relu())


IMAGE = torch.zeros(2, 3, 6, 5)
FLATTENINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: x.flatten(1),
    "function": lambda x: torch.flatten(x, 1),
    "module": nn.Flatten(),
    "view": lambda x: x.view(x.size(0), -1),
    "view of a known size": lambda x: x.view(-1, 240),
    "reshape": lambda x: x.reshape(len(x), -1),
    "then dropout and an activation": lambda x: nn.Dropout()(x.flatten(1)).relu(),
    "channels last": lambda x: x.permute(0, 2, 3, 1).flatten(1),
    "columns first": lambda x: x.transpose(2, 3).reshape(len(x), -1),
}


def flat_nodes(model: nn.Module, x: Tensor) -> dict[str, tuple[int, ...]]:
    """{parameter: shape over the map}"""
    graph = Graph.from_model(model, x)
    return {
        node.name: node.over_map().shape or () for node in graph.nodes if node.kernel is not None
    }


@pytest.mark.parametrize("how", FLATTENINGS)
def test_flattened_map(how: str) -> None:
    model = Head(FLATTENINGS[how])
    assert flat_nodes(model, IMAGE) == {"hidden.weight": (16, 8, 6, 5)}
    node = next(n for n in Graph.from_model(model, IMAGE).nodes if n.kernel is not None)
    assert node.shape == (16, 240)
    x = torch.randn(2, 3, 6, 5)
    assert node.kernel is not None
    kernel, features = node.kernel.view(model.hidden.weight.detach()), model.stem(x)
    expected = model.hidden(FLATTENINGS["flatten"](features))
    if how == "channels last" or how == "columns first":
        expected = model.hidden(model.flatten(features))
    convolved = nn.functional.conv2d(features, kernel, model.hidden.bias).flatten(1)
    assert torch.allclose(convolved, expected, atol=1e-5)


def test_patches_written_as_reshape_and_linear() -> None:
    class Patches(Head):
        def forward(self, x: Tensor) -> Tensor:
            patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1)
            return self.last(self.hidden(patches.reshape(len(x), 4, -1)).mean(1))

    assert flat_nodes(Patches(nn.Identity(), 48), torch.zeros(2, 3, 8, 8)) == {
        "hidden.weight": (16, 3, 4, 4)
    }


NO_MAPS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "one position": (lambda x: nn.AdaptiveAvgPool2d(1)(x).flatten(1), 8),
    "tokens": (lambda x: x.flatten(2).transpose(1, 2).mean(1), 8),
    "one-dimensional": (lambda x: x.mean(3).flatten(1), 48),
    "another shape since": (lambda x: x.flatten(1).view(len(x), 24, 10).flatten(1), 240),
    "mixed with something else": (lambda x: x.flatten(1) * x.mean((2, 3)).sum(1, True), 240),
}


@pytest.mark.parametrize("how", NO_MAPS)
def test_what_is_no_flattened_map(how: str) -> None:
    assert flat_nodes(Head(*NO_MAPS[how]), IMAGE) == {}


def test_tokens_of_a_linear_layer_are_no_map() -> None:
    class Tokens(Head):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x.flatten(2).transpose(1, 2)).view(len(x), 6, 5, 8)
            return self.last(self.hidden(x.flatten(1)))

    model = Tokens(nn.Identity())
    model.embed = nn.Linear(3, 8)
    assert flat_nodes(model, IMAGE) == {}
