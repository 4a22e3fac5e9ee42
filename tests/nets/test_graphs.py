"""Graphs written from the arguments equal those traced from the network."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ghn_fast._core import core
from ghn_fast.graph import Graph
from ghn_fast.graph.types import NODE_TYPE_INDEX, NODE_TYPES
from ghn_fast.nets import SPLITS, Genotype, build_ghost, build_net, graph_of, sample_net_args

SAMPLED = tuple(split for split in SPLITS if split != "predefined")
COMPARED = int(os.environ.get("GHN_FAST_COMPARED_NETWORKS", "10"))
"""Networks of each split that are traced, for small images and for large; 1000 take about half an
hour in all."""


def assert_same(direct: Graph, traced: Graph) -> None:
    assert direct.nodes == traced.nodes
    assert torch.equal(direct.edges, traced.edges)
    assert torch.equal(direct.distances, traced.distances)
    assert direct.unused == traced.unused
    assert direct.digest() == traced.digest()


@pytest.mark.parametrize("split", SAMPLED)
def test_sampled_networks(split: str) -> None:
    for index in range(COMPARED):
        for large, classes in ((False, 10), (True, 1000)):
            net_args = sample_net_args(split, 17, index, large)
            traced = Graph.from_model(build_ghost(net_args, classes, large))
            assert_same(graph_of(net_args, classes, large), traced)


def test_batch_of_the_core() -> None:
    for split, first in (("dense", 3), ("train", 1 << 40)):
        indices = [first + (7 * i) % 6 for i in range(6)]
        num_nodes, types, shapes, num_edges, edges, distances, rows = core.deepnets_batch(
            split, 5, indices, 10, False, 50, False, 2
        )
        assert rows.shape == (0, 3)
        node = edge = pair = 0
        for i in range(6):
            graph = graph_of(sample_net_args(split, 5, indices[i]))
            n, e = int(num_nodes[i]), int(num_edges[i])
            assert (n, e) == (graph.num_nodes, len(graph.edges))
            assert types[node : node + n].tolist() == graph.node_types.tolist()
            padded = [[*(x.shape or ()), 0, 0, 0, 0][:4] for x in graph.nodes]
            assert shapes[node : node + n].tolist() == padded
            assert edges[edge : edge + e].tolist() == graph.edges.tolist()
            matrix = distances[pair : pair + n * n].reshape(n, n)
            assert (matrix == graph.distances.numpy()).all()
            node, edge, pair = node + n, edge + e, pair + n * n
        assert (node, edge, pair) == (len(types), len(edges), len(distances))


@pytest.mark.parametrize("index", [0, 1])
def test_predefined_networks(index: int) -> None:
    net_args = sample_net_args("predefined", 0, index)
    with torch.device("meta"):
        network = build_net(net_args, 10, False)
    graph = graph_of(net_args, index=index)
    assert_same(graph, Graph.from_model(network))
    assert (graph.net_args, graph.index) == (net_args, index)


DEAD = Genotype(
    [("conv_3x3", 0), ("msa", 1), ("none", 0), ("cse", 1)], [2],
    [("sep_conv_3x3", 0), ("skip_connect", 1), ("none", 0), ("none", 1)], [3],
)  # fmt: skip
SAME = Genotype([("skip_connect", 0), ("skip_connect", 1)], [2],
                [("conv_7x1_1x7", 0), ("skip_connect", 1)], [2])  # fmt: skip


@pytest.mark.parametrize("genotype", [DEAD, SAME, DEAD._replace(reduce_concat=[2, 3])])
@pytest.mark.parametrize(
    "changes",
    [{}, {"stem_type": 1}, {"stem_pool": True, "norm": None}, {"fc_layers": 3, "fc_dim": 16}],
)
def test_odd_networks(genotype: Genotype, changes: dict[str, Any]) -> None:
    for cells in (1, 5, 6):
        net_args = {"C": 16, "genotype": genotype, "n_cells": cells, **changes}
        graph = graph_of(net_args)
        assert_same(graph, Graph.from_model(build_ghost(net_args, 10, False)))


def test_network_without_output() -> None:
    genotype = Genotype([("none", 0), ("none", 1)], [2], [("none", 0), ("none", 1)], [2])
    with pytest.raises(ValueError, match="cut every path"):
        graph_of({"C": 16, "genotype": genotype, "n_cells": 3})


def test_graphs_of_the_public_generator(shared: Path) -> None:
    cases = json.loads((shared / "conformance" / "deepnets_20.json").read_text())
    for case in cases:
        graph = graph_of(case["net_args"])
        assert graph.num_nodes == case["nodes"]
        assert torch.bincount(graph.node_types, minlength=15).tolist() == case["types"]
        assert len(graph.edges) == case["edges_1hop"]
        assert int((graph.distances > 0).sum()) == case["edges_all"]
        assert int(graph.distances.sum(dtype=torch.int64)) == case["dist_sum"]
        parameters = {node.parameter for node in graph.nodes} | {node.bias for node in graph.nodes}
        assert parameters - {None} == set(case["predictions"]["ghn2_cifar10"]["params"])


def kinds_of(types: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Node types, with one more, 15, for convolutions of one pixel and linear layers."""
    pointwise = (types == NODE_TYPE_INDEX["conv"]) & (shapes[:, 2:] <= 1).all(axis=1)
    return np.where(pointwise, len(NODE_TYPES), types)


def test_distribution_of_graphs(shared: Path) -> None:
    """Sizes, depths, densities and node types of 10,000 against 900 of the public generator."""
    path = shared / "conformance" / "deepnets_distribution.json"
    reference = json.loads(path.read_text())
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for start in range(0, 10_000, 500):
        num_nodes, types, shapes, num_edges, _, distances, _ = core.deepnets_batch(
            "train", 1, range(start, start + 500), 10, False, 250, False, 1
        )
        matrices = np.concatenate([[0], np.cumsum(num_nodes**2)[:-1]])
        parts["nodes"].append(num_nodes)
        parts["edges_per_node"].append(num_edges / num_nodes)
        parts["longest_shortest_path"].append(np.maximum.reduceat(distances, matrices))
        counts = np.zeros((500, len(NODE_TYPES) + 1))
        np.add.at(counts, (np.repeat(np.arange(500), num_nodes), kinds_of(types, shapes)), 1)
        parts["types"].append(counts)
    values = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    types = torch.from_numpy(values.pop("types"))
    for name, sample in values.items():
        ours = torch.from_numpy(sample).double()
        theirs = reference[name]
        error = (ours.var() / len(ours) + theirs["std"] ** 2 / reference["networks"]) ** 0.5
        assert abs(ours.mean() - theirs["mean"]) < 3.3 * error, name
        for level in (0.05, 0.25, 0.5, 0.75, 0.95):
            below = float((ours <= theirs[f"q{round(100 * level)}"]).double().mean())
            spread = (level * (1 - level) * (1 / len(ours) + 1 / reference["networks"])) ** 0.5
            # Integers are tied at the quantile: count half of them.
            tied = float((ours == theirs[f"q{round(100 * level)}"]).double().mean())
            assert abs(below - tied / 2 - level) < 3.5 * spread + tied / 2, (name, level)
    total = types.sum(dim=1)
    seen = {n: types[:, k] for k, n in enumerate((*NODE_TYPES, "conv_1x1")) if types[:, k].any()}
    assert set(seen) == set(reference["node_types"])
    for name, share in reference["node_types"].items():
        counts = seen[name]
        # A ratio of sums over networks: its error follows from the spread between networks.
        deviation = (counts - counts.sum() / total.sum() * total).std() / total.mean()
        error = float(deviation) * (1 / len(types) + 1 / reference["networks"]) ** 0.5
        assert abs(float(counts.sum() / total.sum()) - share) < 3.5 * error, name
