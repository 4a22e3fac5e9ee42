from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ghn_fast.ghn import GHN, GHN3, GHN3Config, GHNConfig, ghn3, make_ghn
from ghn_fast.ghn.ghn3 import CentredConvDecoder
from ghn_fast.ghn.place.tiling import EXTRA_ROW_STD, position_rows
from ghn_fast.graph import Graph, GraphBatch, Node
from tests.graphs import SmallClassifier, small_classifier


@pytest.fixture(scope="module")
def ghn() -> GHN3:
    torch.manual_seed(0)
    return ghn3("t", num_classes=10, max_shape=(32, 32, 8, 8)).eval()


@pytest.mark.parametrize(
    ("size", "millions"), [("t", 6.9), ("s", 35.8), ("l", 214.7), ("xl", 654.4)]
)
def test_published_sizes(size: str, millions: float) -> None:
    """arXiv 2303.04143, table 1."""
    with torch.device("meta"):
        ghn = ghn3(size)
    assert sum(p.numel() for p in ghn.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_predicts_in_place_and_every_parameter(ghn: GHN3) -> None:
    model = SmallClassifier()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert ghn(model, small_classifier()) is model
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert parameter.isfinite().all()


def test_gradients_reach_every_parameter_of_the_ghn() -> None:
    ghn = ghn3("t", num_classes=10, max_shape=(8, 8, 3, 3), layers=2).train()
    models = [SmallClassifier(8), SmallClassifier(24)]
    ghn(models, GraphBatch([small_classifier(8), small_classifier(24)]))
    sum(model(torch.randn(4, 3, 8, 8)).square().sum() for model in models).backward()
    assert [name for name, p in ghn.named_parameters() if p.grad is None] == []


def test_batch_equals_one_by_one(ghn: GHN3) -> None:
    graphs = [small_classifier(8), longer_graph(), small_classifier(100)]
    together = ghn.node_embeddings(GraphBatch(graphs))
    alone = torch.cat([ghn.node_embeddings(GraphBatch([graph])) for graph in graphs])
    torch.testing.assert_close(together, alone)


def longer_graph() -> Graph:
    nodes = tuple(Node("sum", "sum") for _ in range(90))
    return Graph(nodes, torch.stack((torch.arange(89), torch.arange(1, 90)), dim=1))


def test_embedding_knows_degrees_and_depth(ghn: GHN3) -> None:
    """Nodes of one type and shape differ only by where they are in the graph."""
    embeddings = ghn.node_embeddings(GraphBatch([longer_graph()]))
    # Up to the largest distance, 50, every node of a path has a depth of its own.
    assert (torch.pdist(embeddings[:51]) > 0.1).all()


def test_the_decoder_takes_the_centre(generator: torch.Generator) -> None:
    decoder = CentredConvDecoder(8, (6, 5, 8, 8), 10)
    x = torch.randn(2, 8, generator=generator)
    whole = decoder(x, (6, 5, 8, 8))
    torch.testing.assert_close(decoder(x, (6, 5, 3, 3)), whole[..., 3:6, 3:6])
    torch.testing.assert_close(decoder(x, (4, 2, 2, 2)), whole[:, :4, :2, 3:5, 3:5])
    torch.testing.assert_close(decoder(x, (6, 5, 1, 7)), whole[..., 4:5, 1:8])
    torch.testing.assert_close(decoder(x, (6, 5, 1, 1)), whole[..., 4:5, 4:5])


def test_the_classification_layer_is_decoded_from_the_centre(generator: torch.Generator) -> None:
    decoder = CentredConvDecoder(8, (6, 5, 8, 8), 10)
    x = torch.randn(2, 8, generator=generator)
    centre = decoder(x, (6, 5, 8, 8))[..., 4, 4]
    expected = decoder.class_layer_predictor(centre.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(decoder.class_weight(x, 5), expected)


def test_kernels_larger_than_the_block_are_interpolated(ghn: GHN3) -> None:
    x = torch.randn(3, 64)
    block = ghn.decoder(x, (16, 3, 8, 8))
    expected = F.interpolate(block.flatten(0, 1), size=(20, 20), mode="bilinear")
    kernel = ghn.decode(x, "weight", (16, 3, 20, 20))
    scale = (2 / (3 * 20 * 20)) ** 0.5
    torch.testing.assert_close(kernel, scale * expected.view(3, 16, 3, 20, 20))


def test_position_tables(ghn: GHN3) -> None:
    """(1, 1 + 6 * 6, 40): a class token's row, then the grid row by row, channels repeated."""
    x = torch.randn(2, 64)
    table = ghn.decode(x, "pos_enc", (1, 37, 40))
    grid = ghn.decoder(x, (1, 32, 6, 6))
    assert table.shape == (2, 1, 37, 40)
    torch.testing.assert_close(table[:, 0, 1:, :32], grid[:, 0].flatten(2).transpose(1, 2))
    assert torch.equal(table[..., 32:], table[..., :8])
    large = ghn.decode(x, "pos_enc", (1, 145, 32))
    assert large.shape == (2, 1, 145, 32)
    assert torch.equal(ghn.decode(x, "pos_enc", (1, 145, 32)), large)


def test_extra_rows_of_position_tables() -> None:
    table = position_rows(torch.zeros(1, 1, 400, 3, 3), rows=11)
    assert not table[:, :, 2:].any()
    assert table[:, :, :2].std().item() == pytest.approx(EXTRA_ROW_STD, rel=0.1)


def test_initial_predictions_are_small() -> None:
    torch.manual_seed(0)
    ghn = ghn3("t", num_classes=10, max_shape=(16, 16, 3, 3))
    model = SmallClassifier()
    ghn.eval()(model, small_classifier())
    assert model.bn.bias.abs().max() < 0.1
    torch.testing.assert_close(model.bn.weight, torch.ones(8), atol=0.2, rtol=0)
    assert ghn.centrality_embed_in.weight.std().item() == pytest.approx(64**-0.5, rel=0.15)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heads": 7}, "heads must divide hid 64"),
        ({"layers": 0}, "layers must be positive"),
        ({"hypernet": "mlp"}, "a GHN-3 is a graphormer"),
        ({"decoder": "mlp"}, "conv decoder"),
        ({"ve": False}, "virtual edges"),
    ],
)
def test_configurations_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GHN3Config(**values)


def test_unknown_size() -> None:
    with pytest.raises(ValueError, match="one of t, s, l, xl, not 'xxl'"):
        ghn3("xxl")


def test_make_ghn_tells_them_apart() -> None:
    small = {"hid": 8, "max_shape": (8, 8, 3, 3)}
    assert type(make_ghn(GHNConfig(**small))) is GHN  # type: ignore[arg-type]
    assert type(make_ghn(GHN3Config(**small))) is GHN3  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="make_ghn"):
        GHN(GHNConfig(hypernet="graphormer"))
