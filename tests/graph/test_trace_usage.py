"""Weights are read by their use: the node has the shape of the layer that computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.graph import Graph, Node

IN, OUT = 6, 10


class Layer(NamedTuple):
    """A weight of some shape, and how it is applied to (2, 3, 6)."""

    shape: tuple[int, ...]
    run: Callable[[Tensor, Tensor], Tensor]


LINEAR = {
    "linear": Layer((OUT, IN), F.linear),
    "linear of the transposed": Layer((IN, OUT), lambda x, w: F.linear(x, w.T)),
    "matmul": Layer((IN, OUT), lambda x, w: x @ w),
    "from the left": Layer((OUT, IN), lambda x, w: (w @ x.mT).mT),
    "of the transposed": Layer((OUT, IN), lambda x, w: x @ w.t()),
    "mm": Layer((IN, OUT), lambda x, w: torch.mm(x[0], w)),
    "bmm of one": Layer((1, IN, OUT), lambda x, w: torch.bmm(x.flatten(0, 1)[None], w)),
    "addmm": Layer((IN, OUT), lambda x, w: torch.addmm(torch.zeros(OUT), x[0], w)),
    "addmm from the left": Layer(
        (OUT, IN), lambda x, w: torch.addmm(torch.zeros(OUT, 1), w, x[0].T).T
    ),
    "tensordot": Layer((IN, OUT), lambda x, w: torch.tensordot(x, w, 1)),
    "tensordot of lists": Layer((OUT, IN), lambda x, w: torch.tensordot(x, w, ([2], [1]))),
    "einsum": Layer((IN, OUT), lambda x, w: torch.einsum("bti,io->bto", x, w)),
    "einsum, weight first": Layer((OUT, IN), lambda x, w: torch.einsum("oi,bti->bto", w, x)),
    "einsum without result": Layer((IN, OUT), lambda x, w: torch.einsum("abc,cd", x, w)),
    "einsum of the rest": Layer((IN, OUT), lambda x, w: torch.einsum("...i,io->...o", x, w)),
    "einsum of three": Layer(
        (IN, OUT), lambda x, w: torch.einsum("io,bti,bt->bto", w, x, torch.ones(2, 3))
    ),
    "einsum of three, the weight last": Layer(
        (OUT, IN), lambda x, w: torch.einsum("bt,bti,oi->bto", torch.ones(2, 3), x, w)
    ),
    "heads out": Layer((IN, 2, 5), lambda x, w: torch.einsum("bti,ihk->bthk", x, w).flatten(2)),
    "heads in": Layer(
        (2, 3, OUT), lambda x, w: torch.einsum("bthk,hko->bto", x.unflatten(2, (2, 3)), w)
    ),
    "in another type": Layer((IN, OUT), lambda x, w: x.double() @ w.double()),
    "permuted in another type": Layer((OUT, IN), lambda x, w: x @ w.T.to(x.dtype)),
    "contiguous copy": Layer((OUT, IN), lambda x, w: x @ w.T.contiguous()),
    "scaled": Layer((OUT, IN), lambda x, w: 3 * (x @ (w.T / 3))),
    "split outputs": Layer((IN, OUT), lambda x, w: x @ w.view(IN, 2, 5).flatten(1)),
}

KERNELS = {
    "conv2d": Layer((OUT, IN, 3, 5), F.conv2d),
    "channels last kernel": Layer((3, 5, IN, OUT), lambda x, w: F.conv2d(x, w.permute(3, 2, 0, 1))),
    "copied": Layer((3, 5, IN, OUT), lambda x, w: F.conv2d(x, w.permute(3, 2, 0, 1).contiguous())),
    "standardised": Layer(
        (3, 5, IN, OUT), lambda x, w: F.conv2d(x, w.permute(3, 2, 0, 1) / w.std() * w.std())
    ),
    "depthwise": Layer((3, 5, 1, IN), lambda x, w: F.conv2d(x, w.permute(3, 2, 0, 1), groups=IN)),
    "flat kernel": Layer((OUT, IN * 15), lambda x, w: F.conv2d(x, w.view(OUT, IN, 3, 5))),
}


class Net(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(layer.shape))
        self.run = layer.run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, self.weight).relu()


def weight_node(net: nn.Module, x: Tensor) -> Node:
    (node,) = (n for n in Graph.from_model(net, x).nodes if n.parameter == "weight")
    return node


def as_used(node: Node, weight: Tensor) -> Tensor:
    return weight if node.storage is None else node.storage.view(weight)


@pytest.mark.parametrize("how", LINEAR)
def test_linear_layers(how: str) -> None:
    net, x = Net(LINEAR[how]), torch.randn(2, 3, IN)
    node = weight_node(net, x)
    assert (node.type, node.shape) == ("conv", (OUT, IN))
    weight = as_used(node, net.weight.detach())
    expected = F.linear(x, weight).flatten()
    found = net.run(x, net.weight.detach()).to(x.dtype).flatten()
    assert torch.allclose(found, expected[: len(found)], atol=1e-5)  # some take one example
    if node.storage is not None:
        assert torch.equal(node.storage.stored(weight), net.weight)


@pytest.mark.parametrize("how", KERNELS)
def test_convolutions(how: str) -> None:
    net, x = Net(KERNELS[how]), torch.randn(2, IN, 7, 7)
    node, depthwise = weight_node(net, x), how == "depthwise"
    assert node.shape == ((IN, 1, 3, 5) if depthwise else (OUT, IN, 3, 5))
    weight = as_used(node, net.weight.detach())
    expected = F.conv2d(x, weight, groups=IN if depthwise else 1)
    assert torch.allclose(net.run(x, net.weight), expected, atol=1e-5)
    if node.storage is not None:
        assert torch.equal(node.storage.stored(weight), net.weight)


def test_stored_as_used_is_as_before() -> None:
    for layer in (LINEAR["linear"], KERNELS["conv2d"]):
        x = torch.zeros(2, 3, IN) if len(layer.shape) == 2 else torch.zeros(2, IN, 7, 7)
        assert weight_node(Net(layer), x).storage is None
    squeezed = Layer((OUT, IN, 1), lambda x, w: F.linear(x, w.squeeze(-1)))
    assert weight_node(Net(squeezed), torch.zeros(2, 3, IN)).shape == (OUT, IN, 1)
    part = Layer((3 * OUT, IN), lambda x, w: F.linear(x, w[OUT : 2 * OUT]))
    assert weight_node(Net(part), torch.zeros(2, 3, IN)).shape == (3 * OUT, IN)


STACKS = {
    "bmm": Layer((2, IN, OUT), torch.bmm),
    "matmul": Layer((2, IN, OUT), lambda x, w: x @ w),
    "einsum over the batch": Layer((3, OUT, IN), lambda x, w: torch.einsum("bei,eoi->beo", x, w)),
    "experts of one input": Layer((4, OUT, IN), lambda x, w: torch.einsum("bti,eoi->bteo", x, w)),
    "one at a time": Layer((4, OUT, IN), lambda x, w: F.linear(x, w[0]) + F.linear(x, w[1])),
    "grouped": Layer((2, IN, OUT), lambda x, w: grouped_mm(x.flatten(0, 1), w)),
    "looked up": Layer((4, IN, OUT), lambda x, w: torch.bmm(x, w[torch.tensor([3, 0])])),
    "one in another type": Layer((4, OUT, IN), lambda x, w: F.linear(x, w[1].to(x.dtype))),
    "baddbmm": Layer((2, IN, OUT), lambda x, w: torch.baddbmm(torch.zeros(1), x, w)),
}


def grouped_mm(x: Tensor, w: Tensor) -> Tensor:
    if not hasattr(F, "grouped_mm"):
        pytest.skip("PyTorch is older than torch.nn.functional.grouped_mm")
    return F.grouped_mm(x, w, offs=torch.tensor([2, 6]).int())


@pytest.mark.parametrize("how", STACKS)
def test_stacked_matrices(how: str) -> None:
    node = weight_node(Net(STACKS[how]), torch.zeros(2, 3, IN))
    assert node.shape == (OUT, IN)
    assert node.storage is not None
    assert node.storage.is_stack


@pytest.mark.parametrize("how", ["linear", "linear of the transposed", "matmul", "addmm"])
def test_a_model_that_runs_for_real(how: str) -> None:
    def run(x: Tensor, weight: Tensor) -> Tensor:
        return LINEAR[how].run(x, weight) if float(x.sum()) == 0 else x

    node = weight_node(Net(Layer(LINEAR[how].shape, run)), torch.zeros(2, 3, IN))
    assert node.shape == (OUT, IN)
    assert (node.storage is None) == (how == "linear")


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(IN, OUT))
        self.other = nn.Parameter(torch.randn(3, OUT))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear((x @ self.weight).relu(), self.other)


def test_a_scripted_model() -> None:
    x = torch.zeros(2, 3, IN)
    expected = Graph.from_model(Scripted(), x).nodes
    assert Graph.from_model(torch.jit.script(Scripted()), x).nodes == expected


def test_a_flattened_map_times_a_weight() -> None:
    net = Net(Layer((4 * 9, OUT), lambda x, w: x.flatten(1) @ w))
    node = weight_node(net, torch.zeros(2, 4, 3, 3)).over_map()
    assert node.shape == (OUT, 4, 3, 3)
    x = torch.randn(2, 4, 3, 3)
    convolved = F.conv2d(x, as_used(node, net.weight.detach())).flatten(1)
    assert torch.allclose(convolved, x.flatten(1) @ net.weight, atol=1e-5)


def test_what_was_computed_of_a_weight_is_no_view_of_it() -> None:
    """XLNet multiplies positions, which are constants, by a weight before it is used."""
    keys = Layer(
        (IN, 2, 5),
        lambda x, w: torch.einsum("bhk,jchk->bhj", x.flatten()[:30].view(3, 2, 5), positions_of(w)),
    )
    graph = Graph.from_model(Net(keys), torch.zeros(2, 3, IN))
    assert all(node.storage is None for node in graph.nodes)


def positions_of(weight: Tensor) -> Tensor:
    return torch.einsum("jci,ihk->jchk", torch.ones(3, 2, IN), weight)


def test_another_width() -> None:
    small, large = (Net(Layer((IN, out), lambda x, w: x @ w)) for out in (OUT, 24))
    graph = Graph.from_model(small, torch.zeros(2, 3, IN)).matched(large)
    assert graph.nodes[1] == weight_node(large, torch.zeros(2, 3, IN))


class Several(nn.Module):
    """Weights of several parameters that take part in one product."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({n: torch.randn(shape) for n, shape in shapes.items()})
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, *self.weights.values())


def shapes_of(model: Several) -> dict[str | None, tuple[int, ...] | None]:
    return {n.parameter: n.shape for n in Graph.from_model(model, torch.zeros(2, IN)).nodes[1:]}


def test_each_factor_of_an_einsum_is_a_layer() -> None:
    model = Several(
        {"a": (IN, 3), "b": (3, OUT)}, lambda x, a, b: torch.einsum("ro,ir,bi->bo", b, a, x)
    )
    assert shapes_of(model) == {"weights.a": (3, IN), "weights.b": (OUT, 3)}


@pytest.mark.parametrize("dim", [0, 1])
def test_each_of_concatenated_weights_is_a_layer(dim: int) -> None:
    shapes = {"a": (4, IN), "b": (OUT, IN)} if dim == 0 else {"a": (OUT, 2), "b": (OUT, IN - 2)}
    model = Several(shapes, lambda x, a, b: F.linear(x, torch.cat([a, b], dim)))
    graph = Graph.from_model(model, torch.zeros(2, IN))
    assert {n.parameter: n.shape for n in graph.nodes[1:]} == {
        f"weights.{name}": shape for name, shape in shapes.items()
    }
    assert graph.edges.tolist() == [[0, 1], [0, 2]]


def test_concatenated_weights_that_are_stored_transposed() -> None:
    shapes = {"a": (IN, 4), "b": (IN, OUT)}
    model = Several(shapes, lambda x, a, b: x @ torch.cat([a, b], 1))
    assert shapes_of(model) == {"weights.a": (4, IN), "weights.b": (OUT, IN)}


class Quantised(Tensor):
    """Rounded values and their scale, as libraries of quantisation keep them."""

    values: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, scale: Tensor) -> Quantised:
        made = Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)
        made.values, made.scale = values, scale
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*(a.values * a.scale if isinstance(a, cls) else a for a in args))


def test_a_weight_that_is_wrapped_on_its_way() -> None:
    def run(x: Tensor, weight: Tensor) -> Tensor:
        scale = weight.abs().max() / 127
        return F.linear(x, Quantised((weight / scale).round(), scale))

    assert shapes_of(Several({"a": (OUT, IN)}, run)) == {"weights.a": (OUT, IN)}
