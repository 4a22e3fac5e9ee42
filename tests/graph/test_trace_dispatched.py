"""Graphs of models that run below Python, read from what reaches the dispatcher."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ghn_fast.graph.trace.tracer import Trace, trace
from tests.graphs import SmallClassifier, small_classifier


class Everything(nn.Module):
    """One of each kind of node."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.average = nn.AvgPool2d(2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, groups=2, dilation=2, bias=False)
        self.squeeze = nn.Conv2d(8, 2, 1)
        self.excite = nn.Conv2d(2, 8, 1)
        self.pos_embed = nn.Parameter(torch.zeros(1, 36, 16))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)
        self.gamma = nn.Parameter(torch.ones(16))
        self.classes = nn.Embedding(4, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.average(self.pool(torch.relu(self.bn(self.stem(x)))))
        x = torch.cat([self.depthwise(x), x + self.dilated(x)], 1)
        x, y = x.chunk(2, 1)
        gate = self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        tokens = torch.cat([x * gate, y], 1).flatten(2).transpose(1, 2) + self.pos_embed
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), tokens], 1)
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, -1)
        weights = torch.softmax(q @ k.transpose(-2, -1), -1)
        tokens = tokens + self.proj(weights @ v) * self.gamma
        tokens = tokens + self.classes(torch.zeros(1, dtype=torch.long))
        return self.head(tokens.mean(1))


IMAGE = torch.zeros(2, 3, 16, 16)


def assert_equal(a: Trace, b: Trace) -> None:
    assert a.nodes == b.nodes
    assert a.edges.tolist() == b.edges.tolist()
    assert a.other == b.other
    assert a.unused == b.unused


def test_scripted_model() -> None:
    model = Everything()
    expected = trace(model, IMAGE)
    types = {node.type for node in expected.nodes}
    assert types >= {"sep_conv", "dil_conv", "cse", "msa", "pos_enc", "glob_avg", "avg_pool"}
    assert_equal(trace(torch.jit.script(model), IMAGE), expected)


def test_scripted_model_that_has_run() -> None:
    """Once more as well, as PyTorch then runs other code for it."""
    for _ in range(2):
        scripted = torch.jit.script(SmallClassifier())
        for _ in range(4):
            scripted(IMAGE)
        assert tuple(trace(scripted, IMAGE).nodes) == small_classifier().nodes
        assert all(parameter.requires_grad for parameter in scripted.parameters())


class NeverRun(SmallClassifier):
    """Scripted instances of a class share their code, and with it whether it has run."""


def test_scripted_part() -> None:
    model = nn.Sequential(torch.jit.script(NeverRun()), nn.Linear(10, 2))
    names = [node.name for node in trace(model, IMAGE).nodes]
    assert names[-4:] == ["0.fc.weight", "0.fc.bias", "1.weight", "1.bias"]


def test_scripted_part_that_has_run() -> None:
    scripted = torch.jit.script(SmallClassifier())
    for _ in range(4):
        scripted(IMAGE)
    model = nn.Sequential(scripted, nn.Linear(10, 2))
    names = [node.name for node in trace(model, IMAGE).nodes]
    assert names[-4:] == ["0.fc.weight", "0.fc.bias", "1.weight", "1.bias"]


@torch.jit.script
def scripted_activation(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class WithScriptedFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(scripted_activation(self.a(x)))


def test_scripted_function() -> None:
    result = trace(WithScriptedFunction(), torch.zeros(2, 4))
    assert [node.name for node in result.nodes] == [
        *("input", "a.weight", "a.bias", "b.weight", "b.bias")
    ]
    assert result.edges.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]


def test_model_is_as_before() -> None:
    model = nn.Sequential(WithScriptedFunction(), nn.BatchNorm1d(2))
    model[0].a.weight.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    x = torch.ones(2, 4)
    trace(model, x)
    assert not x.requires_grad
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert model.training
