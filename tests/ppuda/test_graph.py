from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.graph import NODE_TYPES
from ghn_fast.ppuda.deepnets1m.genotypes import DARTS, PRIMITIVES_DEEPNETS1M
from ghn_fast.ppuda.deepnets1m.graph import Graph, GraphBatch
from ghn_fast.ppuda.deepnets1m.net import Network
from ghn_fast.ppuda.ghn.nn import GHN

MakeNet = Callable[..., nn.Module]


class Residual(nn.Module):
    expected_input_sz = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(4)
        self.dead = nn.Linear(2, 2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norm(self.pool(x + self.second(x)))
        return self.fc(x.mean(dim=(2, 3)))


# input -> first -> second -> sum -> pool -> norm -> mean -> weight -> bias, and first -> sum.
TYPES = ["input", "conv", "conv", "sum", "max_pool", "bn", "glob_avg", "conv", "bias"]


def test_graph_of_a_model() -> None:
    graph = Graph(Residual())
    assert graph.n_nodes == 9
    assert [PRIMITIVES_DEEPNETS1M[kind] for kind in graph.node_feat.flatten()] == TYPES
    assert graph.node_feat.shape == (9, 1)
    assert graph.node_feat.dtype == torch.int64
    assert graph.edges.dtype == graph._Adj.dtype == torch.int64
    distances = {(u, v): d for u, v, d in graph.edges.tolist()}
    assert distances[0, 1] == 1
    assert distances[1, 3] == 1
    assert distances[0, 3] == 2
    assert distances[2, 8] == 6
    assert len(distances) == 9 * 8 // 2
    assert graph._Adj[2, 8] == 6
    assert graph._Adj[8, 2] == 0


@pytest.mark.parametrize("cutoff", [1, 3])
def test_virtual_edges_end_at_the_cutoff(cutoff: int) -> None:
    graph = Graph(Residual(), ve_cutoff=cutoff)
    whole = Graph(Residual())._Adj
    assert torch.equal(graph._Adj, whole * (whole <= cutoff))
    assert int(graph.edges[:, 2].max()) == cutoff


def test_node_info() -> None:
    assert Graph(Residual()).node_info == [
        [
            (1, "first.weight", "conv", (4, 3, 3, 3), False, False),
            (2, "second.weight", "conv", (4, 4, 3, 3), False, False),
            (4, "max_pool", "max_pool", (1, 1, 2, 2), False, False),
            (5, "norm.weight", "bn", (4,), False, False),
            (7, "fc.weight", "conv", (5, 4), True, False),
            (8, "fc.bias", "bias", (5,), False, True),
        ]
    ]
    listed = Graph(Residual(), list_all_nodes=True).node_info[0]
    assert [entry[2] for entry in listed] == TYPES


def test_node_info_of_cells() -> None:
    graph = Graph(Network(8, 10, DARTS, 3, is_imagenet_input=False))
    assert len(graph.node_info) == 3
    for cell, entries in enumerate(graph.node_info):
        names = [entry[1] for entry in entries if entry[1].startswith("cells.")]
        assert names
        assert all(name.startswith(f"cells.{cell}.") for name in names)
    assert graph.node_info[0][0][1] == "stem.0.weight"
    assert graph.node_info[2][-1][1:3] == ("classifier.0.bias", "bias")
    positions = [entry[0] for entries in graph.node_info for entry in entries]
    assert len(set(positions)) == len(positions)


def test_nodes_and_edges_instead_of_a_model(ghn: GHN, make_net: MakeNet) -> None:
    expected, whole = ghn(make_net()), Graph(make_net())
    fields = {"node_feat": whole.node_feat, "node_info": whole.node_info}
    for edges in ({"A": whole._Adj}, {"A": whole._Adj.numpy()}, {"edges": whole.edges}):
        graph = Graph(**fields, **edges, net_args={"C": 1}, net_idx=4)  # type: ignore[arg-type]
        assert (graph.net_args, graph.net_idx) == ({"C": 1}, 4)
        assert torch.equal(graph.edges, whole.edges)
        net = ghn(make_net(), graph)
        for one, other in zip(net.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("fields", [{}, {"node_feat": torch.zeros(2, 1, dtype=torch.int64)}])
def test_a_graph_of_nothing(fields: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="edges"):
        Graph(**fields)  # type: ignore[arg-type]


def test_batch(make_net: MakeNet) -> None:
    graphs = [Graph(Residual(), net_args={"C": 8}, net_idx=3), Graph(make_net())]
    batch = GraphBatch(graphs)
    assert batch.n_nodes == [9, graphs[1].n_nodes]
    assert [len(part) for part in batch.edges] == [len(graph.edges) for graph in graphs]
    assert len(batch) == 2
    assert batch[1] is graphs[1]
    assert list(batch) == graphs
    assert batch.to_device(["cpu"]) is batch
    assert torch.equal(batch.n_nodes, torch.tensor([9, graphs[1].n_nodes]))
    assert batch.node_feat.shape == (9 + graphs[1].n_nodes, 2)
    assert batch.node_feat[:, 1].bincount().tolist() == batch.n_nodes.tolist()
    assert torch.equal(batch.node_feat[:9, :1], graphs[0].node_feat)
    assert torch.equal(batch.edges[batch.edges[:, 3] == 1][:, :3], graphs[1].edges)
    assert (batch.net_args, batch.net_inds) == ([{"C": 8}, None], [3, None])
    assert batch.node_info[0] == graphs[0].node_info


def test_a_batch_of_nothing() -> None:
    batch = GraphBatch([]).to_device("cpu")
    assert len(batch) == 0
    for part, shape in ((batch.n_nodes, (0,)), (batch.node_feat, (0, 2)), (batch.edges, (0, 4))):
        assert part.shape == shape
        assert part.dtype == torch.int64


def test_properties() -> None:
    pytest.importorskip("networkx")
    graph = Graph(Residual())
    # A path of 9 nodes with one more edge that closes a triangle.
    assert graph.nx_graph.number_of_edges() == 9
    lengths = [int(d) for d in graph._Adj[graph._Adj > 0]]
    assert graph.properties() == {
        "avg_degree": pytest.approx(2.0),
        "avg_path": pytest.approx(sum(lengths) / 36),
    }
    with pytest.raises(NotImplementedError, match="radius"):
        graph.properties(key=("radius",))


@pytest.mark.parametrize("legend", [False, True])
def test_visualize(legend: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("networkx")
    import matplotlib

    matplotlib.use("Agg")
    name = tmp_path / "drawn"
    Graph(Residual()).visualize(
        figname=str(name), figsize=(2, 2), with_labels=True, vis_legend=legend
    )
    assert name.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert name.with_suffix(".pdf").read_bytes().startswith(b"%PDF")


def test_num_valid_nodes_leaves_the_model() -> None:
    model = Residual().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert Graph(model).num_valid_nodes() == 6
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        model.fc.bias.fill_(float("nan"))
    assert Graph(model).num_valid_nodes() == -1
    with pytest.raises(ValueError, match="pass the model"):
        Graph.from_core(Graph(model).core).num_valid_nodes()


def test_a_frozen_model_has_no_valid_nodes() -> None:
    model = Residual().requires_grad_(False)
    assert Graph(model).num_valid_nodes() == 0


def test_node_types() -> None:
    assert list(NODE_TYPES) == PRIMITIVES_DEEPNETS1M
