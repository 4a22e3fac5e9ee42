"""The fast path, in few products and one pass over the parameters, against the reference path."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ghn_fast
from ghn_fast.ghn import GHN, GHNConfig, ghn1, ghn2, ghn3, make_plan
from ghn_fast.ghn.logah import LoGAHConfig
from ghn_fast.ghn.place.block_table import BlockTable, make_block_table
from ghn_fast.ghn.place.cache import PlanCache
from ghn_fast.ghn.place.uses import Uses
from ghn_fast.graph import Graph, GraphBatch, Node
from ghn_fast.graph.layout import Layout, Storage

SIZES = (1, 3, 8, 10, 24, 70)
KERNELS = ((1, 1), (3, 3), (1, 7), (7, 1), (6, 6))


def reference(ghn: GHN, models: list[nn.Module], batch: GraphBatch) -> dict[tuple, Tensor]:
    plan = make_plan(batch, ghn.config, models)
    return {
        (target.graph, target.parameter): tensor
        for group, tensors in ghn.predict_groups(batch, plan)
        for target, tensor in zip(group.targets, tensors, strict=True)
    }


def baseline(**config: object) -> GHN:
    return GHN(GHNConfig.from_dict({"decoder": "mlp", **config}))


def small_ghn3(**config: object) -> GHN:
    return ghn3("t", 10, hid=8, layers=1, heads=2, **config)


MAKERS: list[Callable[..., GHN]] = [ghn1, ghn2, baseline, small_ghn3]


@pytest.fixture(params=MAKERS, ids=lambda make: make.__name__)
def ghn(request: pytest.FixtureRequest) -> GHN:
    torch.manual_seed(0)
    return request.param(max_shape=(16, 16, 5, 5)).eval()


class Net(nn.Module):
    """A parameter of every shape that hypothesis came up with, in a chain."""

    def __init__(self, nodes: list[tuple[str, tuple[int, ...]]]) -> None:
        super().__init__()
        self.graph_nodes = []
        for index, (kind, shape) in enumerate(nodes):
            weight, bias = f"w{index}", f"b{index}"
            self.register_parameter(weight, nn.Parameter(torch.zeros(shape)))
            if kind in ("bn", "ln"):
                self.register_parameter(bias, nn.Parameter(torch.zeros(shape)))
            self.graph_nodes.append(
                Node(kind, weight, shape, weight, bias if kind in ("bn", "ln") else None)
            )

    def graph(self) -> Graph:
        nodes = (Node("input", "input"), *self.graph_nodes)
        steps = torch.arange(len(nodes) - 1)
        return Graph(nodes, torch.stack((steps, steps + 1), dim=1))


@st.composite
def nets(draw: st.DrawFn) -> Net:
    size, kernel = st.sampled_from(SIZES), st.sampled_from(KERNELS)
    kinds = st.sampled_from(("kernel", "line", "video", "linear", "bias", "bn", "ln", "table"))
    nodes: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(draw(st.integers(1, 6))):
        out, channels, (height, width) = draw(size), draw(size), draw(kernel)
        shapes = {
            "kernel": ("conv", (out, channels, height, width)),
            "line": ("conv", (out, channels, height)),
            "video": ("conv", (out, channels, 2, height, width)),
            "linear": ("conv", (out, channels)),
            "bias": ("bias", (1, out, 1, 1)),
            "bn": ("bn", (out,)),
            "ln": ("ln", (out, height, width)),
            "table": ("pos_enc", (1, 1 + height * height, channels)),
        }
        nodes.append(shapes[draw(kinds)])
    nodes += [("conv", (10, draw(size))), ("bias", (10,))]
    return Net(nodes)


@settings(max_examples=25, deadline=None)
@given(nets(), st.integers(0, 3))
def test_writes_what_the_reference_predicts(net: Net, which: int) -> None:
    torch.manual_seed(0)
    ghn = MAKERS[which](max_shape=(16, 16, 5, 5)).eval()
    graph = net.graph()
    ghn(net, graph)
    with torch.no_grad():
        expected = reference(ghn, [net], GraphBatch([graph]))
    assert {name for _, name in expected} == set(dict(net.named_parameters()))
    for (_, name), value in expected.items():
        torch.testing.assert_close(net.get_parameter(name).detach(), value)


def test_gradients_are_those_of_the_reference(ghn: GHN) -> None:
    ghn = ghn.double().train()
    shapes = [
        *(("conv", (24, 3, 3, 3)), ("bn", (24,)), ("conv", (40, 24, 1, 1)), ("bn", (40,))),
        *(("conv", (8, 40, 3, 3)), ("conv", (10, 8)), ("bias", (10,))),
    ]
    models = [Net(shapes), Net(shapes[2:])]
    batch = GraphBatch([model.graph() for model in models])
    expected = reference(ghn, models, batch)
    weights = {key: torch.randn_like(value) for key, value in expected.items()}
    sum((expected[key] * weights[key]).sum() for key in weights).backward()
    wanted = {name: copy.copy(p.grad) for name, p in ghn.named_parameters()}
    ghn.zero_grad()
    ghn(models, batch)
    tensors = {key: models[key[0]]._parameters[key[1]] for key in weights}
    sum((tensors[key] * weights[key]).sum() for key in weights).backward()
    for name, parameter in ghn.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


def test_leaves_lead_back_to_the_same_gradients(ghn: GHN) -> None:
    ghn = ghn.double().train()
    shapes = [
        *(("conv", (24, 3, 3, 3)), ("bn", (24,)), ("pos_enc", (1, 10, 24)), ("conv", (40, 24))),
        *(("conv", (8, 40, 9, 9)), ("conv", (10, 8)), ("bias", (10,))),
    ]
    models = [Net(shapes), Net(shapes[3:])]
    batch = GraphBatch([model.graph() for model in models])
    ghn(models, batch)
    attached = [dict(model._parameters) for model in models]
    weights = [{k: torch.randn_like(v) for k, v in values.items()} for values in attached]
    del weights[0]["w0"]  # a parameter that does not matter
    loss = sum((attached[i][k] * w).sum() for i, ws in enumerate(weights) for k, w in ws.items())
    loss.backward()
    wanted = {name: copy.copy(p.grad) for name, p in ghn.named_parameters()}
    ghn.zero_grad()
    leaves = ghn.attach_leaves(models, batch)
    for index, model in enumerate(models):
        for name, value in model._parameters.items():
            assert value.is_leaf
            assert any(value is tensor for tensor in leaves.by_model[index])
            torch.testing.assert_close(value, attached[index][name])
        sum((model._parameters[k] * w).sum() for k, w in weights[index].items()).backward()
    leaves.backward()
    for name, parameter in ghn.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


def test_blocks_of_equal_size_are_decoded_together() -> None:
    net = Net([("conv", (64, 64)), ("conv", (128, 256)), ("conv", (64, 64, 3, 3))])
    batch = GraphBatch([net.graph()])
    table = make_block_table(make_plan(batch, GHNConfig()), GHNConfig())
    sizes = {source.size: nodes.tolist() for source, nodes in table.nodes.items()}
    assert sizes == {(64, 64, 1, 1): [1, 2], (64, 64, 3, 3): [3]}


def test_plans_are_kept_for_equal_architectures() -> None:
    cache, config = PlanCache(size=2), GHNConfig()
    nets = [Net([("conv", (size, 3)), ("bias", (size,))]) for size in (8, 8, 16, 24)]

    def table(index: int, config: GHNConfig = config) -> BlockTable:
        uses = [Uses.of(nets[index])]
        return cache.get(GraphBatch([nets[index].graph()]), config, uses, False)[1]

    first = table(0)
    assert table(1) is first
    assert table(0, GHNConfig(weight_norm=False)) is not first
    table(2)
    table(3)
    assert len(cache) == 2
    assert table(0) is not first


OVER_3, OVER_2 = (Layout(((-1,), (-1, n, n)), ((0,), (1,), (2,), (3,))) for n in (3, 2))
NODES = (
    *(Node("input", "input"), Node("conv", "a", (8, 4, 7, 7), "a")),
    *(Node("bn", "b", (8,), "b", "c"), Node("conv", "d", (10, 72), "d")),
)
PARAMETERS = {"a": (8, 4, 7, 7), "b": (8,), "c": (8,), "d": (10, 72), "e": (3,)}
LANGUAGE = LoGAHConfig(language=True)


def viewed(**how: Any) -> dict[str, tuple[Node, ...]]:
    return {"nodes": (*NODES[:3], replace(NODES[3], **how))}


def asked(
    *,
    nodes: tuple[Node, ...] = NODES,
    graph: dict[str, Any] | None = None,
    uses: dict[str, Any] | None = None,
    shapes: dict[str, tuple[int, ...]] | None = None,
    config: GHNConfig | None = None,
    interpolates: bool = False,
) -> tuple[Any, ...]:
    """What a cache is asked for a plan with."""
    edges = torch.tensor([[0, 1], [1, 2], [2, 3]])
    parameters = {
        name: nn.Parameter(torch.empty(shape, device="meta"))
        for name, shape in {**PARAMETERS, **(shapes or {})}.items()
    }
    config = config or GHNConfig(flat_kernels=True, max_shape=(16, 16, 5, 5))
    made = Graph(nodes, edges, **(graph or {}))
    return GraphBatch([made]), config, [Uses(parameters, **(uses or {}))], interpolates


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"config": GHNConfig(num_classes=100)}),
        ({}, {"interpolates": True}),
        ({}, viewed(type="bn")),
        ({}, {"graph": {"heads": (3,)}}),
        ({}, {"graph": {"other": {"e": "token"}}}),
        ({}, {"graph": {"unused": {"e": "not reached"}}}),
        (viewed(kernel=OVER_3), viewed(kernel=OVER_2)),
        (viewed(storage=Storage((10, 72), ())), viewed(storage=Storage((10, 72, 1), ()))),
        ({}, {"shapes": {"c": (8, 1)}}),
        ({}, {"uses": {"fan_in": {"a": 3.0}}}),
        ({}, {"uses": {"complex": {"a": torch.complex64}}}),
        ({}, {"uses": {"kept": {"a": "kept: for a reason"}}}),
        ({"config": LANGUAGE}, {"config": LANGUAGE, "uses": {"initializer_range": 0.5}}),
    ],
    ids=lambda change: "-".join(change) or "plain",
)
def test_no_plan_is_taken_for_another(one: dict[str, Any], other: dict[str, Any]) -> None:
    """What a plan depends on is in its key; all else of the two is equal."""
    cache = PlanCache(size=2)

    def get(cache: PlanCache, question: dict[str, Any]) -> tuple[Any, ...]:
        plan, table = cache.get(*asked(**question))
        return plan, table.views, table.direct

    first, second, fresh = get(cache, one), get(cache, other), get(PlanCache(size=1), other)
    assert first != fresh, "the change makes no difference"
    assert second == fresh


def test_what_is_kept_cannot_be_changed() -> None:
    ghn, net = ghn2(), Net([("conv", (8, 3, 3, 3)), ("bn", (8,))])
    plan = ghn.write(GraphBatch([net.graph()]), [Uses.of(net)])
    with pytest.raises(TypeError):
        plan.kinds[0]["0.weight"] = "weight"  # type: ignore[index]
    with pytest.raises(AttributeError):
        plan.groups[0].targets.clear()  # type: ignore[attr-defined]
    with pytest.raises(FrozenInstanceError):
        plan.groups[0].rule = "bias"  # type: ignore[misc]


def test_equal_graphs_of_models_that_use_their_weights_differently() -> None:
    """A transposed convolution has another fan-in: what is kept must not be mixed up."""
    torch.manual_seed(0)
    ghn = ghn2().eval()
    plain, transposed = nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3, stride=2)
    models = [nn.Sequential(layer) for layer in (plain, transposed)]
    nodes = (Node("input", "input"), Node("conv", "0.weight", (8, 8, 3, 3), "0.weight"))
    graph = Graph(nodes, torch.tensor([[0, 1]]))
    for model in models:
        ghn_fast.predict(model, ghn, graph=graph)
    torch.testing.assert_close(plain.weight * 2.0, transposed.weight)


def test_a_graph_that_is_there_is_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ghn = ghn2().eval()
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))
    graph = Graph.from_model(model, torch.zeros(1, 12))
    ghn_fast.predict(model, ghn, torch.zeros(1, 12))
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    monkeypatch.setattr(Graph, "from_model", None)
    ghn_fast.predict(model, ghn, graph=graph)
    for parameter, value in zip(model.parameters(), expected, strict=True):
        assert torch.equal(parameter, value)
    with pytest.raises(ValueError, match="which the model has not"):
        ghn_fast.predict(nn.Linear(2, 2), ghn, graph=graph)
