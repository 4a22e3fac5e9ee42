"""Graphs of all kinds of models, by hand-written expectations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghn_fast.graph.trace import rules
from ghn_fast.graph.trace.tracer import Trace, TraceError, trace
from ghn_fast.graph.trace.unused import FROZEN, NOT_TAKEN, UNREACHED
from tests.graphs import SmallClassifier, small_classifier


class Runs(nn.Module):
    """A module from parts and a function that says how they are called."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self, *args, **kwargs)


def names(result: Trace) -> list[str]:
    return [node.name for node in result.nodes]


def types(result: Trace) -> list[str]:
    return [node.type for node in result.nodes]


def edges(result: Trace) -> set[tuple[str, str]]:
    """By name, where names are unique."""
    return {(result.nodes[a].name, result.nodes[b].name) for a, b in result.edges.tolist()}


def chain(*path: str) -> set[tuple[str, str]]:
    return set(pairwise(path))


IMAGE = torch.zeros(2, 3, 16, 16)


# --- layers ------------------------------------------------------------------------------------


def test_small_classifier() -> None:
    expected = small_classifier()
    result = trace(SmallClassifier())
    assert tuple(result.nodes) == expected.nodes
    assert result.edges.tolist() == expected.edges.tolist()
    assert result.unused == {}
    assert result.other == {}


@pytest.mark.parametrize(
    ("layer", "shape", "node_type"),
    [
        (nn.Conv1d(4, 6, 3), (2, 4, 9), "conv"),
        (nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 9, 9), "conv"),
        (nn.Conv3d(4, 6, 3), (2, 4, 9, 9, 9), "conv"),
        (nn.Conv2d(4, 8, 3, groups=2), (2, 4, 9, 9), "sep_conv"),
        (nn.Conv2d(4, 4, 3, groups=4, dilation=2), (2, 4, 9, 9), "dil_conv"),
        (nn.Conv2d(4, 4, 3, dilation=2), (2, 4, 9, 9), "conv"),
        (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), (2, 4, 9, 9), "conv"),
        (nn.Linear(4, 6), (2, 4), "conv"),
        (nn.Linear(4, 6), (2, 5, 4), "conv"),
        (nn.BatchNorm1d(4), (2, 4), "bn"),
        (nn.BatchNorm2d(4), (2, 4, 9, 9), "bn"),
        (nn.BatchNorm3d(4), (2, 4, 9, 9, 9), "bn"),
        (nn.LayerNorm(4), (2, 9, 4), "ln"),
        (nn.GroupNorm(2, 4), (2, 4, 9, 9), "ln"),
        (nn.InstanceNorm2d(4, affine=True), (2, 4, 9, 9), "ln"),
        (nn.RMSNorm(4), (2, 9, 4), "ln"),
    ],
)
def test_layer(layer: nn.Module, shape: tuple[int, ...], node_type: str) -> None:
    x = torch.zeros(shape)
    seen: list[torch.Size] = []

    def run(model: Runs, x: Tensor) -> Tensor:
        y = model.layer(x)
        seen.append(y.shape)
        return y

    result = trace(Runs(run, layer=layer), x)
    folds = node_type in ("bn", "ln")
    has_bias = getattr(layer, "bias", None) is not None
    assert types(result) == ["input", node_type] + (["bias"] if has_bias and not folds else [])
    node = result.nodes[1]
    assert node.shape == tuple(layer.weight.shape)
    assert node.parameter == "layer.weight"
    assert node.bias == ("layer.bias" if folds and has_bias else None)
    assert seen == [layer(x).shape], "the shape worked out is that of the real result"


def test_norm_without_parameters_is_contracted() -> None:
    conv, bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)
    result = trace(nn.Sequential(conv, bn), IMAGE)
    assert types(result) == ["input", "conv", "bias"]


@pytest.mark.parametrize(
    ("layer", "node_type", "kernel"),
    [
        (nn.MaxPool2d(3, 2, 1), "max_pool", (3, 3)),
        (nn.MaxPool2d((2, 3), ceil_mode=True), "max_pool", (2, 3)),
        (nn.AvgPool2d(2), "avg_pool", (2, 2)),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), "avg_pool", (3, 3)),
    ],
)
def test_pooling(layer: nn.Module, node_type: str, kernel: tuple[int, int]) -> None:
    result = trace(nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 5, 1)), IMAGE)
    assert types(result)[3] == node_type
    assert result.nodes[3].shape == (1, 1, *kernel)
    assert result.nodes[3].parameter is None


def test_embedding_and_positions() -> None:
    def run(model: Runs, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        return model.head(model.tokens(ids) + model.positions(positions) + model.pos_embed)

    parts = {
        "tokens": nn.Embedding(10, 4),
        "positions": nn.Embedding(16, 4),
        "pos_embed": nn.Parameter(torch.zeros(1, 16, 4)),
        "head": nn.Linear(4, 10),
    }
    result = trace(Runs(run, **parts))
    tables = [node.parameter for node in result.nodes if node.type == "pos_enc"]
    assert tables == ["tokens.weight", "positions.weight", "pos_embed"]
    assert types(result).count("sum") == 2
    sources = {b for _, b in edges(result)}
    assert "pos_embed" not in sources, "nothing leads to a table that depends on no input"


def test_functional_parameters() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        x = F.conv2d(x, model.kernel, model.shift)
        return x.mean((2, 3)) @ model.matrix + model.offset

    parts = {
        "kernel": nn.Parameter(torch.zeros(4, 3, 3, 3)),
        "shift": nn.Parameter(torch.zeros(4)),
        "matrix": nn.Parameter(torch.zeros(4, 5)),
        "offset": nn.Parameter(torch.zeros(5)),
    }
    result = trace(Runs(run, **parts), IMAGE)
    assert names(result) == ["input", "kernel", "shift", "glob_avg", "matrix", "offset"]
    assert types(result)[-2:] == ["conv", "bias"]
    assert edges(result) == chain(*names(result))


# --- sums, products, attention -----------------------------------------------------------------


def test_sum_needs_two_sources() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        x = model.a(x)
        x = x + torch.relu(x) + 1
        return x + model.b(x)

    result = trace(Runs(run, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1)), IMAGE)
    assert names(result) == ["input", "a.weight", "a.bias", "b.weight", "b.bias", "sum"]
    assert ("a.bias", "sum") in edges(result)


def test_in_place_operations() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        x = model.a(x)
        identity = x.clone()
        x.relu_()
        x += model.b(identity)
        x[:, :1] += model.c(x)[:, :1]
        return model.d(x)

    parts = {name: nn.Conv2d(3, 3, 1, bias=False) for name in "abcd"}
    result = trace(Runs(run, **parts), IMAGE)
    assert types(result).count("sum") == 2
    into_d = {a for a, b in edges(result) if b == "d.weight"}
    assert into_d == {"sum"}


def test_constant_that_is_filled_with_activations() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        canvas = torch.zeros(x.shape[0], 3, 16, 16, device=x.device)
        canvas[:, :, 4:12, 4:12] = model.a(x)[:, :, 4:12, 4:12]
        return model.b(canvas)

    result = trace(Runs(run, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1)), IMAGE)
    assert edges(result) == chain("input", "a.weight", "a.bias", "b.weight", "b.bias")


def test_constant_that_is_filled_part_by_part() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        canvas = x.new_zeros(2, 3, 16, 16)
        for i, layer in enumerate((model.a, model.b)):
            canvas[i, :, 1:].copy_(layer(x)[i, :, 1:])
        return model.c(canvas)

    parts = {name: nn.Conv2d(3, 3, 1, bias=False) for name in "abc"}
    result = trace(Runs(run, **parts), IMAGE)
    assert {a for a, b in edges(result) if b == "c.weight"} == {"a.weight", "b.weight"}


@pytest.mark.parametrize("name", ["reshape_as", "view_as", "expand_as"])
def test_whose_shape_another_takes_is_no_source_of_it(name: str) -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        first = model.a(x)
        return model.c(getattr(model.b(first), name)(first))

    parts = {part: nn.Linear(4, 4, bias=False) for part in "abc"}
    result = trace(Runs(run, **parts), torch.zeros(2, 4))
    assert edges(result) == chain("input", "a.weight", "b.weight", "c.weight")


def test_addition_in_place_to_a_view_of_something_unseen() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        table = torch.repeat_interleave(model.a.weight, 2, dim=0)
        return model.b(x + table.add_(x).sum(0))

    result = trace(Runs(run, a=nn.Linear(4, 1), b=nn.Linear(4, 2)), torch.zeros(2, 4))
    assert result.other == {"a.weight": "unknown"}
    assert edges(result) == chain("input", "b.weight", "b.bias")


def test_concatenation() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        y = torch.cat([model.a(x), model.b(x)], 1)
        return model.c(torch.cat([y], 1))

    parts = {"a": nn.Conv2d(3, 2, 1), "b": nn.Conv2d(3, 2, 1), "c": nn.Conv2d(4, 2, 1)}
    result = trace(Runs(run, **parts), IMAGE)
    assert types(result).count("concat") == 1
    assert {a for a, b in edges(result) if b == "concat"} == {"a.bias", "b.bias"}


class Gate(nn.Module):
    def __init__(self, average: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.average = average
        self.stem = nn.Conv2d(3, 8, 1, bias=False)
        self.squeeze = nn.Conv2d(8, 2, 1, bias=False)
        self.excite = nn.Conv2d(2, 8, 1, bias=False)
        self.head = nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        gate = self.excite(F.relu(self.squeeze(self.average(x)))).sigmoid()
        return self.head(gate * x)


@pytest.mark.parametrize(
    "average",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: x.flatten(2).mean(-1)[:, :, None, None],
    ],
)
def test_gate_from_own_average_is_cse(average: Callable[[Tensor], Tensor]) -> None:
    result = trace(Gate(average), IMAGE)
    assert types(result) == ["input", "conv", "conv", "conv", "cse", "conv"]
    assert {a for a, b in edges(result) if b == "cse"} == {"stem.weight", "excite.weight"}
    assert ("stem.weight", "squeeze.weight") in edges(result), "the average is contracted"


def test_gate_from_another_tensor_is_no_cse() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        gate = model.b(F.adaptive_avg_pool2d(x, 1)).sigmoid()
        return model.c(model.a(x) * gate)

    parts = {name: nn.Conv2d(3, 3, 1) for name in "abc"}
    result = trace(Runs(run, **parts), IMAGE)
    assert "cse" not in types(result)
    assert types(result).count("glob_avg") == 1


class Attention(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.out = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.fused:
            return self.out(F.scaled_dot_product_attention(q, k, v))
        weights = F.dropout(torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, -1), training=False)
        return self.out(weights @ v)


@pytest.mark.parametrize("fused", [False, True])
def test_attention(fused: bool) -> None:
    result = trace(Attention(fused), torch.zeros(2, 5, 8))
    assert types(result).count("msa") == 1
    assert {a for a, b in edges(result) if b == "msa"} == {"q.weight", "k.weight", "v.weight"}
    assert {a for a, b in edges(result) if b == "out.weight"} == {"msa"}


def test_softmax_of_logits_is_no_attention() -> None:
    result = trace(nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)), torch.zeros(2, 4))
    assert types(result) == ["input", "conv", "bias"]


@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention(need_weights: bool) -> None:
    def run(model: Runs, x: Tensor) -> Any:
        return model.layer(x, x, x, need_weights=need_weights)

    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    result = trace(Runs(run, layer=layer), torch.zeros(2, 5, 8))
    middle = ["msa"] if need_weights else []
    path = ["layer.in_proj_weight", "layer.in_proj_bias", *middle]
    path += ["layer.out_proj.weight", "layer.out_proj.bias"]
    assert edges(result) == chain("input", *path)


def test_cross_attention_with_separate_projections() -> None:
    def run(model: Runs, x: Tensor, y: Tensor) -> Any:
        return model.layer(x, y, y)[0]

    layer = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)
    result = trace(Runs(run, layer=layer), (torch.zeros(2, 5, 8), torch.zeros(2, 7, 4)))
    assert result.other == {}
    assert result.unused == {}
    assert types(result) == ["input", "conv", "conv", "conv", "bias", "msa", "conv", "bias"]


def test_transformer_layers() -> None:
    model = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    result = trace(model, (torch.zeros(2, 5, 16), torch.zeros(2, 4, 16)))
    assert result.unused == {}
    assert result.other == {}
    assert types(result).count("ln") == 7


# --- parameters of other kinds -----------------------------------------------------------------


def test_other_parameters_are_named() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        x = model.conv(x).flatten(2).transpose(1, 2)
        x = torch.cat([model.cls_token.expand(x.shape[0], -1, -1), x], 1) * model.gamma
        return x * model.logit_scale.exp() + model.relative_position_bias_table[:17, :]

    parts = {
        "conv": nn.Conv2d(3, 4, 4, 4),
        "cls_token": nn.Parameter(torch.zeros(1, 1, 4)),
        "gamma": nn.Parameter(torch.zeros(4)),
        "logit_scale": nn.Parameter(torch.zeros(())),
        "relative_position_bias_table": nn.Parameter(torch.zeros(20, 4)),
        "never_used": nn.Parameter(torch.zeros(4)),
    }
    result = trace(Runs(run, **parts), IMAGE)
    assert types(result) == ["input", "conv", "bias"], "a constant is no second input of a sum"
    assert result.other == {
        "cls_token": "class_token",
        "gamma": "scale",
        "logit_scale": "scalar",
        "relative_position_bias_table": "relative_position_bias",
    }
    assert result.unused == {"never_used": UNREACHED}


def test_slopes_of_activations() -> None:
    result = trace(nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.PReLU()), torch.zeros(2, 4))
    assert types(result) == ["input", "conv", "bias"]
    assert result.other == {"1.weight": "slope", "2.weight": "slope"}


def test_recurrent_layers() -> None:
    for layer in (nn.LSTM(3, 5, 2, bidirectional=True, batch_first=True), nn.GRU(3, 5)):
        shapes: list[Any] = []

        def run(model: Runs, x: Tensor, shapes: list[Any] = shapes) -> Tensor:
            y, states = model.rnn(x)
            shapes.append([y.shape, *(s.shape for s in states)])
            return model.head(y)

        width = layer.hidden_size * (1 + layer.bidirectional)
        model = Runs(run, rnn=layer, head=nn.Linear(width, 2))
        x = torch.zeros(2, 7, 3)
        result = trace(model, x)
        assert set(result.other.values()) == {"recurrent_weight", "recurrent_bias"}
        assert len(result.other) == len(list(layer.parameters()))
        model(x)
        assert shapes[0] == shapes[1]


def test_dead_branch_is_left_out() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        model.b(x)
        return model.a(x)

    result = trace(Runs(run, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1)), IMAGE)
    assert names(result) == ["input", "a.weight", "a.bias"]
    assert result.unused == {"b.weight": UNREACHED, "b.bias": UNREACHED}


def test_frozen_parameters() -> None:
    model = SmallClassifier()
    model.conv.weight.requires_grad_(False)
    result = trace(model)
    assert result.nodes[1].name == "conv.weight"
    assert result.nodes[1].parameter is None
    assert result.unused == {"conv.weight": FROZEN}
    model.requires_grad_(False)
    assert trace(model).nodes[1].parameter == "conv.weight", "frozen as a whole: all are predicted"


def test_frozen_bias_leaves_its_node_the_way_its_weight_is_stored() -> None:
    """A weight that its layer multiplies by a constant, and a norm's that is a column."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(F.conv2d(x, self.conv.weight * 0.5, self.conv.bias))

    model = Net()
    model.norm.bias.requires_grad_(False)
    model.conv.bias.requires_grad_(False)
    nodes = {node.name: node for node in trace(model, torch.zeros(2, 3, 8, 8)).nodes}
    assert nodes["conv.weight"].factor == 0.5
    assert nodes["norm.weight"].bias is None


@pytest.mark.parametrize("shape", [(), (1, -1, 1, 1), (-1, 1, 1)], ids=str)
def test_bias_that_is_added_by_hand(shape: tuple[int, ...]) -> None:
    """In whatever shape, it is the layer's: of a norm with its weight, of a convolution a node."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.conv.weight)
            own = {name: self.along(x, p) for name, p in self.named_parameters()}
            x = F.group_norm(x + own["conv.bias"], 2) * own["norm.weight"] + own["norm.bias"]
            return x

        def along(self, x: Tensor, parameter: Tensor) -> Tensor:
            return parameter.view(shape) if shape and parameter.dim() == 1 else parameter

    image = torch.zeros(2, 3, 4, 4)  # as many columns as channels: without a view, too
    result = trace(Net(), image)
    assert names(result) == ["input", "conv.weight", "conv.bias", "norm.weight"]
    assert result.nodes[3].bias == "norm.bias"
    assert not result.other


def test_tied_weights_have_one_node() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(10, 4)
            self.body = nn.Linear(4, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.body(self.tokens(ids)))

    result = trace(Tied())
    assert names(result) == ["input", "tokens.weight", "body.weight", "body.bias"]


def test_layer_used_twice() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        return model.head(model.conv(model.conv(x)))

    result = trace(Runs(run, conv=nn.Conv2d(3, 3, 1), head=nn.Conv2d(3, 2, 1)), IMAGE)
    assert edges(result) == chain("input", "conv.weight", "conv.bias", "head.weight", "head.bias")


@pytest.mark.parametrize("parametrized", [False, True])
def test_weight_norm(parametrized: bool) -> None:
    norm = (
        torch.nn.utils.parametrizations.weight_norm if parametrized else torch.nn.utils.weight_norm
    )
    with nullcontext() if parametrized else pytest.warns(FutureWarning):
        model = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 2, 1))
    result = trace(model, IMAGE)
    direction = "0.parametrizations.weight.original1" if parametrized else "0.weight_v"
    assert edges(result) == chain("input", direction, "0.bias", "1.weight", "1.bias")
    assert list(result.other.values()) == ["weight_gain"]


def test_standardized_weight() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        w = model.conv.weight
        w = F.batch_norm(w.reshape(1, 4, -1), None, None, model.gain, training=True).view_as(w)
        return F.conv2d(x, w, model.conv.bias)

    model = Runs(run, conv=nn.Conv2d(3, 4, 3), gain=nn.Parameter(torch.ones(4)))
    result = trace(model, IMAGE)
    assert names(result) == ["input", "conv.weight", "conv.bias"]
    assert result.other == {"gain": "weight_gain"}


# --- models that run in unusual ways -----------------------------------------------------------


def test_control_flow_on_python_values() -> None:
    def run(model: Runs, x: Tensor, deep: bool = False) -> Tensor:
        for _ in range(x.shape[1] if deep else 1):
            x = model.a(x)
        return x if x.ndim == 4 and x.is_floating_point() and x.size(0) == 2 else model.b(x)

    model = Runs(run, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1))
    assert trace(model, {"x": IMAGE, "deep": True}).unused.keys() == {"b.weight", "b.bias"}


def test_control_flow_on_activations_runs_for_real() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        x = model.a(x)
        return model.b(x) if x.sum() > 1e9 else model.c(x)

    model = Runs(run, **{name: nn.Conv2d(3, 3, 1) for name in "abc"})
    model.bn = nn.BatchNorm2d(3)
    result = trace(model, IMAGE)
    assert edges(result) == chain("input", "a.weight", "a.bias", "c.weight", "c.bias")
    assert result.unused["b.weight"] == NOT_TAKEN


def test_values_of_integer_inputs_are_known() -> None:
    def run(model: Runs, ids: Tensor) -> Tensor:
        length = int((ids != 0).sum(1).max())
        mask = torch.ones(length, length).triu(1).bool()
        x = model.tokens(ids[:, :length])
        scores = (x @ x.transpose(1, 2)).masked_fill(mask, -1e9)
        return model.head(scores.softmax(-1) @ x)

    model = Runs(run, tokens=nn.Embedding(10, 4), head=nn.Linear(4, 2))
    result = trace(model, torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0]]))
    assert types(result) == ["input", "pos_enc", "msa", "conv", "bias"]


def test_selection_by_activations() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        rows = model.a(x)
        rows = rows[rows[:, 0] > 1e9]
        return model.b(rows[torch.where(rows[:, 1] > 0)[0]])

    result = trace(Runs(run, a=nn.Linear(4, 4), b=nn.Linear(4, 2)), torch.zeros(6, 4))
    assert edges(result) == chain("input", "a.weight", "a.bias", "b.weight", "b.bias")


def test_several_inputs_and_outputs() -> None:
    def run(model: Runs, x: Tensor, *, y: Tensor) -> dict[str, Any]:
        a, b = model.a(x), model.b(y)
        return {"both": (a + b, [b]), "extra": model.c(b)}

    model = Runs(run, **{name: nn.Linear(4, 4, bias=False) for name in "abc"})
    result = trace(model, {"x": torch.zeros(2, 4), "y": torch.zeros(2, 4)})
    assert edges(result) == {
        ("input", "a.weight"),
        ("input", "b.weight"),
        ("a.weight", "sum"),
        ("b.weight", "sum"),
        ("b.weight", "c.weight"),
    }


def test_nested_containers() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleDict(
                {"a": nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))])}
            )
            self.scales = nn.ParameterList([nn.Parameter(torch.ones(4)) for _ in range(2)])

        def forward(self, x: Tensor) -> Tensor:
            for block, scale in zip(self.blocks["a"], self.scales, strict=True):
                x = block(x) * scale
            return x

    result = trace(Nested(), torch.zeros(2, 4))
    assert names(result)[1:] == [
        *("blocks.a.0.weight", "blocks.a.0.bias", "blocks.a.1.0.weight", "blocks.a.1.0.bias")
    ]
    assert set(result.other) == {"scales.0", "scales.1"}


def test_auxiliary_heads_count_in_both_modes() -> None:
    class WithHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aux, self.head = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Any:
            x = self.body(x)
            aux = self.aux(x) if self.training else None
            return (self.head(x), aux) if self.training else self.head(x)

    model = WithHead()
    for mode in (True, False):
        result = trace(model.train(mode), torch.zeros(2, 4))
        assert result.unused == {}
        assert names(result)[-2:] == ["head.weight", "head.bias"]


def test_classifying_convolution_before_the_average() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    result = trace(model, IMAGE)
    assert types(result) == ["input", "conv", "bias", "glob_avg", "conv", "bias"]
    assert edges(result) == chain("input", "0.weight", "0.bias", "glob_avg", "1.weight", "1.bias")


def test_gradient_checkpointing_and_custom_functions() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * 2

    def run(model: Runs, x: Tensor) -> Tensor:
        for reentrant in (True, False):
            x = torch.utils.checkpoint.checkpoint(model.a, x, use_reentrant=reentrant)
        return model.b(Double.apply(x))

    result = trace(Runs(run, a=nn.Linear(4, 4), b=nn.Linear(4, 2)), torch.zeros(2, 4))
    assert edges(result) == chain("input", "a.weight", "a.bias", "b.weight", "b.bias")


def test_compiled_model() -> None:
    model = torch.compile(SmallClassifier())
    result = trace(model)
    assert result.nodes[1].parameter == "_orig_mod.conv.weight"
    assert types(result) == [node.type for node in small_classifier().nodes]


def test_compiled_part() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), torch.compile(nn.Conv2d(4, 2, 1)))
    assert types(trace(model, IMAGE)) == ["input", "conv", "bias", "conv", "bias"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    result = trace(SmallClassifier().to(dtype))
    assert tuple(result.nodes) == small_classifier().nodes


def test_model_on_meta() -> None:
    result = trace(SmallClassifier().to("meta"))
    assert tuple(result.nodes) == small_classifier().nodes


@pytest.mark.gpu
def test_model_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    result = trace(SmallClassifier().cuda())
    assert tuple(result.nodes) == small_classifier().nodes


# --- errors ------------------------------------------------------------------------------------


def test_model_that_cannot_run_says_what_to_pass() -> None:
    model = Runs(lambda model, x, y: model.a(x + y), a=nn.Linear(4, 4))
    with pytest.raises(TraceError, match=r"(?s)missing 1 required .*pass example_inputs"):
        trace(model)
    with pytest.raises(
        TraceError, match=r"model\(<float32 \(2, 5\)>.*(cannot be mult|inputs got 5)"
    ):
        trace(model, (torch.zeros(2, 5), torch.zeros(2, 5)))


def _assigned(value: Tensor) -> Tensor:
    values = torch.zeros(2, dtype=torch.int64)
    values[1] = value
    return values


SIZES: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "pad": (8, lambda x, two: F.pad(x, (two, two))),
    "split": (4, lambda x, two: torch.cat(x.split([two, two], -1), -1)),
    "repeat": (4, lambda x, two: x.repeat(two, 1)),
    "assigned": (4, lambda x, two: x.repeat(_assigned(two)[1], 1)),
    "expand_as": (2, lambda x, two: x[(torch.arange(4) < two).expand_as(x)].view(2, 2)),
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_that_are_tensors_are_known_on_meta(kind: str) -> None:
    def run(model: Runs, x: Tensor, two: Tensor) -> Tensor:
        return model.a(sized(x, two))

    width, sized = SIZES[kind]
    model = Runs(run, a=nn.Linear(width, 3)).to("meta")
    assert not trace(model, (torch.zeros(2, 4), torch.tensor(2))).unused


@pytest.mark.parametrize("shape", [(1, 2, 1, 8), (1, 1, 2, 8), (2, 8)])
def test_queries_that_all_of_a_batch_share(shape: tuple[int, ...]) -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        x = model.a(x)[:, None].expand(-1, 2, -1, -1)
        return model.b(F.scaled_dot_product_attention(model.query, x, x).reshape(3, -1, 8))

    query = nn.Parameter(torch.zeros(shape))
    model = Runs(run, a=nn.Linear(8, 8), b=nn.Linear(8, 4), query=query).to("meta")
    assert not trace(model, torch.zeros(3, 5, 8)).unused


def test_queries_of_a_batch_without_heads() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        x = model.a(x)
        return model.b(F.scaled_dot_product_attention(model.query, x, x).view(3, 2, 8))

    query = nn.Parameter(torch.zeros(1, 2, 8))
    model = Runs(run, a=nn.Linear(8, 8), b=nn.Linear(8, 4), query=query).to("meta")
    assert not trace(model, torch.zeros(3, 5, 8)).unused


def test_course_that_depends_on_values_on_meta() -> None:
    model = Runs(lambda model, x: model.a(x) if x.sum() > 0 else x, a=nn.Linear(4, 4))
    with pytest.raises(TraceError, match="not on meta"):
        trace(model.to("meta"), torch.zeros(2, 4))


def test_model_without_parameters() -> None:
    with pytest.raises(TraceError, match="ReLU has no parameters"):
        trace(nn.ReLU())


def test_lazy_model() -> None:
    with pytest.raises(TraceError, match=r"0.weight has no shape yet.*once"):
        trace(nn.Sequential(nn.LazyLinear(4)), torch.zeros(2, 3))


def test_output_that_depends_on_no_parameter() -> None:
    model = Runs(lambda model, x: torch.ones(3), a=nn.Linear(4, 4))
    with pytest.raises(TraceError, match="no output of the model depends on its parameters"):
        trace(model, torch.zeros(2, 4))


def test_unknown_kind_of_inputs() -> None:
    with pytest.raises(TypeError, match="not int"):
        trace(SmallClassifier(), 3)


# --- registration ------------------------------------------------------------------------------


class Mixer(nn.Module):
    """A layer of one's own, of no known function."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oi->bo", x.cumsum(0), self.weight.exp()) + self.bias


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MODULES", rules.MODULES.copy())
    monkeypatch.setattr("ghn_fast.graph.trace.tracer.MODULES", rules.MODULES)
    rules.register(Mixer, "sep_conv")
    result = trace(nn.Sequential(nn.Linear(4, 4), Mixer(), nn.Linear(4, 2)), torch.zeros(2, 4))
    assert types(result) == ["input", "conv", "bias", "sep_conv", "bias", "conv", "bias"]
    assert edges(result) == chain(
        *("input", "0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias")
    )


def test_register_refuses() -> None:
    with pytest.raises(ValueError, match="unknown node type 'dense'"):
        rules.register(Mixer, "dense")
    with pytest.raises(TypeError, match="subclass"):
        rules.register(F.relu, "conv")  # type: ignore[arg-type]
