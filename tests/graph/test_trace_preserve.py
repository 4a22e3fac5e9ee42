"""Tracing leaves a model as it was."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.graph.trace.tracer import trace
from ghn_fast.graph.trace.written import Values


class Busy(nn.Module):
    """Changes everything that a forward pass can change."""

    def __init__(self, needs_values: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("queue", torch.zeros(8, 4))
        self.cache: dict[str, Any] = {}
        self.history: list[Any] = []
        self.needs_values = needs_values

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        x = self.drop(self.bn(self.conv(x))).mean((2, 3))
        self.queue[: len(x)] = x
        self.cache["last"] = x
        self.history.append(x)
        self.last = x
        noise = torch.rand(len(x), 4) + random.random() + float(np.random.rand())  # noqa: NPY002
        if self.needs_values and x.sum() > 1e9:
            return x
        return self.head(F.dropout(x + noise, 0.5, training=True))


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "modes": [m.training for m in model.modules()],
        "state": copy.deepcopy(model.state_dict()),
        "identities": [id(t) for t in (*model.parameters(), *model.buffers())],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad for p in model.parameters()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "tensor_attributes": [sorted(t.__dict__) for t in (*model.parameters(), *model.buffers())],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name, value in before.pop("state").items():
        torch.testing.assert_close(after["state"][name], value, rtol=0, atol=0)
    after.pop("state")
    assert after == before


@pytest.mark.parametrize("needs_values", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_model_is_as_before(needs_values: bool, training: bool) -> None:
    model = Busy(needs_values).train(training)
    model.bn.train(not training)
    model.conv.weight.requires_grad_(False)
    calls: list[int] = []
    handle = model.conv.register_forward_hook(lambda *_: calls.append(1))
    before = snapshot(model)
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    grad_enabled = torch.is_grad_enabled()
    result = trace(model, torch.zeros(2, 3, 8, 8))
    assert result.unused.keys() == {"conv.weight"}
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert np.random.get_state()[1].tolist() == generators[2]  # noqa: NPY002
    assert torch.is_grad_enabled() == grad_enabled
    assert_same(before, snapshot(model))
    assert model.cache == {}
    assert model.history == []
    handle.remove()
    assert len(model._modules["conv"]._forward_hooks) == 0


@pytest.mark.parametrize("needs_values", [False, True])
def test_model_is_as_before_when_it_fails(needs_values: bool) -> None:
    model = Busy(needs_values)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="pass example_inputs"):
        trace(model, torch.zeros(2, 5, 8, 8))
    assert_same(before, snapshot(model))


def test_training_attempt_leaves_no_mark() -> None:
    class Conditional(Busy):
        def __init__(self) -> None:
            super().__init__(False)
            self.aux = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return (y, self.aux(self.last)) if self.training else y

    model = Conditional().eval()
    before = snapshot(model)
    assert trace(model, torch.zeros(2, 3, 8, 8)).unused == {}
    assert_same(before, snapshot(model))


def test_example_inputs_are_as_before() -> None:
    x = torch.ones(2, 4)

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return self.layer(x) if x.sum() > 0 else x

    trace(InPlace(), x)
    assert torch.equal(x, torch.ones(2, 4))
    assert x.__dict__ == {}


def test_weight_norm_keeps_its_weight() -> None:
    with pytest.warns(FutureWarning):
        layer = torch.nn.utils.weight_norm(nn.Linear(4, 2))
    weight = layer.weight
    trace(layer, torch.zeros(2, 4))
    assert layer.weight is weight


def test_memory_stays_small() -> None:
    """A large input and a large weight are never allocated."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4096, 3, padding=1), nn.ReLU(), nn.Conv2d(4096, 9, 1))
    images = torch.zeros(1, device="meta").expand(4096, 3, 4096, 4096)
    assert len(trace(model, images).nodes) == 5


def test_large_constants_take_no_memory() -> None:
    """Constants of more elements than fit into any machine's memory, made in every way."""

    class Pasting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1 << 20)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            canvas = torch.zeros(1 << 22, 1 << 20) + torch.full((1 << 22, 1), 2.0)
            canvas[torch.arange(len(y))] = y
            like = torch.ones_like(canvas).mul_(3).to(torch.float64)
            other = y.new_zeros((1 << 22, 1 << 20)) + y.new_full((1,), 0.5)
            rows = torch.arange(1 << 22).unsqueeze(1) - torch.arange(1 << 20)
            other = other.masked_fill(rows != 0, -100.0)
            other = other + F.one_hot(torch.arange(1 << 22), num_classes=1 << 20)
            return canvas.sum() + (like + other).clamp(min=0).sum()

    result = trace(Pasting(), torch.zeros(2, 4))
    assert [node.name for node in result.nodes] == ["input", "layer.weight", "layer.bias"]


def test_values_replaced_by_large_constants_are_not_known() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            total = torch.zeros(3)
            total[:1] += torch.ones(1 << 21).sum()
            return self.layer(x) if total[0] > 0 else x

    assert len(trace(Counting(), torch.zeros(2, 4)).nodes) == 3


def test_small_constants_keep_their_values() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            sizes = x.new_tensor([4096.0, 4096.0])
            return self.layer(x) if sizes.sum() + torch.zeros_like(x).sum() > 0 else x

    assert len(trace(Masked(), torch.zeros(2, 4)).nodes) == 3


class Statistics:
    def __init__(self) -> None:
        self.last: Tensor | None = None


class Counting(nn.Module):
    """Counts token ids, whose values are known, in tensors of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.head = nn.Linear(4, 2)
        self.register_buffer("usage", torch.zeros(8))
        self.register_buffer("latest", torch.zeros(2, 3, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.total = torch.zeros((), dtype=torch.int64)
        self.cache: dict[str, list[Tensor]] = {"ids": []}
        self.statistics = Statistics()

    def forward(self, ids: Tensor) -> Tensor:
        self.usage.index_add_(0, ids.flatten(), torch.ones(ids.numel()))
        self.latest.copy_(ids)
        self.seen += ids.sum()
        torch.add(self.total, ids.max(), out=self.total)
        x = self.embedding(ids).mean(1)
        self.cache["ids"].append(x)
        self.statistics.last = x
        return self.head(sum(self.cache["ids"]))


def test_integer_inputs_change_nothing_of_the_model() -> None:
    model = Counting()
    graph = trace(model, torch.ones(2, 3, dtype=torch.int64))
    assert {node.parameter for node in graph.nodes} >= {"embedding.weight", "head.weight"}
    assert not any(value.any() for value in (*model.buffers(), model.total))
    assert model.cache == {"ids": []}
    assert model.statistics.last is None
    assert model(torch.ones(2, 3, dtype=torch.int64)).shape == (2, 2)


class Smoothed(nn.Module):
    """Its course depends on values, and it has a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 2), nn.Linear(2, 2)
        self.state = torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.state.mul_(0.9).add_(y.detach()[0] + 1)
        logits: Tensor = self.head(y if y.sum() > 1e9 else 2 * y)
        return logits


def test_tensors_that_are_attributes_keep_their_values_in_a_real_run() -> None:
    model = Smoothed()
    trace(model, torch.zeros(1, 3))
    assert torch.equal(model.state, torch.zeros(2))


class Writing(nn.Module):
    """Its forward does what it is told to, on shapes or for real."""

    def __init__(self, write: Callable[[Any, Tensor], Any], real: bool) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("count", torch.zeros(4))
        self.write, self.real = write, real
        self.held: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.real and x.sum() > 1e9:
            return x
        x = self.layer(x)
        self.write(self, x)
        return self.head(x)


def set_data(tensor: Tensor) -> None:
    tensor.data = tensor.data + 1


def add_without_gradient(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.add_(1)


def write_and_fail(tensor: Tensor) -> None:
    add_without_gradient(tensor)
    raise ValueError


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "data": lambda t: t.data.add_(1),
    "set data": set_data,
    "detached": lambda t: t.detach().view(2, -1).__setitem__(0, 5),
    "no_grad": add_without_gradient,
    "foreach": lambda t: torch._foreach_add_([t.data], 1.0),
    "out": lambda t: torch.frexp(t.data + 1, out=(t.data, torch.zeros_like(t, dtype=torch.int32))),
    "array": lambda t: t.detach().numpy().fill(3),
    "error": write_and_fail,
}


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", ["layer.weight", "count"])
@pytest.mark.parametrize("kind", WRITES)
def test_tensors_that_are_written_to_keep_their_values(kind: str, name: str, real: bool) -> None:
    model = Writing(lambda model, _: WRITES[kind](tensor), real)
    tensor = dict((*model.named_parameters(), *model.named_buffers()))[name]
    before, place = snapshot(model), tensor.data_ptr()
    if kind == "error":
        with pytest.raises(RuntimeError, match="ValueError"):
            trace(model, torch.zeros(2, 4))
    else:
        trace(model, torch.zeros(2, 4))
    assert_same(before, snapshot(model))
    assert tensor.data_ptr() == place


def test_large_parameters_are_copied_only_if_they_are_written_to() -> None:
    model = Writing(lambda model, _: model.layer.weight.data.add_(1), real=True)
    values = Values(list(model.parameters()))
    with values:
        model.head(model.layer(torch.zeros(2, 4)))
        assert not values._copies
        model.layer.weight.data.add_(1)
        model.layer.weight.data.add_(1)
        assert len(values._copies) == 1


def test_frozen_part_and_gradients_stay_in_a_real_run() -> None:
    def write(model: Any, x: Tensor) -> None:
        for parameter in model.layer.parameters():
            parameter.requires_grad_(True)
            parameter.grad.zero_()
            parameter.grad = None

    model = Writing(write, real=True)
    gradients = [torch.ones_like(parameter) for parameter in model.layer.parameters()]
    for parameter, gradient in zip(model.layer.parameters(), gradients, strict=True):
        parameter.requires_grad, parameter.grad = False, gradient
    before = snapshot(model)
    trace(model, torch.zeros(2, 4))
    assert_same(before, snapshot(model))
    assert all(gradient.all() for gradient in gradients)


class Slots:
    __slots__ = ("__log", "last", "total")

    def __init__(self) -> None:
        self.total, self.__log = torch.zeros(2), [1]

    def update(self) -> None:
        self.total += 1
        self.last = 1
        self.__log.append(2)

    def __repr__(self) -> str:
        return f"{self.total} {self.__log} {hasattr(self, 'last')}"


HELD: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Any]]] = {
    "deque": (lambda: deque([torch.zeros(1)], maxlen=1), lambda held, x: held.append(x)),
    "empty deque": (deque, lambda held, x: held.append(x)),
    "tensor in a list": (lambda: [torch.zeros(1)], lambda held, x: held[0].add_(1)),
    "activation in a list": (lambda: [torch.zeros(2, 4)], lambda held, x: held[0].copy_(x)),
    "list in a tuple": (lambda: ([],), lambda held, x: held[0].append(x)),
    "deep": (lambda: {1: {2: {3: {4: [0]}}}}, lambda held, x: held[1][2][3][4].append(x)),
    "slots": (Slots, lambda held, x: held.update()),
    "array": (lambda: np.zeros(2), lambda held, x: held.fill(1)),
    "generator of torch": (torch.Generator, lambda held, x: torch.rand(1, generator=held)),
    "generator of numpy": (np.random.default_rng, lambda held, x: held.random()),
    "random state": (np.random.RandomState, lambda held, x: held.rand()),
    "generator of Python": (random.Random, lambda held, x: held.gauss(0, 1)),
    "hidden module": (lambda: [nn.Sequential(nn.BatchNorm1d(4))], lambda held, x: held[0](x)),
}


def state(held: Any) -> str:
    if isinstance(held, torch.Generator):
        return str(held.get_state().tolist())
    for name in ("get_state", "getstate", "bit_generator"):
        if hasattr(held, name):
            found = getattr(held, name)
            return str(found() if callable(found) else found.state)
    hidden = isinstance(held, list) and isinstance(held[0], nn.Module)
    return str([(t, t.__dict__) for t in held[0].state_dict().values()] if hidden else held)


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("kind", HELD)
def test_what_attributes_hold_stays(kind: str, real: bool) -> None:
    make, write = HELD[kind]
    model = Writing(lambda model, x: write(model.held, x), real)
    model.held = make()
    before = state(model.held)
    assert not trace(model, torch.zeros(2, 4)).unused
    assert state(model.held) == before


class Assembling(nn.Module):
    """Writes into parts of a tensor through views of it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), 8)
        y[:, :4].add_(self.one(x))
        y[:, 4:].copy_(self.two(x))
        return self.head(y)


def test_inference_mode_makes_no_difference() -> None:
    model = Assembling()
    expected = trace(model, torch.zeros(1, 3))
    with torch.inference_mode():
        found = trace(model, torch.zeros(1, 3))
    assert expected.unused == {}
    assert found.nodes == expected.nodes
    assert (found.edges == expected.edges).all()
    assert found.unused == {}
