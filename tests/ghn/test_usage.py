"""A weight gets the values that it would have as an nn.Linear or nn.Conv2d, wherever they lie."""

from __future__ import annotations

import copy
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


SCALED: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "product": ((96, 72), lambda x, w: F.linear(x, w * 0.25)),
    "number first": ((96, 72), lambda x, w: F.linear(x, 0.25 * w)),
    "quotient": ((96, 72), lambda x, w: F.linear(x, w / 4)),
    "constant tensor": ((96, 72), lambda x, w: F.linear(x, w * torch.tensor(0.25))),
    "twice": ((96, 72), lambda x, w: F.linear(x, w * 0.5 / 2)),
    "converted": ((96, 72), lambda x, w: F.linear(x, (w.double() * 0.25).float())),
    "viewed": ((96, 72), lambda x, w: F.linear(x, (w.view(-1) * 0.25).view(96, 72))),
    "transposed": ((72, 96), lambda x, w: x @ (w * 0.25)),
    "copied": ((72, 96), lambda x, w: F.linear(x, w.T.contiguous() * 0.25)),
}


@pytest.mark.parametrize("how", SCALED)
def test_a_weight_that_is_scaled_by_a_constant(ghn: GHN, how: str) -> None:
    """Equalised learning rates: the layer computes with what the plain one has."""
    (rows, *_), _ = SCALED[how]
    model = ghn_fast.predict(Net(*SCALED[how]), ghn, X)
    plain = ghn_fast.predict(Net((96, 72), F.linear), ghn, X)
    weight = model.weight if rows == 96 else model.weight.T
    torch.testing.assert_close(weight / 4, plain.weight)


@pytest.mark.parametrize("decoder", ["tiles", "groups"])
def test_a_scaled_weight_in_training(ghn: GHN, decoder: str) -> None:
    model = Net(*SCALED["product"])
    graph = Graph.from_model(model, X)
    written = ghn_fast.predict(Net(*SCALED["product"]), ghn, X, graph=graph)
    if decoder == "tiles":
        ghn.train()(model, graph)
        ghn.eval()
        found = model.weight
    else:
        plan = make_plan(GraphBatch([graph]), ghn.config, [model])
        groups = ghn.predict_groups(GraphBatch([graph]), plan)
        found = next(values[0] for group, values in groups if group.factor != 1)
    torch.testing.assert_close(found, written.weight)


@pytest.mark.parametrize(
    "run",
    [
        lambda x, w: F.linear(x, (w - w.mean()) * 0.25),  # standardised: its size is its own
        lambda x, w: F.linear(x, (w * 0.25).round()),
        lambda x, w: F.linear(x, w * torch.ones(96, 1)),  # a mask
    ],
)
def test_what_is_no_multiple_of_the_weight(
    ghn: GHN, run: Callable[[Tensor, Tensor], Tensor]
) -> None:
    model = ghn_fast.predict(Net((96, 72), run), ghn, X)
    plain = ghn_fast.predict(Net((96, 72), F.linear), ghn, X)
    assert torch.equal(model.weight, plain.weight)


def test_graphs_that_differ_in_a_factor_have_plans_of_their_own(ghn: GHN) -> None:
    plain = ghn_fast.predict(Net((96, 72), F.linear), ghn, X).weight
    for factor in (0.5, 2.0):
        model = Net((96, 72), lambda x, w, factor=factor: F.linear(x, w * factor))
        torch.testing.assert_close(ghn_fast.predict(model, ghn, X).weight * factor, plain)


class Sixteenth(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 16

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight * 16


def test_a_scaling_parametrization(ghn: GHN) -> None:
    layers = nn.Linear(20, 72), nn.ReLU(), nn.Linear(72, 10)
    plain = ghn_fast.predict(nn.Sequential(*copy.deepcopy(layers)), ghn, X)
    nn.utils.parametrize.register_parametrization(layers[0], "weight", Sixteenth())
    model = ghn_fast.predict(nn.Sequential(*layers), ghn, X)
    torch.testing.assert_close(model[0].weight, plain[0].weight)


@pytest.mark.parametrize("how", ["householder", "matrix_exp", "cayley"])
@pytest.mark.parametrize("trivial", [True, False])
def test_orthogonal_weights_stay(ghn: GHN, how: str, trivial: bool) -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 10))
    nn.utils.parametrizations.orthogonal(model[0], orthogonal_map=how, use_trivialization=trivial)
    before = model[0].weight.detach().clone()
    _, report = ghn_fast.predict(model, ghn, X, return_report=True)
    assert torch.equal(model[0].weight, before)
    assert list(report.unpredicted) == ["0.parametrizations.weight.original"]


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
