"""Architectures as vectors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ghn_fast
from ghn_fast.embedding import embed, principal_components, similar
from ghn_fast.ghn import GHN, GHNConfig


@pytest.fixture(params=[False, True])
def ghn(request: pytest.FixtureRequest) -> GHN:
    torch.manual_seed(0)
    return GHN(GHNConfig(hid=8, max_shape=(8, 8, 3, 3), flat_kernels=request.param)).eval()


@pytest.mark.parametrize("split", ["search", "test", "bnfree", "predefined"])
def test_of_a_split_as_of_its_graphs(ghn: GHN, split: str) -> None:
    nets = ghn_fast.DeepNets1M(split, num_nets=2 if split == "predefined" else 40)
    expected = torch.stack([ghn.embed(graph) for graph in nets])
    torch.testing.assert_close(embed(nets, ghn), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("split", ["search", "test"])
@pytest.mark.parametrize("large_images", [False, True])
def test_classes_are_the_ghns(ghn: GHN, split: str, large_images: bool) -> None:
    nets = ghn_fast.DeepNets1M(split, num_nets=20, num_classes=100, large_images=large_images)
    torch.testing.assert_close(embed(nets, ghn), embed(list(nets), ghn), rtol=1e-5, atol=1e-6)
    assert nets.num_classes == 100


def test_models_and_graphs_in_order(ghn: GHN) -> None:
    models = [
        nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3)) for width in (4, 9)
    ]
    given = [models[0], ghn_fast.Graph.from_model(models[1])]
    expected = torch.stack([ghn.embed(model) for model in models])
    torch.testing.assert_close(embed(given, ghn), expected)
    torch.testing.assert_close(embed(models[1], ghn), expected[1:])
    torch.testing.assert_close(embed(dict(zip("ab", given, strict=True)), ghn), expected)


def test_nothing_is_a_table_without_rows(ghn: GHN) -> None:
    assert embed([], ghn).shape == (0, 8)
    assert embed(ghn_fast.DeepNets1M("search", num_nets=0), ghn).shape == (0, 8)


def test_the_most_similar_is_itself(ghn: GHN) -> None:
    nets = ghn_fast.DeepNets1M("test", num_nets=5)
    found = similar(nets[3], {f"net{index}": graph for index, graph in enumerate(nets)}, ghn)
    assert found[0] == ("net3", pytest.approx(1.0, abs=1e-5))
    assert [value for _, value in found] == sorted((value for _, value in found), reverse=True)
    assert similar(nets[3], nets, ghn)[0][0] == 3


class _OfTwo(nn.Module):
    """Inputs of two widths, which its first layer does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 5), nn.Linear(4, 5)

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.one(one) + self.other(other)


def test_a_model_that_needs_inputs_is_given_as_its_graph(ghn: GHN) -> None:
    model = _OfTwo()
    with pytest.raises(ghn_fast.graph.TraceError, match=r"graph_of\(model, example_inputs=...\)$"):
        embed(model, ghn)
    graph = ghn.graph_of(model, example_inputs=(torch.zeros(2, 3), torch.zeros(2, 4)))
    assert embed(graph, ghn).shape == (1, 8)


def test_one_network_has_nothing_to_be_compared_by(ghn: GHN) -> None:
    net = ghn_fast.DeepNets1M("test", num_nets=1)[0]
    with pytest.raises(ValueError, match="there are 1: give two or more"):
        similar(net, {"one": net}, ghn)


def test_principal_components() -> None:
    torch.manual_seed(0)
    points = torch.randn(50, 3) * torch.tensor([5.0, 1.0, 0.1]) + 7
    found = principal_components(points)
    centred = points - points.mean(dim=0)
    torch.testing.assert_close(
        found[:, 0].abs(), (centred @ _first(centred)).abs(), rtol=1e-4, atol=1e-4
    )
    assert found.var(dim=0)[0] > found.var(dim=0)[1]
    assert (found.gather(0, found.abs().argmax(dim=0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("count", [0, 3])
def test_no_more_principal_components_than_there_are(count: int) -> None:
    with pytest.raises(ValueError, match=f"have 2 principal components, and count is {count}"):
        principal_components(torch.randn(2, 5), count)


def _first(centred: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
