from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ghn_fast.ghn import (
    GHN,
    GHN3Config,
    GHNConfig,
    LoGAHConfig,
    ghn1,
    ghn2,
    make_ghn,
    make_plan,
)
from ghn_fast.ghn.decode.decoder import ConvDecoder
from ghn_fast.graph import GraphBatch
from tests.graphs import SmallClassifier, small_classifier


@pytest.fixture(scope="module")
def ghn() -> GHN:
    torch.manual_seed(0)
    return ghn2().eval()


def test_predicts_in_place_and_every_parameter(ghn: GHN) -> None:
    model = SmallClassifier()
    parameters = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    assert ghn(model, small_classifier()) is model
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]
        assert not torch.equal(parameter, before[name]), name
        assert parameter.isfinite().all()


def test_gradients_reach_every_parameter_of_the_ghn() -> None:
    ghn = ghn2(max_shape=(8, 8, 3, 3)).train()
    model = SmallClassifier()
    ghn([model], GraphBatch([small_classifier()]))
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    # The shape embeddings get a gradient only in the rows that the graph uses, which is enough.
    without = [name for name, p in ghn.named_parameters() if p.grad is None]
    assert without == []


SMALL = {"hid": 16, "max_shape": (8, 8, 3, 3), "num_classes": 10}
CONFIGS = [
    GHNConfig(**SMALL),
    GHN3Config(**SMALL, layers=1, heads=2),
    LoGAHConfig(**SMALL, layers=1, heads=2, lora_r=4, max_ck_lora=128),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["ghn2", "ghn3", "logah"])
def test_autocast_makes_no_difference_in_training(config: GHNConfig) -> None:
    ghn, graph, found = make_ghn(config).train(), small_classifier(), []
    for enabled in (False, True):
        model = SmallClassifier()
        ghn.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            ghn(model, graph)
            embedding = ghn.embed(graph)
            kernel = ghn.decode(embedding[None], "weight", (4, 4, 3, 3))
        predicted = [model.conv.weight, model.bn.weight, model.fc.weight, model.fc.bias]
        torch.stack([p.square().sum() for p in predicted]).sum().backward()
        found.append([embedding, kernel, *predicted, *(p.grad for p in ghn.parameters())])
    for usual, lower in zip(*found, strict=True):
        assert usual is lower is None or torch.equal(lower, usual)


def test_batch_equals_one_by_one(ghn: GHN) -> None:
    graphs = [small_classifier(8), small_classifier(24), small_classifier(100)]
    together = [SmallClassifier(8), SmallClassifier(24), SmallClassifier(100)]
    alone = [SmallClassifier(8), SmallClassifier(24), SmallClassifier(100)]
    ghn(together, GraphBatch(graphs))
    for model, graph, other in zip(alone, graphs, together, strict=True):
        ghn(model, graph)
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_graph_of_another_width_takes_the_shapes_of_the_model(ghn: GHN) -> None:
    wide, other = SmallClassifier(channels=24), SmallClassifier(channels=24)
    ghn(wide, small_classifier(channels=8))
    ghn(other, small_classifier(channels=24))
    for ours, theirs in zip(wide.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_graph_of_another_network(ghn: GHN) -> None:
    with pytest.raises(ValueError, match=r"'conv.weight', which the model has not"):
        ghn(torch.nn.Linear(2, 2), small_classifier())


def test_wide_layers_are_tiled(ghn: GHN) -> None:
    model = SmallClassifier(channels=100)
    ghn(model, small_classifier(channels=100))
    assert torch.equal(model.conv.weight[64:], model.conv.weight[:36])
    assert torch.equal(model.fc.weight[:, 64:], model.fc.weight[:, :36])


def test_other_number_of_classes_is_skipped(ghn: GHN) -> None:
    plan = make_plan(GraphBatch([small_classifier(num_classes=7)]), ghn.config)
    assert set(plan.kept[0]) == {"fc.weight", "fc.bias"}
    assert "output layer of 7; this GHN predicts 10" in plan.kept[0]["fc.weight"]
    assert set(plan.rules(0)) == {"conv.weight", "bn.weight", "bn.bias"}


def test_the_rest_does_not_depend_on_the_number_of_classes(ghn: GHN) -> None:
    ten, seven = SmallClassifier(), SmallClassifier(num_classes=7)
    ghn(ten, small_classifier())
    ghn(seven, small_classifier(num_classes=7))
    assert torch.equal(ten.conv.weight, seven.conv.weight)


def test_embed_is_the_mean_of_the_node_embeddings(ghn: GHN) -> None:
    graph = small_classifier()
    expected = ghn.node_embeddings(GraphBatch([graph])).mean(dim=0)
    embedding = ghn.embed(graph)
    assert embedding.shape == (32,)
    torch.testing.assert_close(embedding, expected)


def test_as_many_graphs_as_models(ghn: GHN) -> None:
    with pytest.raises(ValueError, match="2 models were passed with 1 graphs"):
        ghn([SmallClassifier(), SmallClassifier()], small_classifier())


def test_corner_of_the_decoder_is_the_corner_of_the_whole(generator: torch.Generator) -> None:
    decoder = ConvDecoder(8, (6, 5, 3, 3), 10)
    x = torch.randn(2, 8, generator=generator)
    whole = decoder(x, (6, 5, 3, 3))
    assert whole.shape == (2, 6, 5, 3, 3)
    torch.testing.assert_close(decoder(x, (2, 3, 1, 2)), whole[:, :2, :3, :1, :2])


def mlp_decoder() -> GHN:
    return GHN(GHNConfig(max_shape=(16, 16, 3, 3), decoder="mlp"))


def no_message_passing() -> GHN:
    return ghn2(hypernet="mlp")


@pytest.mark.parametrize("make", [ghn1, ghn2, no_message_passing, mlp_decoder])
def test_variants_predict_finite_values(make: Callable[[], GHN]) -> None:
    model = SmallClassifier()
    make().eval()(model, small_classifier())
    assert all(p.isfinite().all() for p in model.parameters())
