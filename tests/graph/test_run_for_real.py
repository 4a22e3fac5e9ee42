"""Graphs of models whose course depends on values: they run for real, and lose nothing by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ghn_fast.graph.trace.tracer import trace
from ghn_fast.graph.trace.unused import UNREACHED
from tests.graph.test_trace import IMAGE, Runs, chain, edges, names

X = torch.zeros(2, 8)


def looks(x: Tensor) -> Tensor:
    """Makes a model's course depend on values."""
    return x / 10 if x.abs().max() > 100 else x


class WithBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(8))
        self.constant = torch.ones(8)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean.to(x.device).float().contiguous()
        return self.b(looks(self.a((x - mean) * self.constant.to(x.device))))


def test_tensors_of_the_models_own_that_come_back_unchanged() -> None:
    model = WithBuffer()
    result = trace(model, X)
    assert edges(result) == chain("input", "a.weight", "a.bias", "b.weight", "b.bias")
    assert not model.mean.any()


CONSTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": lambda x: torch.zeros(8),
    "full": lambda x: torch.full((8,), 2.0),
    "ones_like": lambda x: torch.ones_like(x),
    "new_zeros": lambda x: x.new_zeros(8),
    "tensor": lambda x: torch.tensor([1.0]),
    "arange": lambda x: torch.arange(8),
    "numpy": lambda x: torch.from_numpy(np.ones(8, np.float32)),
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_constants_that_the_model_makes(kind: str) -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        x = looks(model.a(x))
        return model.b(x + CONSTANTS[kind](x))

    result = trace(Runs(run, a=nn.Linear(8, 8), b=nn.Linear(8, 4)), X)
    assert edges(result) == chain("input", "a.weight", "a.bias", "b.weight", "b.bias")


ARRAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "from_numpy": lambda x: torch.from_numpy(np.log1p(x.detach().abs().numpy())),
    "ufunc": lambda x: np.abs(x.detach()),
    "asarray": lambda x: torch.tensor(np.asarray(x.detach())),
    "tolist": lambda x: torch.tensor(x.tolist()),
    "unseen": lambda x: torch.utils.dlpack.from_dlpack(x.detach().numpy()),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_values_that_leave_and_return(kind: str) -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        return model.b(ARRAYS[kind](model.a(x)))

    model = Runs(run, a=nn.Linear(8, 8), b=nn.Linear(8, 4))
    result = trace(model, X)
    assert edges(result) == chain("input", "a.weight", "a.bias", "b.weight", "b.bias")
    assert not result.unused


class Held:
    __slots__ = ("values",)

    def __init__(self, values: Any) -> None:
        self.values = values


RESULTS: dict[str, Callable[[Tensor], Any]] = {
    "generator": lambda x: (part * 2 for part in (x,)),
    "slots": lambda x: Held([x]),
    "distribution": lambda x: torch.distributions.Categorical(logits=x),
    "object of objects": lambda x: {"all": Held(iter([Held(x)]))},
}


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("kind", RESULTS)
def test_results_in_objects(kind: str, real: bool) -> None:
    def run(model: Runs, x: Tensor) -> Any:
        x = model.a(x)
        return RESULTS[kind](looks(x) if real else x)

    assert names(trace(Runs(run, a=nn.Linear(8, 4)), X)) == ["input", "a.weight", "a.bias"]


def test_generator_that_computes_while_it_is_read() -> None:
    def run(model: Runs, x: Tensor) -> Any:
        for layer in (model.a, model.b):
            x = layer(x)
            yield x

    result = trace(Runs(run, a=nn.Linear(8, 8), b=nn.Linear(8, 4)), X)
    assert edges(result) == chain("input", "a.weight", "a.bias", "b.weight", "b.bias")


@pytest.mark.parametrize("real", [False, True])
def test_what_is_written_through_one_view_is_read_through_another(real: bool) -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        whole = torch.zeros(2, 2, 8)
        left, right, again = whole[:, 0], whole[:, 1], whole[:, 0]
        left.copy_(model.a(x))
        right[:, :4] = model.b(x)
        out = again + 0
        return model.c(looks(out) if real else out)

    parts = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 4), "c": nn.Linear(8, 4)}
    result = trace(Runs(run, **parts), X)
    assert ("a.bias", "c.weight") in edges(result)
    assert not any(name.startswith("a") for name in result.unused)


@pytest.mark.parametrize("real", [False, True])
def test_layers_behind_a_codebook(real: bool) -> None:
    """What is before an argmax has no gradient, but takes part in the result."""

    def run(model: Runs, x: Tensor) -> Tensor:
        x = model.encoder(looks(x) if real else x)
        codes = (x[:, None] - model.codes.weight).square().sum(-1).argmin(-1)
        return model.decoder(model.codes(codes))

    parts = {"encoder": nn.Linear(8, 4), "codes": nn.Embedding(6, 4), "decoder": nn.Linear(4, 2)}
    result = trace(Runs(run, **parts), X)
    assert not result.unused
    assert {"encoder.weight", "decoder.weight"} <= set(names(result))
    assert ("input", "encoder.weight") in edges(result)


def test_differentiation_on_the_way() -> None:
    """A score that is the gradient of an energy."""

    def run(model: Runs, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        energy = model.b(torch.tanh(model.a(x))).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]

    model = Runs(run, a=nn.Linear(8, 8), b=nn.Linear(8, 1, bias=False))
    assert names(trace(model, X)) == ["input", "a.weight", "a.bias", "b.weight"]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, groups=1), nn.GroupNorm(2, 8)
        self.down, self.bn = nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.ln, self.head = nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.down(self.norm(self.conv(x)).relu()))
        x = self.ln(x.flatten(2).transpose(1, 2))
        return self.head(self.attention(x, x, x)[0].mean(1))


@pytest.mark.parametrize("apart", [False, True])
def test_exported_program(apart: bool) -> None:
    model = Small().eval()
    program = torch.export.export(model, (IMAGE,))
    program = program.run_decompositions() if apart else program
    expected, result = trace(model, IMAGE), trace(program.module(), IMAGE)
    assert edges(result) == edges(expected)
    assert names(result) == names(expected)
    assert result.other == expected.other
    assert not result.unused


def test_operators_by_overload() -> None:
    aten = torch.ops.aten

    def run(model: Runs, x: Tensor) -> Tensor:
        x = aten.convolution(x, model.a.weight, model.a.bias, [1], [0], [1], False, [0], 1)
        x = aten.native_layer_norm.default(x, [7], model.ln.weight, model.ln.bias, 1e-5)[0]
        x = aten.add_.Tensor(aten.relu.default(x), 1.0)
        return aten.linear(aten.mean.dim(x, [-1]), model.b.weight, model.b.bias)

    parts = {"a": nn.Conv1d(3, 4, 2), "ln": nn.LayerNorm(7), "b": nn.Linear(4, 2)}
    result = trace(Runs(run, **parts), torch.zeros(2, 3, 8))
    assert edges(result) == chain(
        *("input", "a.weight", "a.bias", "ln.weight", "glob_avg", "b.weight", "b.bias")
    )


def test_learned_masks_of_attention() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        padding = model.padding.expand(2, -1)
        x, _ = model.attention(x, x, x, attn_mask=model.mask, key_padding_mask=padding)
        return model.head(x.mean(1))

    model = Runs(
        run,
        attention=nn.MultiheadAttention(4, 2, batch_first=True),
        mask=nn.Parameter(torch.zeros(5, 5)),
        padding=nn.Parameter(torch.zeros(5)),
        head=nn.Linear(4, 2),
    )
    result = trace(model, torch.zeros(2, 5, 4))
    assert not result.unused
    assert {"mask", "padding"} <= set(result.other)


MODELS_WITHOUT_NODES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "slope": (nn.PReLU, {"weight"}),
    "regression": (
        lambda: Runs(
            lambda model, x: x * model.w + model.b,
            w=nn.Parameter(torch.ones(())),
            b=nn.Parameter(torch.ones(())),
        ),
        {"w", "b"},
    ),
}


@pytest.mark.parametrize("kind", MODELS_WITHOUT_NODES)
def test_model_without_a_node(kind: str) -> None:
    make, parameters = MODELS_WITHOUT_NODES[kind]
    result = trace(make(), X)
    assert [node.type for node in result.nodes] == ["input"]
    assert result.other.keys() == parameters
    assert not result.unused


TRANSFORMED: dict[str, Callable[[Runs, Tensor], Tensor]] = {
    "vmap": lambda model, x: torch.vmap(model.a)(x),
    "other dimension": lambda model, x: torch.vmap(model.a, out_dims=1)(x).T,
    "nested": lambda model, x: torch.vmap(torch.vmap(model.a))(x[None])[0],
    "grad": lambda model, x: torch.vmap(torch.func.grad(lambda v: model.a(v).square().sum()))(x),
    "vjp": lambda model, x: torch.func.vjp(lambda v: model.a(v).tanh(), x)[1](x)[0],
    "jvp": lambda model, x: torch.func.jvp(lambda v: model.a(v).tanh(), (x,), (x,))[1],
}


@pytest.mark.parametrize("kind", TRANSFORMED)
def test_layers_inside_a_transform(kind: str) -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        return model.b(TRANSFORMED[kind](model, x))

    parts = {name: nn.Linear(8, 8, bias=False) for name in ("a", "b", "idle")}
    result = trace(Runs(run, **parts), X)
    assert names(result) == ["input", "a.weight", "b.weight"]
    assert {("input", "a.weight"), ("a.weight", "b.weight")} <= set(edges(result))
    assert result.unused == {"idle.weight": UNREACHED}


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("dimension", [0, 2])
def test_slices_of_a_parameter_inside_a_transform(dimension: int, is_scaled: bool) -> None:
    """They are no layer: which part of the parameter they are is not known."""

    def run(model: Runs, x: Tensor) -> Tensor:
        def layer(weight: Tensor) -> Tensor:
            return x @ (0.5 * weight if is_scaled else weight)

        return model.b(torch.vmap(layer, in_dims=dimension)(model.stack.weight).mean(0))

    stack = nn.Module()
    stack.weight = nn.Parameter(torch.ones(8, 8, 8))
    result = trace(Runs(run, stack=stack, b=nn.Linear(8, 4)), X)
    assert not result.unused
    assert result.other == {"stack.weight": "unknown"}


def test_constants_inside_a_transform_are_known_on_shapes() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        mask = torch.vmap(lambda i: torch.vmap(lambda j: i >= j)(torch.arange(2)))(torch.arange(2))
        return model.a(x) if mask.any() else x

    with torch.device("meta"):
        model = Runs(run, a=nn.Linear(8, 8))
    assert names(trace(model, X)) == ["input", "a.weight", "a.bias"]
