"""A weight gets the values that it would have as an nn.Linear or nn.Conv2d, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ghn_fast
from ghn_fast.ghn import GHN, ghn2, make_plan
from ghn_fast.ghn.place.keep import STACKED
from ghn_fast.graph import Graph, GraphBatch


class Net(nn.Module):
    """A layer of a plain parameter between a linear layer and the classifier."""

    def __init__(self, shape: tuple[int, ...], run: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Linear(20, 72)
        self.weight, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.zeros(96))
        self.run = run
        self.last = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.run(self.stem(x), self.weight) + self.bias).relu())


WAYS: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "matmul": ((72, 96), lambda x, w: x @ w),
    "einsum": ((72, 96), lambda x, w: torch.einsum("bi,io->bo", x, w)),
    "heads out": ((72, 6, 16), lambda x, w: torch.einsum("bi,ihk->bhk", x, w).flatten(1)),
    # No view: the dimensions of the outputs lie in another order than they come out in.
    "heads in another order": (
        (72, 16, 6),
        lambda x, w: torch.einsum("bi,ikh->bhk", x, w).flatten(1),
    ),
}


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2().eval()


X = torch.zeros(2, 20)


def as_linear(weight: Tensor, how: str) -> Tensor:
    """The weight as the nn.Linear that computes the same has it."""
    return weight.transpose(1, 2).flatten(1).T if "another" in how else weight.flatten(1).T


@pytest.mark.parametrize("how", WAYS)
def test_the_values_of_the_linear_layer(ghn: GHN, how: str) -> None:
    model = ghn_fast.predict(Net(*WAYS[how]), ghn, X)
    plain = ghn_fast.predict(Net((96, 72), F.linear), ghn, X)
    assert torch.equal(as_linear(model.weight, how), plain.weight)
    assert torch.equal(model.last.weight, plain.last.weight)
    x = torch.randn(4, 20)
    assert torch.allclose(model(x), plain(x), atol=1e-5)


@pytest.mark.parametrize("how", WAYS)
def test_in_training(ghn: GHN, how: str) -> None:
    written = ghn_fast.predict(Net(*WAYS[how]), ghn, X)
    attached, leaved = Net(*WAYS[how]), Net(*WAYS[how])
    graph = Graph.from_model(attached, X)
    ghn.train()(attached, graph)
    leaves = ghn.attach_leaves([leaved], [graph])
    gradients = []
    for model in (attached, leaved):
        assert torch.allclose(model.weight, written.weight, atol=1e-6)
        ghn.zero_grad()
        model(torch.ones(4, 20)).square().mean().backward()
        if model is leaved:
            leaves.backward()
        gradients.append([p.grad for p in ghn.decoder.parameters() if p.grad is not None])
    ghn.eval()
    assert len(gradients[0]) == len(gradients[1]) > 0
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_kernels_as_keras_has_them(ghn: GHN) -> None:
    class Keras(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, 3, 80))
            self.bias = nn.Parameter(torch.zeros(80))
            self.last = nn.Linear(80, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.weight.permute(3, 2, 0, 1), self.bias)
            return self.last(x.relu().mean((2, 3)))

    class Torch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 80, 3), nn.Linear(80, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x).relu().mean((2, 3)))

    x = torch.zeros(2, 3, 8, 8)
    keras, plain = ghn_fast.predict(Keras(), ghn, x), ghn_fast.predict(Torch(), ghn, x)
    assert torch.equal(keras.weight.permute(3, 2, 0, 1), plain.conv.weight)


def test_gpt2_has_linear_layers(ghn: GHN) -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    x = torch.zeros(2, 5, 72)
    stored = ghn_fast.predict(nn.Sequential(conv1d(96, 72), nn.ReLU(), nn.Linear(96, 10)), ghn, x)
    plain = ghn_fast.predict(nn.Sequential(nn.Linear(72, 96), nn.ReLU(), nn.Linear(96, 10)), ghn, x)
    assert torch.equal(stored[0].weight.T, plain[0].weight)


def test_a_stack_of_matrices_is_not_decoded(ghn: GHN) -> None:
    model = Net((4, 96, 72), lambda x, w: torch.einsum("bi,eoi->beo", x, w).mean(1))
    plan = make_plan(GraphBatch([Graph.from_model(model, X)]), ghn.config, [model])
    assert plan.kept[0]["weight"] == STACKED
    values = model.weight.detach().clone()
    ghn_fast.predict(model, ghn, X)
    assert torch.equal(model.weight, values)
    ghn_fast.predict(model, ghn, X, fill=True)
    assert model.weight.std().item() == pytest.approx(72**-0.5, rel=0.05)
